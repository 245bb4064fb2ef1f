"""The plan on a terminal, fitted to its width; elsewhere every line is whole."""

from __future__ import annotations

import textwrap

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
_UNLIMITED = 10_000  # columns
_NAMES = 17  # columns of what a line is about, below which its words go on


def print_plan(plan: Plan, found: Check, console: Console, rows: int) -> None:
    """The table of the best `rows` layouts, the best one by parts, what matters most, the check."""
    packs, best = plan.packs, plan.ranked[0]
    if not console.is_terminal:
        console.width = _UNLIMITED
    _line(
        console,
        f"{plan.recipe.model.preset} on {plan.gpus} x {plan.gpu.name}, {plan.recipe.train.global_batch_size} packs a "
        f"step: {packs.length:,} slots, {packs.samples:.1f} samples of {packs.sample_tokens:.0f} tokens and "
        f"{packs.sample_patches:.0f} patches each, {packs.fill:.1%} full",
    )
    _line(console, "everything here is predicted; what no source is named for is assumed (see below)")
    console.print(_table(plan, rows, console.width))
    _line(console, f"{len(plan.ranked)} layouts fit; seconds of parts are of the slowest stage. Left out:")
    for reason, count in plan.refused.items():
        _line(console, f"  {count:>5}  {reason}", 9)
    console.print()
    _line(console, f"the first: {_name(best)}; 85M samples in {plan.days(best):.2f} days")
    for line in [*best.lines(), *best.memory.lines()]:
        _line(console, f"  {line}", _NAMES)
    most = plan.sensitivities[0]
    console.print()
    _line(
        console,
        f"what matters most: {most.name}. Step time of the first when one assumption alone is 20 % lower / higher:",
    )
    for one in plan.sensitivities:
        value = f"{one.value:g} {one.unit}"
        _line(console, f"  {one.name:<17}{value:<15}{one.lower:+7.1%} {one.higher:+7.1%}  {one.source}", _NAMES)
    console.print("\ncheck: the published stage 1.5 of 8B on 128 x A800")
    for line in arithmetic(found):
        _line(console, f"  {line}", _NAMES)


def _line(console: Console, text: str, indent: int = 0) -> None:
    """Print a line, which goes on below column `indent` where the terminal ends."""
    width = max(console.width, 2 * _NAMES)
    lines = textwrap.wrap(text, width, subsequent_indent=" " * indent, break_on_hyphens=False)
    console.print("\n".join(lines), soft_wrap=True, markup=False)


def _table(plan: Plan, rows: int, width: int) -> Table:
    """The widest table that fits."""
    for columns, rates in ((_PARTS, True), (_FEWER_PARTS, False), ({}, False)):
        table = _with_parts(plan, rows, columns, rates)
        if Console(width=_UNLIMITED).measure(table).maximum <= width:
            break
    return table


def _with_parts(plan: Plan, rows: int, columns: dict[str, tuple[str, ...]], rates: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    names = ("TP", "PP", "VP", "CP", "micro", "recompute", "GB", "step s", *columns)
    for name in ("", *names, *(("tok/s/GPU", "MFU", "HFU") if rates else ())):
        table.add_column(name, justify="left" if name == "recompute" else "right", overflow="fold")
    for number, one in enumerate(plan.ranked[:rows], 1):
        layout, parts = one.layout, one.parts
        reached = (f"{one.tokens_per_gpu:,.0f}", f"{one.mfu:.1%}", f"{one.hfu:.1%}") if rates else ()
        table.add_row(
            *map(str, (number, layout.tensor, layout.pipeline, layout.virtual_pipeline, layout.context)),
            *map(str, (layout.micro_batch, layout.recompute)),
            f"{one.memory.total / 1e9:.1f}",
            f"{one.seconds:.3f}",
            *(_seconds(sum(parts[part] for part in summed)) for summed in columns.values()),
            *reached,
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
