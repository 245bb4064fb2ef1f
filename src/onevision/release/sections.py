"""The sections of a model card on training and on what it ran on, from the files of the runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from onevision.model.presets import PATCH_SIZE, SPATIAL_MERGE_SIZE
from onevision.progress import duration
from onevision.release.card import NOT_RECORDED, cell, code, count_of, table
from onevision.release.chain import ChainRun
from onevision.report.charts import percent
from onevision.report.curves import trained_parts
from onevision.report.results import Stage
from onevision.report.summary import stage_summary, total
from onevision.training.bad_steps import read_bad_steps

SHOWN_BAD_STEPS = 20


@dataclass(frozen=True)
class Trained:
    """A run that was trained; `stage` has its rows up to the checkpoint that is used of it, None where it left none."""

    run: ChainRun
    stage: Stage | None

    @property
    def parts(self) -> dict[str, Any]:
        """environment.json."""
        return self.stage.environment if self.stage else {}


def architecture_table(content: dict[str, Any], record: dict[str, Any]) -> str:
    """Sizes of the model: of checkpoint.json and of the export's step.json."""
    model, summary, inputs = content["architecture"], record["summary"], record["inputs"]
    vision, language = model["vision"], model["language"]
    patch = PATCH_SIZE * SPATIAL_MERGE_SIZE
    rows = [
        ("Preset", cell(model["name"])),
        ("Parameters", f"{summary['parameters']:,}"),
        (
            "Weights",
            f"{cell(summary['dtype'])}, {summary['bytes']:,} bytes in {count_of(summary['shards'], 'file')}",
        ),
        (
            "Vision tower (RICE-ViT)",
            f"{vision['num_layers']} layers, width {vision['hidden_size']:,}, MLP {vision['ffn_hidden_size']:,}, "
            f"{vision['num_attention_heads']} heads, patches of {PATCH_SIZE} x {PATCH_SIZE} pixels",
        ),
        (
            "Adapter",
            f"{SPATIAL_MERGE_SIZE} x {SPATIAL_MERGE_SIZE} patches to a token: a token for {patch} x {patch} pixels",
        ),
        (
            "Language model (Qwen3)",
            f"{language['num_layers']} layers, width {language['hidden_size']:,}, MLP {language['ffn_hidden_size']:,}, "
            f"{language['num_attention_heads']} heads in {language['num_query_groups']} groups, {language['head_dim']} "
            f"channels a head, {language['vocab_size']:,} tokens, rotary base {language['rotary_base']:,.0f}, "
            f"{language['max_position_embeddings']:,} positions",
        ),
        ("Pixels of an image", f"{inputs['min_pixels']:,} to {inputs['max_pixels']:,}; others are resized"),
    ]
    return table(("", ""), rows, left=2)


def recipe_table(trained: Sequence[Trained]) -> str:
    """A column a run: what its recipe asked for, and what its metrics say came of it."""
    rows: list[tuple[str, Callable[[Trained], str]]] = [
        ("Recipe", lambda one: code(f"runs/{one.run.name}/recipe.yaml")),
        ("Stage", lambda one: cell(one.run.recipe.stage)),
        ("Trained", lambda one: cell(trained_parts(one.run.recipe))),
        ("Steps", _steps),
        ("Packs a step", lambda one: f"{one.run.recipe.train.global_batch_size:,}"),
        ("Tokens a pack, at most", lambda one: f"{one.run.recipe.data.sequence_length:,}"),
        ("Samples read", lambda one: _sum(one, "samples")),
        ("Tokens read", lambda one: _sum(one, "tokens")),
        ("Tokens learned from", lambda one: _sum(one, "target_tokens")),
        ("Epochs", _epochs),
        ("Learning rate", _learning_rate),
        ("AdamW", _adam),
        ("Precision", lambda one: cell(_facts(one, "precision") or one.run.recipe.train.precision)),
        ("Layout", _layout),
        ("Seed", lambda one: f"{one.run.recipe.seed}"),
        ("Loss, first step", lambda one: _row(one, lambda rows: f"{rows[0]['loss']:.4f}")),
        ("Loss, last step", lambda one: _row(one, lambda rows: f"{rows[-1]['loss']:.4f}")),
        ("Time", lambda one: _measured(one, lambda found: duration(found["seconds"]))),
        ("Tokens/s", lambda one: _measured(one, lambda found: f"{found['tokens_per_second']:,.0f}")),
        ("MFU", lambda one: _measured(one, lambda found: percent(found["mfu"], 1))),
        ("Samples skipped as damaged", lambda one: _measured(one, lambda found: f"{found['skipped']:,}")),
        ("Bad steps", lambda one: f"{len(_bad(one)):,}"),
        ("Continued after step", lambda one: _measured(one, lambda found: f"{found['resumed'] or '–'}")),
    ]
    columns = ("", *(cell(one.run.name) for one in trained))
    return table(columns, [(label, *(value(one) for one in trained)) for label, value in rows])


def _rows(one: Trained) -> list[dict[str, Any]]:
    return one.stage.rows if one.stage else []


def _row(one: Trained, value: Callable[[list[dict[str, Any]]], str]) -> str:
    return value(_rows(one)) if _rows(one) else NOT_RECORDED


