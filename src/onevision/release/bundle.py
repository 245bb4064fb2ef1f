"""The release bundle of a checkpoint: what others need to rerun and check it, in one folder, every file hashed.

    README.md  loss.png                    the model card
    config.json  *.safetensors  …          the model as `make export` writes it: the folder loads as it is
    export/                                which checkpoint it is of, and its logits in other loaders
    runs/NAME/                             recipe, lineage, metrics, logs of this run and of those it started from
    data/NAME/                             records and manifests of the data, never the data
    evaluation/  report.html  summary.json
    manifest.json  SHA256SUMS

It is made under a temporary name beside its place, and put there by a rename. Weights that have to be exported for it
are made in a folder of their own first, which an interrupted command finds again.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onevision import __version__
from onevision.convert.exporting import export_inputs
from onevision.errors import DataError, InputError
from onevision.files import (
    behind_link,
    check_name,
    read_json,
    refuse_loss,
    replace_folder,
    storage_errors,
    write_json,
    write_text,
)
from onevision.fingerprint import file_digest, value_digest
from onevision.machine import commit
from onevision.recipe import Recipe
from onevision.release.chain import Chain, ChainRun, follow, shown
from onevision.release.data import DataFolder, FoundData, describe, find_data
from onevision.release.data_sections import CORPORA
from onevision.release.evaluations import HeldOut, held_out, task_files, write_held_out
from onevision.release.facts import Facts, contents, write_card
from onevision.release.manifest import FORMAT, MANIFEST, SUMS, read_manifest, sha256, walk, write_manifest
from onevision.release.personal import personal
from onevision.release.weights import obtain, place
from onevision.report.picture import write_loss
from onevision.report.report import render
from onevision.report.results import ABSENT, PipelineFolders, Results, Stage, read_results
from onevision.report.summary import summarise
from onevision.training.bad_steps import NAME as BAD_STEPS
from onevision.training.checkpoint_files import CHECKPOINT_FILE, find, step_folder, verify_sizes
from onevision.training.run import run_id

RUN_FILES = (
    "recipe.yaml",
    "run.json",
    "lineage.json",
    "step.json",
    "environment.json",
    "metrics.jsonl",
    BAD_STEPS,
)
LOGS = (".log", ".out", ".err", ".jsonl", ".json", ".sh", ".txt")


@dataclass(frozen=True)
class Asked:
    """What is released: the newest checkpoint of a run, or that of `step`. `shards` as in onevision.release.data,
    `licence` is the Hugging Face id of that of the weights, or empty."""

    recipe: Recipe
    run: Path
    step: int | None = None
    shards: str = "auto"
    licence: str = ""


@dataclass(frozen=True)
class Release:
    """What was made, or was there already (`skipped`), the SHA-256 of its manifest, and what to tell of it."""

    folder: Path
    manifest: str
    skipped: bool
    told: str


@dataclass(frozen=True)
class _Plan:
    """All that goes into a bundle, found before anything is written."""

    asked: Asked
    chain: Chain
    content: dict[str, Any]  # of checkpoint.json
    heldout: HeldOut | None
    before: HeldOut | None  # of the checkpoint that the chain begins with
    data: FoundData
    texts: dict[str, Path]  # files that are copied as they are, by their names in the bundle

    @property
    def key(self) -> str:
        """Digest of all that the bundle depends on."""
        evaluations = [found and found.record for found in (self.heldout, self.before)]
        return value_digest(
            {
                "suite": [__version__, commit()],
                "weights": export_inputs(self.content, self.asked.recipe.data),
                "runs": [[run.name, run.fingerprint] for run in self.chain.runs],
                "data": [[data.name, data.kind, data.fingerprint, data.used] for data in self.data.folders],
                "evaluations": evaluations,
                "texts": {name: file_digest(path) for name, path in sorted(self.texts.items())},
                "notes": [*self.chain.notes, *self.data.notes],
                "settings": [self.asked.shards, self.asked.licence],
            }
        )


def build_release(asked: Asked, output: Path, export: Callable[[int, Path], None]) -> Release:
    """Make the bundle in `output`, unless it is there already of the same input. `export(step, folder)` makes the
    export of a checkpoint where there is none.

    Raises:
        InputError: there is no such checkpoint, a record cannot be read, or `output` holds something else, or something
            besides an earlier bundle.
        DataError: the checkpoint is broken, or a shard that is to be hashed is not there.
        StorageError: not enough room; an earlier bundle is untouched.
    """
    target = behind_link(output)
    _refuse_foreign(target)
    plan = _plan(asked)
    key = plan.key
    if (digest := _unchanged(target, key)) is not None:
        told = f"{output}: unchanged, of step {plan.content['step']}; make verify-release DIR={output} reads every byte"
        return Release(output, digest, True, f"{told}\nSHA-256 of {MANIFEST}: {digest}")
    refuse_loss(output, _added(target))
    work, own = (target.with_name(f".{target.name}.{what}") for what in ("tmp", "weights"))
    with storage_errors(target):
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            told = _write(plan, key, work, own, export)
            replace_folder(work, target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(own, ignore_errors=True)
    return Release(output, sha256(target / MANIFEST), False, told.replace(str(work), str(output)))


def _plan(asked: Asked) -> _Plan:
    run, recipe = asked.run, asked.recipe
    checkpoint, content = find(run if asked.step is None else step_folder(run, asked.step), verify_sizes)
    chain = follow(run, recipe, checkpoint, content)
    heldout, first = held_out(run, content["fingerprint"]), chain.runs[0]
    before = held_out(first.folder, first.fingerprint) if first.fingerprint != content["fingerprint"] else None
    questions = (recipe.evaluation.corpus, heldout.record["inputs"]["corpus"]) if heldout else None
    texts: dict[str, Path] = {}
    for one in chain.runs:
        texts |= {f"runs/{one.name}/{name}": path for name, path in _run_files(one).items()}
    texts |= {f"evaluation/{name}": path for name, path in task_files(run)}
    return _Plan(asked, chain, content, heldout, before, find_data(chain.runs, questions), texts)


def _run_files(run: ChainRun) -> dict[str, Path]:
    found = {name: path for name in RUN_FILES if (path := run.folder / name).is_file()}
    if run.checkpoint is not None:
        found[CHECKPOINT_FILE] = run.checkpoint / CHECKPOINT_FILE
    root = run.folder / "log"
    own = _own_logs(root)
    for path in sorted(root.rglob("*")) if root.is_dir() else ():
        name = path.relative_to(root)
        # Hidden is what a job has while it runs, and a link its log. Logs of this command would change every bundle.
        kept = not any(part.startswith(".") or own.match(part) for part in name.parts) and not path.is_symlink()
        if kept and path.suffix in LOGS and path.is_file():
            found[f"log/{name.as_posix()}"] = path
    return found


def _own_logs(root: Path) -> re.Pattern[str]:
    """Names of what this command leaves in the log folder of a run: here by its name, from Slurm by its jobs' ids."""
    starts = root / "slurm" / "release.starts.jsonl"
    lines = starts.read_text(encoding="utf-8").splitlines() if starts.is_file() else []
    jobs = set()
    for line in lines:
        with suppress(json.JSONDecodeError):  # a line that was cut off by a crash
            jobs.add(str(json.loads(line)["job_id"]))
    return re.compile(
        "|".join([r"release-\d{8}-\d{6}", r"release\.", *(rf"{re.escape(job)}_" for job in sorted(jobs))])
    )


