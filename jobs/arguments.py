"""The arguments of the jobs: a recipe file or a run folder, then key=value settings."""

from __future__ import annotations

import difflib
from pathlib import Path

from jobs.place import SETTINGS, Place, place_of
from jobs.status import all_folders
from onevision.errors import InputError
from onevision.recipe import Recipe, known_keys, load_recipe


def parse(
    arguments: list[str], job: str, what: str, own: tuple[str, ...] = ()
) -> tuple[Path, list[str], dict[str, str]]:
    """The one path, the recipe overrides, and the settings that are not the recipe's: the job's `own` ones and those
    that say where it runs.

    Raises:
        InputError: there is not exactly one path, or a setting is nearly one of the job's.
    """
    paths = [argument for argument in arguments if "=" not in argument]
    if len(paths) != 1:
        raise InputError(f"{job} takes one {what} and key=value settings, not {' '.join(paths) or 'none'}")
    settings = [argument for argument in arguments if "=" in argument]
    names = (*own, *SETTINGS)
    mine = {key: value for key, _, value in (setting.partition("=") for setting in settings) if key in names}
    overrides = [setting for setting in settings if setting.partition("=")[0] not in names]
    for override in overrides:  # the recipe knows only its own keys, and would name one of those
        key = override.partition("=")[0]
        if key not in known_keys() and (near := difflib.get_close_matches(key, names, n=1, cutoff=0.7)):
            raise InputError(f"override {override!r}: unknown key {key!r}; the nearest is {near[0]!r}")
    return Path(paths[0]), overrides, mine


def recipe_of(arguments: list[str], job: str) -> tuple[Recipe, Place]:
    """The recipe file that a job is started with, and where it runs.

    Raises:
        InputError: there is not exactly one, or it is wrong.
    """
    path, overrides, own = parse(arguments, job, "recipe file")
    return load_recipe(path, overrides), place_of(own)


def run_recipe(run: Path, overrides: list[str]) -> Recipe:
    """The recipe of a run folder.

    Raises:
        InputError: it is not a run folder, or an override is wrong.
    """
    if not (run / "recipe.yaml").exists():
        raise InputError(f"{run} is not a run folder: it has no recipe.yaml; {all_folders()}")
    return load_recipe(run / "recipe.yaml", overrides)
