"""Whether the records of a bundle agree with each other: weights, checkpoint, recipes, lineage, data, evaluation, card.

All of it is read as what somebody else wrote: JSON and YAML of known kinds, of files that the manifest lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onevision.errors import InputError, OneVisionError
from onevision.files import read_record
from onevision.fingerprint import value_digest
from onevision.recipe import Recipe, recipe_from
from onevision.release.manifest import MANIFEST
from onevision.training.checkpoint_files import CHECKPOINT_FILE
from onevision.training.run import changes
from onevision.yaml_text import check_yaml, first_line, read_yaml

CARD = "README.md"
# What reading a record of another form than ours may raise.
_NOT_OURS = (LookupError, TypeError, ValueError, AttributeError, RecursionError, yaml.YAMLError, OmegaConfBaseException)
PROVENANCE = "export/step.json"


def disagreements(folder: Path, content: dict[str, Any], files: set[str]) -> list[str]:
    """A line for each record that says something else than another one, or cannot be read; `content` is that of
    manifest.json, `files` are the names that it lists."""
    bundle = _Bundle(folder, files)
    problems: list[str] = []
    checks: list[Callable[[], Iterator[str]]] = [
        lambda: _weights(bundle, content),
        lambda: _card(bundle, content),
        lambda: _runs(bundle, content),
        lambda: _data(bundle, content),
        lambda: _evaluation(bundle, content),
    ]
    for check in checks:
        try:
            problems += check()
        except OneVisionError as error:
            problems.append(str(error))
        except _NOT_OURS as error:
            what = f"{type(error).__name__} {first_line(error)}"
            problems.append(f"{MANIFEST}: a record is not of the form that the suite writes: {what}")
    return problems


class _Bundle:
    """Records of the bundle; only files that the manifest lists are opened."""

    def __init__(self, folder: Path, files: set[str]) -> None:
        self._folder, self._files = folder, files

    def has(self, name: str) -> bool:
        return name in self._files

    def path(self, name: str) -> Path:
        if name not in self._files:
            raise InputError(f"{name}: {MANIFEST} names it and does not list it")
        return self._folder / name

    def record(self, name: str, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
        return read_record(self.path(name), **kinds)

    def recipe(self, name: str) -> Recipe:
        tree = OmegaConf.to_container(read_yaml(self.path(name), "recipe"))
        if not isinstance(tree, dict) or "extends" in tree:  # which would be a file of this machine
            raise InputError(f"{name}: is no resolved recipe")
        return recipe_from({str(key): value for key, value in tree.items()})


def _weights(bundle: _Bundle, content: dict[str, Any]) -> Iterator[str]:
    wanted = content["checkpoint"]
    record = bundle.record(PROVENANCE, inputs=dict, summary=dict)
    if record["inputs"].get("checkpoint") != wanted["fingerprint"]:
        yield _other(
            PROVENANCE, "the weights are of checkpoint", record["inputs"].get("checkpoint"), wanted["fingerprint"]
        )
    if record["summary"].get("step") != wanted["step"]:
        yield _other(PROVENANCE, "the weights are of step", record["summary"].get("step"), wanted["step"])
    if bundle.has("export/parity.json"):
        parity = bundle.record("export/parity.json", checkpoint=str)
        if parity["checkpoint"] != wanted["fingerprint"]:
            yield _other("export/parity.json", "compares checkpoint", parity["checkpoint"], wanted["fingerprint"])


def _card(bundle: _Bundle, content: dict[str, Any]) -> Iterator[str]:
    text = bundle.path(CARD).read_text(encoding="utf-8")
    _, opened, rest = text.partition("---\n")
    front, closed, _ = rest.partition("\n---\n")
    if not opened or not closed:
        raise InputError(f"{CARD}: has no front matter")
    try:
        check_yaml(front)
        said = yaml.safe_load(front)["onevision"]
    except (ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise InputError(f"{CARD}: its front matter is not that of a release: {first_line(error)}") from None
    expected = {
        "run": content["run"]["id"],
        "step": content["checkpoint"]["step"],
        "checkpoint": content["checkpoint"]["fingerprint"],
        "commit": content["suite"]["commit"],
    }
    for key, value in expected.items():
        if said.get(key) != value:
            yield _other(CARD, f"names {key}", said.get(key), value)


def _runs(bundle: _Bundle, content: dict[str, Any]) -> Iterator[str]:
    before = ""
    for run in content["runs"]:
        folder = f"runs/{run['name']}"
        if run["checkpoint_file"]:
            yield from _checkpoint(bundle, f"{folder}/{CHECKPOINT_FILE}", run["checkpoint"])
        lineage: dict[str, Any] = {"inputs": {}}
        if bundle.has(f"{folder}/lineage.json"):
            lineage = bundle.record(f"{folder}/lineage.json", inputs=dict, fingerprint=str)
            if (
                value_digest({key: value for key, value in lineage.items() if key != "fingerprint"})
                != lineage["fingerprint"]
            ):
                yield f"{folder}/lineage.json: its fingerprint is not that of its content"
        if before and lineage["inputs"].get("init_from") != before:
            yield _other(
                f"{folder}/lineage.json", "started from checkpoint", lineage["inputs"].get("init_from"), before
            )
        recipe = bundle.recipe(f"{folder}/recipe.yaml")
        if bundle.has(f"{folder}/run.json"):
            record = bundle.record(f"{folder}/run.json", values=dict, inputs=dict)
            yield from (
                f"{folder}: {line}: recipe or lineage is not run.json's"
                for line in changes(record, recipe, lineage["inputs"])
            )
            if str(record.get("id", "")) != run["id"]:
                yield _other(f"{folder}/run.json", "is of run", record.get("id"), run["id"])
        before = run["checkpoint"]
    last = content["runs"][-1]
    for key, value in (("id", content["run"]["id"]), ("checkpoint", content["checkpoint"]["fingerprint"])):
        if last[key] != value:
            yield _other(MANIFEST, f"the last run has {key}", last[key], value)


def _checkpoint(bundle: _Bundle, name: str, fingerprint: str) -> Iterator[str]:
    record = bundle.record(name, fingerprint=str, step=int)
    if value_digest({key: value for key, value in record.items() if key != "fingerprint"}) != record["fingerprint"]:
        yield f"{name}: its fingerprint is not that of its content"
    if record["fingerprint"] != fingerprint:
        yield _other(name, "is of checkpoint", record["fingerprint"], fingerprint)


def _data(bundle: _Bundle, content: dict[str, Any]) -> Iterator[str]:
    for data in content["data"]:
        folder = f"data/{data['name']}"
        step = bundle.record(f"{folder}/step.json", summary=dict)
        if step["summary"].get("fingerprint") != data["fingerprint"]:
            yield _other(
                f"{folder}/step.json", "has fingerprint", step["summary"].get("fingerprint"), data["fingerprint"]
            )
        if bundle.has(f"{folder}/manifest.json"):
            manifest = bundle.record(
                f"{folder}/manifest.json", fingerprint=str, shards=list, licences=dict, samples=int
            )
            if manifest["fingerprint"] != data["fingerprint"]:
                yield _other(f"{folder}/manifest.json", "has fingerprint", manifest["fingerprint"], data["fingerprint"])
            if {sum(manifest["licences"].values()), manifest["samples"]} != {step["summary"].get("samples")}:
                yield f"{folder}/manifest.json: counts other samples than {folder}/step.json"
        for user, key in data["used"].items():
            used = _inputs_of(bundle, user).get(key)
            if used != data["fingerprint"]:
                yield _other(folder, f"is not the {key} of {user},", data["fingerprint"], used)


def _inputs_of(bundle: _Bundle, user: str) -> dict[str, Any]:
    """The fingerprints of what a run, a step of the data or the evaluation read, by its folder in the bundle."""
    record = bundle.record(f"{user}/{'lineage.json' if user.startswith('runs/') else 'step.json'}", inputs=dict)
    inputs: dict[str, Any] = record["inputs"]
    return inputs


def _evaluation(bundle: _Bundle, content: dict[str, Any]) -> Iterator[str]:
    if bundle.has("evaluation/step.json"):
        record = bundle.record("evaluation/step.json", inputs=dict)
        wanted = content["checkpoint"]["fingerprint"]
        if record["inputs"].get("checkpoint") != wanted:
            yield _other("evaluation/step.json", "asked checkpoint", record["inputs"].get("checkpoint"), wanted)


def _other(name: str, what: str, said: object, expected: object) -> str:
    return f"{name}: {what} {said}, where another record has {expected}"