def _write(plan: _Plan, key: str, work: Path, own: Path, export: Callable[[int, Path], None]) -> str:
    run, recipe = plan.asked.run, plan.asked.recipe
    weights = obtain([run / "export", run.resolve().parent / "export"], plan.content, recipe.data, own, export)
    place(weights, work)
    for name, path in plan.texts.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, work / name)
    hashed: dict[Path, str] = {}
    for data in plan.data.folders:
        _write_data(data, work / "data" / data.name, plan.asked.shards, hashed)
    if plan.heldout is not None:
        write_held_out(plan.heldout, work / "evaluation")
    stages, categories, notes = _write_report(plan, work)
    if stages:
        write_loss(list(stages.values()), work / "loss.png")
    parity = work / "export" / "parity.json"
    names = list(walk(work).sizes)
    facts = Facts(
        run_id=_id(run),
        chain=plan.chain,
        data=plan.data,
        stages=stages,
        export=weights.record,
        parity=read_json(parity) if parity.exists() else None,
        heldout=plan.heldout,
        categories=categories,
        tasks=_tasks(plan),
        contents=contents(names),
        licence=plan.asked.licence,
        complete=not plan.chain.runs[0].recipe.train.init_from,
    )
    write_text(work / "README.md", write_card(facts))
    entries, digest = write_manifest(work, _manifest(plan, key, facts))
    size = sum(entry.bytes for entry in entries)
    lines = [f"{work}: step {plan.content['step']}, {len(entries) + 2:,} files, {size:,} bytes", *notes]
    hosts = {str(stage.environment.get("host", "")) for stage in stages.values()}
    lines += [f"PUBLISH: check {line}" for line in personal(work, [entry.path for entry in entries], hosts)]
    return "\n".join([*lines, f"SHA-256 of {MANIFEST}: {digest}"])


def _write_data(data: DataFolder, folder: Path, shards: str, hashed: dict[Path, str]) -> None:
    folder.mkdir(parents=True)
    for name in ("step.json", "lineage.json"):
        if (data.folder / name).is_file():
            shutil.copyfile(data.folder / name, folder / name)
    if data.kind in CORPORA:
        data.manifest = describe(data, shards, hashed)
        write_json(folder / "manifest.json", data.manifest)


