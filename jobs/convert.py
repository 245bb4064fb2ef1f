"""The conversion jobs: Hugging Face directories to a stage-0 checkpoint, and any checkpoint to such a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs.arguments import parse, run_recipe
from jobs.cluster import Work
from jobs.numbers import whole
from jobs.place import place_of, start
from jobs.ranks import ready_model
from onevision.errors import DataError, InputError
from onevision.files import read_json
from onevision.recipe import Recipe, load_recipe

SOURCES = ("language", "vision", "exported")  # settings that name where weights come from
PARITY = ("auto", "yes", "no")
QUICK = 10**9  # parameters of a model that is compared without being asked: seconds, and 4 GB


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
    return start(work, place_of(own), lambda summary: print(f"{recipe.output}: {summary_line(summary)}"))


def run_export(arguments: list[str]) -> int:
    """python -m jobs export RUN [step=N] [to=DIR] [parity=auto|yes|no] [key=value ...]

    Writes the newest checkpoint of a run, or that of `step`, as a Hugging Face directory; default RUN/export. Then it
    compares the logits of that directory with those of the checkpoint in every loader that is installed, and leaves
    parity.json and parity.txt there: with `parity=auto` for models below a billion parameters only.
    """
    run, overrides, own = parse(arguments, "export", "run folder", ("step", "to", "parity"))
    recipe = run_recipe(run, overrides)
    step = whole(own["step"]) if "step" in own else None
    if "step" in own and step is None:
        raise InputError(f"step={own['step']} is not a number")
    output, parity = Path(own.get("to", run / "export")), own.get("parity", "auto")
    if parity not in PARITY:
        raise InputError(f"parity={parity} is not one of {', '.join(PARITY)}")
    work = export_work(recipe, run, step, output, parity)
    return start(work, place_of(own), lambda told: print(f"{output}: {told}"))


def import_work(recipe: Recipe, sources: dict[str, str]) -> Work:
    """The import job: `sources` has language and vision, or exported. It logs beside the run, whose folder it makes."""
    return Work("import", import_here, (recipe, sources), log_folder=Path(recipe.output).parent / "log")


def export_work(recipe: Recipe, run: Path, step: int | None, output: Path, parity: str = "auto") -> Work:
    """The export job of a run folder."""
    return Work("export", export_here, (recipe, run, step, output, parity), log_folder=run / "log")


def import_here(recipe: Recipe, sources: dict[str, str]) -> dict[str, Any]:
    """The import job itself."""
    ready_model()
    from onevision.convert.importing import import_exported, import_pretrained

    if "exported" in sources:
        return import_exported(sources["exported"], recipe.output, recipe).summary
    return import_pretrained(sources["language"], sources["vision"], recipe.output, recipe).summary


def export_here(recipe: Recipe, run: Path, step: int | None, output: Path, parity: str = "auto") -> str:
    """The export job itself; returns what to tell of it."""
    ready_model()
    from onevision.convert.exporting import export
    from onevision.training.checkpoint_files import step_folder

    source = run if step is None else step_folder(run, step)
    made = export(source, recipe.data, output)
    summary, told = made.summary, summary_line(made.summary)
    found = output / "parity.json"  # of this very export: a new one takes the folder's place
    if made.skipped and parity == "auto" and found.exists() and read_json(found)["met"]:
        return f"{told}\n{(output / 'parity.txt').read_text(encoding='utf-8')}"
    if parity == "no" or (parity == "auto" and summary["parameters"] > QUICK):
        return f"{told}\nnot compared with the checkpoint in any loader; parity=yes does that"
    from onevision.convert.parity import check_parity, table

    report = check_parity(step_folder(run, summary["step"]), output, recipe.train.threads)
    if not report["met"]:
        raise DataError(f"{output}: other logits than the checkpoint's, see {output / 'parity.txt'}")
    return f"{told}\n{table(report)}"


def summary_line(summary: dict[str, Any]) -> str:
    """The summary of an import or export as a line."""
    parts = [f"step {summary['step']}"] if "step" in summary else []
    parts += [f"{summary['architecture']}, {summary['parameters']:,} parameters"]
    parts += [f"{summary['tensors']} tensors", f"{summary['bytes']:,} bytes"]
    parts += [f"{summary['dtype']}, shards: {summary['shards']}"] if "shards" in summary else []
    return ", ".join(parts)
