"""A table of what every run and every queued job is doing. jobs/facts.py reads, jobs/judge.py judges, this shows.

It reads JSON only and asks each Slurm at most twice (squeue, sacct), so that it answers at once with many runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.facts import ROOTS, Answers, ask, elsewhere, find
from jobs.judge import Row, bad_nodes, judge
from onevision.errors import InputError

_STYLES = {
    "running": "green",
    "finished": "dim",
    "queued": "yellow",
    "restarting": "yellow",
    "failed": "bold red",
    "lost node": "bold red",
    "gone": "bold red",
    "cancelled": "red",
}
_UNLIMITED = 10_000  # columns


def run(arguments: list[str]) -> int:
    """python -m jobs status [RUN ...]

    A table of the runs and jobs in the given folders, or of all in runs/ and data/: state and why it waits, nodes, step,
    loss and tokens/s of the last step, ETA, restarts and the steps they did again. Whole messages of what went wrong, and
    the nodes that are left out, stand below it.
    """
    console = Console(highlight=False)
    facts = []
    for name in arguments or ROOTS:
        found = find(Path(name))
        if arguments and not found:
            raise InputError(nothing_in(Path(name)))
        facts += found
    if not facts:
        print("no runs yet: `make demo` makes the first ones")
        return 0
    answers = Answers()
    with console.status("asking Slurm") if console.is_terminal else nullcontext():
        ask(facts, answers)
    if not arguments:
        facts += elsewhere(facts, answers)
    rows = judge(facts, answers, datetime.now())
    show(console, rows, bad_nodes(facts, rows), answers)
    return 0


def show(console: Console, rows: Sequence[Row], left_out: dict[str, str], answers: Answers) -> None:
    """Print the table and what belongs to it. A terminal too narrow for all columns has nodes and restarts below the
    state; where the output is no terminal each row is one line, however long."""
    for why in answers.unreachable.values():
        _line(console, f"Slurm does not answer, what follows is from the folders alone ({why})", "yellow")
    for why in answers.unaccounted.values():
        _line(console, f"no accounting: how jobs ended that left no word is not known ({why})", "yellow")
    width = console.width if console.is_terminal else _UNLIMITED
    table = _wide(rows)
    natural = Console(width=_UNLIMITED).measure(table).maximum
    if natural > width:
        table = _narrow(rows)
    elif not console.is_terminal:
        console.width = max(natural, console.width)
    console.print(table)
    for row in rows:
        if row.message:
            _line(console, f"{row.label}: {row.message}")
    for node, reason in left_out.items():
        _line(console, f"{node}: {reason}")


def _wide(rows: Sequence[Row]) -> Table:
    cells = [[_label(row), _state(row), *map(Text, _figures(row)), *map(Text, (row.restarts, row.nodes))] for row in rows]
    columns = ["run", "state", "step", "loss", "tokens/s", "ETA", "restarts", "nodes"]
    return _table(columns, cells, fold=())


def _narrow(rows: Sequence[Row]) -> Table:
    cells = []
    for row in rows:
        state = _state(row)
        if row.nodes:
            state.append(f"\n{row.nodes}")
        if row.restarts:
            state.append(f"\nrestarts: {row.restarts}")
        cells.append([_label(row), state, *map(Text, _figures(row))])
    return _table(["run", "state", "step", "loss", "tokens/s", "ETA"], cells, fold=("run", "state"))


def _table(columns: list[str], cells: list[list[Text]], fold: tuple[str, ...]) -> Table:
    """A table without the columns that are empty in all rows."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    used = [index for index in range(len(columns)) if index < 2 or any(row[index].plain for row in cells)]
    for index in used:
        right = columns[index] in ("step", "loss", "tokens/s", "ETA")
        table.add_column(
            columns[index],
            justify="right" if right else "left",
            no_wrap=columns[index] not in fold,
            overflow="fold",
        )
    for row in cells:
        table.add_row(*(row[index] for index in used))
    return table


def _label(row: Row) -> Text:
    return Text(row.label)


def _state(row: Row) -> Text:
    text = Text(row.state, style=_STYLES.get(row.state, ""))
    if row.why:
        text.append(f": {row.why}")
    return text


def _figures(row: Row) -> tuple[str, str, str, str]:
    return row.step, row.loss, row.speed, row.left


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)


def nothing_in(folder: Path) -> str:
    """The error for a folder in which there is neither a run nor a job."""
    there = ", ".join(sorted({str(facts.folder) for root in ROOTS for facts in find(Path(root))})) or "none"
    what = "holds no run and no queued job" if folder.is_dir() else "does not exist"
    return f"{folder} {what}; folders with runs or jobs: {there}"
