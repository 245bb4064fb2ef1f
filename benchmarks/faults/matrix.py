"""The matrix: all cases, in as many lanes as there are cores, with their table and results."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.faults.cases import checkpoints, clocks, data, disks, hangs, kills, local_copies
from benchmarks.faults.lab import NOT_RUN, Case, Lab, Result
from benchmarks.results import Row, package_versions, write_results
from onevision.errors import InputError
from onevision.progress import Progress

PATH = "faults"


def all_cases(seed: int) -> list[Case]:
    """Every row of the matrix."""
    return [
        *kills.cases(random.Random(seed)),
        *hangs.cases(),
        *checkpoints.cases(),
        *disks.cases(),
        *data.cases(),
        *clocks.cases(),
        *local_copies.cases(),
    ]


def chosen(cases: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """Those with one of the texts in their name; all without a text.

    Raises:
        InputError: a text is in none.
    """
    for text in only:
        if not any(text in case.name for case in cases):
            faults = ", ".join(dict.fromkeys(case.fault for case in cases))
            raise InputError(f"only={text} fits no row; the faults are: {faults}")
    return [case for case in cases if not only or any(text in case.name for text in only)]


def run_cases(lab: Lab, cases: Sequence[Case]) -> list[Result]:
    """The results, in the order of the cases."""
    cores = len(os.sched_getaffinity(0))
    results: dict[str, Result] = {}
    with Progress("faults", len(cases), unit="cases") as progress:
        # Cases of one rank side by side on the cores; of several ranks as many as there are cores for.
        for lanes, part in (
            (cores, [case for case in cases if case.ranks == 1]),
            (max(1, cores // 2), [case for case in cases if case.ranks > 1]),
        ):
            with ThreadPoolExecutor(lanes) as pool:
                futures = [pool.submit(lab.run, case) for case in part]
                try:
                    for done in as_completed(futures):
                        result = done.result()
                        results[result.case.name] = result
                        if result.problems:
                            print(f"{result.case.name}: {result.outcome}", flush=True)
                        progress.advance(note=result.case.fault)
                except BaseException:
                    _give_up(futures)
                    raise
    return [results[case.name] for case in cases]


def _give_up(futures: Sequence[Future[Result]]) -> None:
    """End the cases that run by ending their ranks, so that small disks are unmounted and folders removed."""
    for future in futures:
        future.cancel()
    while not all(future.done() for future in futures):
        for process in psutil.Process().children(recursive=True):  # the ranks have sessions of their own
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.1)


def check(folder: Path, only: Sequence[str], seed: int) -> int:
    """Run the chosen cases below `folder`, print the table, write the results of a whole matrix; the exit code."""
    cases = chosen(all_cases(seed), only)
    began = time.monotonic()
    print(f"{len(cases)} cases, seed {seed}; first a corpus, packs and the undisturbed runs", flush=True)
    results = run_cases(Lab(folder), cases)
    show(results)
    bad = [result for result in results if result.problems]
    print(f"{len(results) - len(bad)} of {len(results)} as they should be, in {time.monotonic() - began:.0f} s")
    if not only:
        versions = package_versions("torch", "megatron-core", "h5py")
        print(f"written to {write_results(PATH, rows(results), versions, beside={'seed': seed})}")
    return 1 if bad else 0


def rows(results: Sequence[Result]) -> list[Row]:
    """The figures of the results file."""
    return [
        Row(
            f"{PATH}/{result.case.fault}/{result.case.moment}",
            f"exit code {result.code}, then {result.outcome}",
            result.repeated,
            "steps repeated",
            "ranks",
            result.case.ranks,
            "the undisturbed curve, or one line",
            not result.problems,
        )
        for result in results
        if not result.outcome.startswith(NOT_RUN)
    ]


def show(results: Sequence[Result]) -> None:
    """The table."""
    table = Table(title="faults in training, and what came of them")
    for column, side in (("fault", "left"), ("moment", "left"), ("ranks", "right"), ("exit", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for column, side in (("result", "left"), ("repeated", "right"), ("seconds", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    last = ""
    for result in results:
        fault = result.case.fault if result.case.fault != last else ""
        last = result.case.fault
        text = f"[red]{result.outcome}[/]" if result.problems else result.outcome
        numbers = (str(result.repeated), f"{result.seconds:.0f}")
        table.add_row(fault, result.case.moment, str(result.case.ranks), str(result.code), text, *numbers)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
