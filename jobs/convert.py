"""The conversion jobs: Hugging Face directories to a stage-0 checkpoint, and any checkpoint to such a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.arguments import parse, run_recipe
from jobs.cluster import Work
from jobs.numbers import whole
from jobs.place import place_of, start
from jobs.ranks import ready_model
from onevision.errors import InputError
from onevision.recipe import Recipe, load_recipe

SOURCES = ("language", "vision", "exported")  # settings that name where weights come from


def run_import(arguments: list[str]) -> int:
    """python -m jobs import RECIPE.yaml language=DIR vision=DIR [key=value ...]
    python -m jobs import RECIPE.yaml exported=DIR [key=value ...]

    Makes the recipe's stage-0 checkpoint of a Qwen3 directory and a RICE-ViT directory (the adapter is drawn from the
    seed), or of an exported LLaVA-OneVision-1.5 directory.
    """
    path, overrides, own = parse(arguments, "import", "recipe file", SOURCES)
    recipe = load_recipe(path, overrides)
    sources = {key: own[key] for key in SOURCES if key in own}
    if set(sources) not in ({"language", "vision"}, {"exported"}):
        raise InputError("import needs language=DIR (Qwen3) and vision=DIR (RICE-ViT), or exported=DIR alone")
    work = import_work(recipe, sources)
    return start(work, place_of(own), lambda summary: print(f"{recipe.output}: {summary}"))


def run_export(arguments: list[str]) -> int:
    """python -m jobs export RUN [step=N] [to=DIR] [key=value ...]

    Writes the newest checkpoint of a run, or that of `step`, as a Hugging Face directory; default RUN/export.
    """
    run, overrides, own = parse(arguments, "export", "run folder", ("step", "to"))
    recipe = run_recipe(run, overrides)
    step = whole(own["step"]) if "step" in own else None
    if "step" in own and step is None:
        raise InputError(f"step={own['step']} is not a number")
    output = Path(own.get("to", run / "export"))
    work = export_work(recipe, run, step, output)
    return start(work, place_of(own), lambda summary: print(f"{output}: {summary}"))


def import_work(recipe: Recipe, sources: dict[str, str]) -> Work:
    """The import job: `sources` has language and vision, or exported."""
    return Work("import", import_here, (recipe, sources), log_folder=Path(recipe.output) / "log")


def export_work(recipe: Recipe, run: Path, step: int | None, output: Path) -> Work:
    """The export job of a run folder."""
    return Work("export", export_here, (recipe, run, step, output), log_folder=run / "log")


def import_here(recipe: Recipe, sources: dict[str, str]) -> dict[str, Any]:
    """The import job itself."""
    ready_model()
    from onevision.convert.importing import import_exported, import_pretrained

    if "exported" in sources:
        return import_exported(sources["exported"], recipe.output, recipe).summary
    return import_pretrained(sources["language"], sources["vision"], recipe.output, recipe).summary


def export_here(recipe: Recipe, run: Path, step: int | None, output: Path) -> dict[str, Any]:
    """The export job itself."""
    ready_model()
    from onevision.convert.exporting import export
    from onevision.training.checkpoint_files import step_folder

    return export(run if step is None else step_folder(run, step), recipe.data, output).summary