def _write_report(plan: _Plan, work: Path) -> tuple[dict[str, Stage], dict[str, dict[str, Any]], list[str]]:
    """Write report.html and summary.json; returns stages by the name of their run, categories of the summary, and what
    to tell."""
    last, first = plan.chain.runs[-1].recipe, plan.chain.runs[0]
    if not any(run.trained for run in plan.chain.runs):
        return {}, {}, ["no report: these weights were not trained"]
    folders = PipelineFolders(
        root=plan.asked.run,
        corpus=Path(last.data.corpus or ABSENT),
        heldout=Path(last.evaluation.corpus or ABSENT),
        packs=Path(last.data.packs or ABSENT),
        stage0=first.folder,
        stages={run.name: run.folder for run in plan.chain.runs if run.trained},
        before=plan.before.folder if plan.before else ABSENT,
        after=plan.heldout.folder if plan.heldout else ABSENT,
    )
    try:
        results: Results = read_results(folders)
    except InputError as error:
        return {}, {}, [f"no report: {error}"]
    summary = summarise(results)
    write_json(work / "summary.json", summary)
    write_text(work / "report.html", render(results, summary))
    return {stage.name: stage for stage in results.stages}, summary["categories"], []


def _tasks(plan: _Plan) -> list[dict[str, Any]]:
    """Results of lmms-eval on the released checkpoint, whole tasks before parts of them."""
    step = f"step_{plan.content['step']:08d}"
    found = [read_json(path) for name, path in plan.texts.items() if f"/{step}/" in name and "lmms_eval/" in name]
    results = [
        result
        for result in found
        if isinstance(result, dict) and {"task", "answered", "failed", "settings"} <= result.keys()
    ]
    return sorted(results, key=lambda result: (bool(result.get("limit")), result["task"]))


def _manifest(plan: _Plan, key: str, facts: Facts) -> dict[str, Any]:
    return {
        "suite": {"version": __version__, "commit": facts.commit, "bundled_with": commit()},
        "run": {"name": plan.chain.runs[-1].name, "folder": shown(plan.asked.run), "id": facts.run_id},
        "checkpoint": {
            "step": plan.content["step"],
            "fingerprint": plan.content["fingerprint"],
            "architecture": plan.content["architecture"]["name"],
        },
        "runs": [
            {
                "name": run.name,
                "folder": shown(run.folder),
                "id": _id(run.folder),
                "stage": run.recipe.stage,
                "checkpoint": run.fingerprint,
                "checkpoint_file": run.checkpoint is not None,
            }
            for run in plan.chain.runs
        ],
        "data": [
            {
                "name": data.name,
                "kind": data.kind,
                "folder": shown(data.folder),
                "fingerprint": data.fingerprint,
                "used": data.used,
            }
            for data in plan.data.folders
        ],
        "not_recorded": [*plan.chain.notes, *plan.data.notes],
        "key": key,
    }


def _id(run: Path) -> str:
    """The id of a run; imported weights have none."""
    return run_id(run) if (run / "run.json").exists() else ""


def _refuse_foreign(output: Path) -> None:
    """Refuse to replace what is no bundle.

    Raises:
        InputError: it is something else.
    """
    check_name(output)
    if output.is_dir():
        manifest = output / MANIFEST
        known = read_json(manifest) if manifest.is_file() else None
        if not any(output.iterdir()) or (isinstance(known, dict) and known.get("format") == FORMAT):
            return
    elif not output.exists():
        return
    raise InputError(
        f"{output} holds something else than a release, and would be replaced: name another folder with to="
    )


def _added(output: Path) -> list[str]:
    """What in the folder of an earlier bundle a person has put there, or has changed, such as the card. Weights are not
    read for that: nobody edits them.

    Raises:
        InputError: its manifest cannot be read.
    """
    if not (output / MANIFEST).exists():
        return []
    try:
        _, entries, _ = read_manifest(output)
    except DataError as error:
        raise InputError(f"{output} would be replaced, and cannot be read: {error}: name another folder") from None
    found = walk(output)
    listed = {entry.path: entry.sha256 for entry in entries}
    names = [name for name in found.sizes if name not in (MANIFEST, SUMS)]
    kept = [name for name in names if name in listed and name.endswith(".safetensors")]
    return [name for name in names if name not in kept and listed.get(name) != sha256(output / name)] + found.problems


def _unchanged(output: Path, key: str) -> str | None:
    """SHA-256 of the manifest of a bundle of the same input whose files have their sizes; None for any other."""
    if not (output / MANIFEST).is_file() or not (output / SUMS).is_file():
        return None
    try:
        content, entries, problems = read_manifest(output)
    except DataError:
        return None
    found = walk(output)
    listed = {entry.path: entry.bytes for entry in entries}
    sizes = {name: size for name, size in found.sizes.items() if name not in (MANIFEST, SUMS)}
    if content.get("key") != key or sizes != listed or found.problems or problems:
        return None
    return sha256(output / MANIFEST)