def _measured(one: Trained, value: Callable[[dict[str, Any]], str]) -> str:
    return value(stage_summary(one.stage)) if one.stage else NOT_RECORDED


def _steps(one: Trained) -> str:
    planned = one.run.recipe.train.steps
    if one.run.steps is None:
        return f"{NOT_RECORDED}, {planned:,} planned"
    return f"{one.run.steps:,}" if one.run.steps == planned else f"{one.run.steps:,} of {planned:,} planned"


def _sum(one: Trained, key: str) -> str:
    if one.run.recipe.train.log_interval != 1 or _bad(one):  # rows are missing, or tell of the step before
        return NOT_RECORDED
    return _row(one, lambda rows: f"{total(rows, key):,}")


def _epochs(one: Trained) -> str:
    def told(rows: list[dict[str, Any]]) -> str:
        return ", ".join(
            f"{epochs:.2f}" for epochs in rows[-1].get("epoch_by_source", {"": rows[-1]["epoch"]}).values()
        )

    return _row(one, told)


def _learning_rate(one: Trained) -> str:
    optimizer = one.run.recipe.optimizer
    warmup = percent(optimizer.warmup_fraction, 1)
    return f"{optimizer.lr:g} to {optimizer.min_lr:g}, cosine, warm-up {warmup} of the steps"


def _adam(one: Trained) -> str:
    optimizer = one.run.recipe.optimizer
    return (
        f"betas {optimizer.beta1:g}, {optimizer.beta2:g}, eps {optimizer.eps:g}, decay {optimizer.weight_decay:g}, "
        f"gradients clipped at {optimizer.clip_grad:g}"
    )


def _facts(one: Trained, name: str) -> str:
    """What environment.json says of how it trained, such as `precision: BF16`."""
    facts = [str(fact) for fact in one.parts.get("training", [])]
    return next((fact.removeprefix(f"{name}: ") for fact in facts if fact.startswith(f"{name}: ")), "")


def _layout(one: Trained) -> str:
    parallel, ranks = one.run.recipe.parallel, one.parts.get("world_size")
    if not ranks:
        return NOT_RECORDED
    return (
        f"{count_of(ranks, 'rank')}: tensor {parallel.tensor}, context {parallel.context}, "
        f"pipeline {parallel.pipeline}, data {ranks // parallel.model_ranks}"
    )


def _bad(one: Trained) -> list[dict[str, Any]]:
    steps = one.run.steps
    return [row for row in read_bad_steps(one.run.folder) if steps is None or row["step"] <= steps]


def bad_steps_text(trained: Sequence[Trained]) -> str:
    """The bad steps of all runs."""
    rows = [(one.run.name, row) for one in trained for row in _bad(one)]
    if not trained:
        return ""
    if not rows:
        return "No step was bad: no loss or gradient that is no number, and no spike where `train.spike_factor` is set."
    cells = [
        (cell(name), f"{row['step']:,}", cell(row.get("what")), cell(row.get("value")), cell(row["action"]))
        for name, row in rows[:SHOWN_BAD_STEPS]
    ]
    more = f"\n\nAnd {len(rows) - SHOWN_BAD_STEPS:,} more, in `bad_steps.jsonl`." if rows[SHOWN_BAD_STEPS:] else ""
    return (
        "Bad steps, with their samples in `bad_steps.jsonl`:\n\n"
        + table(("run", "step", "what", "value", "done"), cells)
        + more
    )


def start_text(first: ChainRun, record: dict[str, Any] | None, complete: bool) -> str:
    """What the first run of the chain began with; `record` is its step.json, `complete` whether nothing came before."""
    name = code(f"runs/{first.name}")
    if not complete:
        return f"The weights that {name} started from: {NOT_RECORDED} (see Limitations)."
    if record and record.get("step") == "import":
        sources = ", ".join(record["inputs"]["sources"])
        return (
            f"Start: weights imported from folders in the layout of Hugging Face ({cell(sources)}); digests of their "
            f"files are in `runs/{first.name}/step.json`. From where those came: {NOT_RECORDED}."
        )
    return f"Start: random weights, drawn from seed {first.recipe.seed} ({name})."


def environment_table(trained: Sequence[Trained]) -> str:
    """A column a run: hardware, versions, commit. Of the last start of each."""
    if not any(one.parts for one in trained):
        return f"Hardware and versions of the training: {NOT_RECORDED}."
    rows: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
        ("Device", lambda found: f"{found['world_size']} x {found['device']}" if "device" in found else None),
        ("Processor", lambda found: found.get("processor")),
        ("Cores, memory", lambda found: f"{found['cores']}, {found['memory_gb']} GB" if "cores" in found else None),
        ("System", lambda found: found.get("system")),
        (
            "Peak for MFU",
            lambda found: (
                f"{found['peak_tflops']:g} TFLOP/s, {found['peak_source']}" if "peak_tflops" in found else None
            ),
        ),
        ("Commit of the suite", lambda found: found.get("commit")),
        ("Python", lambda found: found.get("python")),
    ]
    packages = sorted({name for one in trained for name in one.parts.get("packages", {})})
    lines = [(label, *(cell(value(one.parts)) for one in trained)) for label, value in rows]
    lines += [(cell(name), *(cell(one.parts.get("packages", {}).get(name)) for one in trained)) for name in packages]
    return table(("", *(cell(one.run.name) for one in trained)), lines)
