"""The release jobs: a run's checkpoint with all that others need to rerun and check it, and the check."""

from __future__ import annotations

from pathlib import Path

from jobs.arguments import parse, run_recipe
from jobs.cluster import Work
from jobs.convert import PARITY, export_here
from jobs.numbers import whole
from jobs.place import place_of, start
from jobs.ranks import quiet
from onevision.errors import InputError
from onevision.recipe import Recipe
from onevision.release.data import SHARDS

SETTINGS = ("step", "to", "shards", "parity", "license")


def run(arguments: list[str]) -> int:
    """python -m jobs release RUN [step=N] [to=DIR] [shards=auto|yes|no] [parity=auto|yes|no] [license=ID] [key=value …]

    Makes the bundle of the newest checkpoint of a run, or that of `step`: weights (an export that is there already is
    taken if it is of this checkpoint), recipes, lineage, data manifests, logs, evaluations, report and model card, with
    a SHA-256 of every file; default RUN/release. `shards` says whether the tar files of the data are read for their
    SHA-256 (auto: up to 10 GB), `license` is the Hugging Face id of the weights' licence, which only a person knows.
    """
    folder, overrides, own = parse(arguments, "release", "run folder", SETTINGS)
    recipe = run_recipe(folder, overrides)
    step = whole(own["step"]) if "step" in own else None
    if "step" in own and step is None:
        raise InputError(f"step={own['step']} is not a number")
    for key, choices in (("shards", SHARDS), ("parity", PARITY)):
        if own.get(key, choices[0]) not in choices:
            raise InputError(f"{key}={own[key]} is not one of {', '.join(choices)}")
    output = Path(own.get("to") or folder / "release")
    arguments_here = (recipe, folder, step, output, own.get("shards", "auto"), own.get("parity", "auto"))
    work = Work("release", release_here, (*arguments_here, own.get("license", "")), log_folder=folder / "log")
    return start(work, place_of(own), print)


def release_here(
    recipe: Recipe, run: Path, step: int | None, output: Path, shards: str, parity: str, licence: str
) -> str:
    """The release job itself; returns what to tell of it."""
    quiet()
    from onevision.release.bundle import Asked, build_release

    def export(checkpoint: int, folder: Path) -> None:
        export_here(recipe, run, checkpoint, folder, parity)

    made = build_release(Asked(recipe, run, step, shards, licence), output, export)
    return made.told


def run_verify(arguments: list[str]) -> int:
    """python -m jobs verify-release DIR

    Compares a bundle with its manifest: exit code 3 with a line for each file that is missing, changed or additional,
    each link, each name that leaves the folder, and each record that contradicts another one.
    """
    if len(arguments) != 1 or "=" in arguments[0]:
        raise InputError(f"verify-release takes the folder of one bundle, not {' '.join(arguments) or 'none'}")
    from onevision.release.verify import verify_release

    found = verify_release(arguments[0])
    rate = found.bytes / 1e6 / max(found.seconds, 1e-9)
    print(f"{arguments[0]}: {found.files:,} files, {found.bytes:,} bytes, whole ({rate:,.0f} MB/s)")
    print(f"SHA-256 of manifest.json: {found.manifest}")
    return 0
