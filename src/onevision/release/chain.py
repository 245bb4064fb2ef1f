"""The runs that a checkpoint came from: it, the run whose weights it started with, and so on to stage 0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onevision.errors import DataError, InputError
from onevision.files import read_json
from onevision.recipe import Recipe, load_recipe
from onevision.training.checkpoint_files import STEP_NAME, checkpoint_steps, step_folder, verify_sizes


@dataclass(frozen=True)
class ChainRun:
    """A run of the chain. `content` is checkpoint.json of the checkpoint that is used of it: released, or what the next
    run started from; None where only its fingerprint is left."""

    name: str  # of its folder in the bundle, below runs/
    folder: Path
    recipe: Recipe
    fingerprint: str  # of that checkpoint
    checkpoint: Path | None
    content: dict[str, Any] | None

    @property
    def steps(self) -> int | None:
        """The step of that checkpoint; None where it is not known."""
        return None if self.content is None else int(self.content["step"])

    @property
    def trained(self) -> bool:
        """Whether it was trained; else its weights were imported or drawn."""
        return self.recipe.stage != "stage0"


@dataclass(frozen=True)
class Chain:
    """The runs, the first one first, and a line for each that could not be followed."""

    runs: list[ChainRun]
    notes: list[str]


def follow(run: Path, recipe: Recipe, checkpoint: Path, content: dict[str, Any]) -> Chain:
    """Follow `train.init_from` from the run of a checkpoint back to the start.

    A folder counts only if it still is the run that the weights came from: by its checkpoint, or by its lineage.

    Raises:
        InputError: the recipe of a run cannot be read.
    """
    found: list[tuple[Path, Recipe, str, Path | None, dict[str, Any] | None]]
    found = [(run, recipe, content["fingerprint"], checkpoint, content)]
    notes: list[str] = []
    while start := found[-1][1].train.init_from:
        child, recipe, *_ = found[-1]
        lineage = read_lineage(child)
        fingerprint = str(lineage.get("inputs", {}).get("init_from", ""))
        parent = Path(start)
        if STEP_NAME.fullmatch(parent.name):
            parent = parent.parent.parent
        what = f"{shown(child)} started from {shown(parent)} (checkpoint {fingerprint or 'of unknown fingerprint'})"
        if any(parent.resolve() == before.resolve() for before, *_ in found):
            notes.append(f"{what}, a run that itself came from it: not followed")
            break
        if not (parent / "recipe.yaml").exists():
            notes.append(f"{what}, which is not there any more: its recipe and logs are not recorded")
            break
        used, used_content = _checkpoint(parent, fingerprint)
        known = lineage.get("made_from", {}).get("init_from", {}).get("lineage.json")
        if used_content is None:
            if known is None or known.get("fingerprint") != read_lineage(parent).get("fingerprint"):
                notes.append(
                    f"{what}, where another run or checkpoint stands now: its recipe and logs are not recorded"
                )
                break
            notes.append(f"{what}, which does not keep that checkpoint any more")
        found.append((parent, load_recipe(parent / "recipe.yaml"), fingerprint, used, used_content))
    names: list[str] = []
    for folder, *_ in reversed(found):
        name = folder.resolve().name
        names.append(name if name not in names else f"{name}-{len(names)}")
    return Chain([ChainRun(name, *rest) for name, rest in zip(names, reversed(found), strict=True)], notes)


def read_lineage(run: Path) -> dict[str, Any]:
    """lineage.json of a run; empty where it has none, as imported weights."""
    path = run / "lineage.json"
    lineage = read_json(path) if path.exists() else {}
    if not isinstance(lineage, dict):
        raise InputError(f"{path} was altered: it holds no object")
    return lineage


def shown(path: Path) -> str:
    """A path as a bundle names it: relative to the working folder if it lies there."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _checkpoint(run: Path, fingerprint: str) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint of a run with this fingerprint, if it is there and whole."""
    for step in reversed(checkpoint_steps(run)):
        folder = step_folder(run, step)
        try:
            content = verify_sizes(folder)
        except DataError:
            continue
        if content["fingerprint"] == fingerprint:
            return folder, content
    return None, None
