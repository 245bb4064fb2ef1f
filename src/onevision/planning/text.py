"""The plan on a terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from onevision.planning.by_hand import arithmetic
from onevision.planning.model import Prediction
from onevision.planning.plan import Plan
from onevision.planning.published import Check

_PARTS = {
    "GEMM": ("products",),
    "attn": ("attention",),
    "vision": ("vision",),
    "elem.": ("element-wise",),
    "TP, CP, PP": ("tensor", "context", "pipeline"),
    "bubble": ("bubble",),
    "DP": ("data-parallel",),
    "adam": ("optimizer",),
    "wait": ("waiting",),
    "data": ("data",),
}
_FEWER_PARTS = {  # for a narrow terminal
    "compute": ("products", "attention", "vision", "element-wise", "optimizer"),
    "comm.": ("tensor", "context", "pipeline", "data-parallel"),
    "idle": ("bubble", "waiting", "data"),
}
_WIDE = 150  # columns of a terminal that all parts need


def print_plan(plan: Plan, found: Check, console: Console, rows: int) -> None:
    """The table of the best `rows` layouts, the best one by parts, what matters most, the check."""
    packs, best = plan.packs, plan.ranked[0]
    console.print(
        f"{plan.recipe.model.preset} on {plan.gpus} x {plan.gpu.name}, {plan.recipe.train.global_batch_size} packs a "
        f"step: {packs.length:,} slots, {packs.samples:.1f} samples of {packs.sample_tokens:.0f} tokens and "
        f"{packs.sample_patches:.0f} patches each, {packs.fill:.1%} full"
    )
    console.print("everything here is predicted; what no source is named for is assumed (see below)")
    console.print(_table(plan, rows, console.width >= _WIDE))
    console.print(f"{len(plan.ranked)} layouts fit; seconds of parts are of the slowest stage. Left out:")
    for reason, count in plan.refused.items():
        console.print(f"  {count:>5}  {reason}")
    console.print(f"\nthe first: {_name(best)}; 85M samples in {plan.days(best):.2f} days")
    for line in [*best.lines(), *best.memory.lines()]:
        console.print(f"  {line}")
    most = plan.sensitivities[0]
    console.print(
        f"\nwhat matters most: {most.name}. Step time of the first when one assumption alone is 20 % lower / higher:"
    )
    for one in plan.sensitivities:
        value = f"{one.value:g} {one.unit}"
        console.print(f"  {one.name:<17}{value:<15}{one.lower:+7.1%} {one.higher:+7.1%}  {one.source}")
    console.print("\ncheck: the published stage 1.5 of 8B on 128 x A800")
    for line in arithmetic(found):
        console.print(f"  {line}")


def _table(plan: Plan, rows: int, wide: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    columns, rates = (_PARTS, ("tok/s/GPU", "MFU", "HFU")) if wide else (_FEWER_PARTS, ())
    for name in ("", "TP", "PP", "VP", "CP", "micro", "recompute", "GB", "step s", *columns, *rates):
        table.add_column(name, justify="left" if name == "recompute" else "right", no_wrap=True)
    for number, one in enumerate(plan.ranked[:rows], 1):
        layout, parts = one.layout, one.parts
        reached = {"tok/s/GPU": f"{one.tokens_per_gpu:,.0f}", "MFU": f"{one.mfu:.1%}", "HFU": f"{one.hfu:.1%}"}
        table.add_row(
            *map(str, (number, layout.tensor, layout.pipeline, layout.virtual_pipeline, layout.context)),
            *map(str, (layout.micro_batch, layout.recompute)),
            f"{one.memory.total / 1e9:.1f}",
            f"{one.seconds:.3f}",
            *(_seconds(sum(parts[part] for part in summed)) for summed in columns.values()),
            *(reached[rate] for rate in rates),
        )
    return table


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds else "-"


def _name(one: Prediction) -> str:
    layout = one.layout
    return (
        f"TP {layout.tensor}, PP {layout.pipeline}, VP {layout.virtual_pipeline}, CP {layout.context}, micro-batch "
        f"{layout.micro_batch}, recompute {layout.recompute}"
    )
