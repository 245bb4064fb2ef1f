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

from jobs.facts import Answers, ask, elsewhere, find, find_all
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
    "unreadable": "red",
    "cancelled": "red",
}
_UNLIMITED = 10_000  # columns


def run(arguments: list[str]) -> int:
    """python -m jobs status [RUN ...]

    A table of the runs and jobs in the given folders, or of all in runs/ and data/: state and why it waits, step, loss,
    tokens/s of the last step, ETA, restarts and the steps they did again, nodes. Whole messages of what went wrong, and
    the nodes that are left out, stand below it.
    """
    console = Console(highlight=False)
    chosen = []
    for folder in map(Path, arguments):
        found = find(folder)
        if not found:
            raise InputError(nothing_in(folder))
        chosen += found
    known = {each.folder for each in chosen}
    facts = chosen + [each for each in find_all() if each.folder not in known]  # a job may wait for any other
    answers = Answers()
    with console.status("asking Slurm") if console.is_terminal else nullcontext():
        ask(facts, answers)
    if not arguments:
        chosen = facts = facts + elsewhere(facts, answers)
    if not facts:
        print("no runs yet: `make demo` makes the first ones")
        return 0
    rows = judge(facts, answers, datetime.now())[: len(chosen)]
    show(console, rows, bad_nodes(chosen, rows), answers)
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
    for message in dict.fromkeys(row.message for row in rows if row.message):
        labels = ", ".join(row.label for row in rows if row.message == message)
        _line(console, f"{labels}: {message}")
    for node, reason in left_out.items():
        _line(console, f"{node}: {reason}")


def _wide(rows: Sequence[Row]) -> Table:
    cells = [[Text(row.label), _state(row), *map(Text, (*_figures(row), row.restarts, row.nodes))] for row in rows]
    columns = ["run", "state", "step", "loss", "tokens/s", "ETA", "restarts", "nodes"]
    return _table(columns, cells, fold=())


def _narrow(rows: Sequence[Row]) -> Table:
    cells = []
    for row in rows:
        state = _state(row)
        if row.nodes and row.state != "finished":
            state.append(f"\n{row.nodes}")
        if row.restarts:
            state.append(f"\nrestarts: {row.restarts}")
        cells.append([Text(row.label), state, *map(Text, _figures(row))])
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


def _state(row: Row) -> Text:
    return Text.assemble((row.state, _STYLES.get(row.state, "")), f": {row.why}" if row.why else "")


def _figures(row: Row) -> tuple[str, str, str, str]:
    return row.step, row.loss, row.speed, row.left


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True)


def nothing_in(folder: Path) -> str:
    """The error for a folder in which there is neither a run nor a job."""
    what = "holds no run and no queued job" if folder.is_dir() else "does not exist"
    return f"{folder} {what}; {all_folders()}"


def all_folders() -> str:
    """What may be named instead: the folders with runs or jobs."""
    there = ", ".join(sorted({str(facts.folder) for facts in find_all()})) or "none"
    return f"folders with runs or jobs: {there}"
