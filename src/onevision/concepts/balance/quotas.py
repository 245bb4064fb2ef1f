"""Shares of the selection that languages and sources are to have.

Samples are in cells: one of the languages that a quota names, or any other, by one of the sources that a quota names,
or any other. The numbers to draw from the cells begin with what a draw without quotas gives, and are scaled in turn
until languages and sources have their shares (iterative proportional fitting), no cell above what it holds. What a
quota cannot have goes to the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.errors import InputError

KINDS = ("language", "source")
_ROUNDS, _CLOSE = 1000, 1e-9


@dataclass(frozen=True)
class Quotas:
    """Shares (0 to 1) by name, of languages and of sources; with none there is one cell."""

    language: Mapping[str, float]
    source: Mapping[str, float]

    def __bool__(self) -> bool:
        return bool(self.language or self.source)

    @property
    def shape(self) -> tuple[int, int]:
        """Cells by language and source; the last of each holds all others."""
        return len(self.language) + 1, len(self.source) + 1

    @property
    def cells(self) -> int:
        """How many there are."""
        return self.shape[0] * self.shape[1]

    def cell_of(
        self, language: NDArray[np.int16], source: NDArray[np.int16], languages: Sequence[str], sources: Sequence[str]
    ) -> NDArray[np.uint16]:
        """The cell of each sample, u2 [n]; numbers are into the tables `languages` and `sources`."""
        rows, columns = (
            np.array([list(shares).index(name) if name in shares else len(shares) for name in table] or [0], np.uint16)
            for shares, table in ((self.language, languages), (self.source, sources))
        )
        return rows[language] * np.uint16(self.shape[1]) + columns[source]


def parse_quotas(texts: Sequence[str], languages: Sequence[str], sources: Sequence[str]) -> Quotas:
    """The quotas of `concepts.quotas` for a corpus with these tables.

    Raises:
        InputError: one does not parse, names what the corpus does not have, or comes twice; or shares are above 1.
    """
    found: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    for text in texts:
        key, equals, number = text.rpartition("=")
        kind, dot, name = key.partition(".")
        if not equals or not dot or kind not in KINDS:
            raise InputError(f"concepts.quotas: {text!r} is not of the form language.NAME=SHARE or source.NAME=SHARE")
        table = languages if kind == "language" else sources
        if name not in table:
            near = difflib.get_close_matches(name, table, n=1, cutoff=0.0)
            raise InputError(
                f"concepts.quotas: {text!r}: the corpus has no {kind} {name!r}"
                + (f"; the nearest is {near[0]!r}" if near else "")
            )
        if name in found[kind]:
            raise InputError(f"concepts.quotas: {text!r}: {key} has a share already ({found[kind][name]})")
        found[kind][name] = _share(text, number)
    for kind, shares in found.items():
        if sum(shares.values()) > 1 + _CLOSE:
            told = ", ".join(f"{name}={share}" for name, share in shares.items())
            raise InputError(
                f"concepts.quotas: the shares of {kind} sum to {sum(shares.values()):.6g}, above 1: {told}"
            )
    return Quotas(found["language"], found["source"])


def _share(text: str, number: str) -> float:
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise InputError(f"concepts.quotas: {text!r}: {number!r} is not a share from 0 to 1")
    return share


def cell_targets(
    quotas: Quotas, samples: int, free: NDArray[np.int64], available: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many samples are drawn from each cell, i8 [cells]; they sum to `samples`, at most the sum of `available`.

    `free` [cells] is what a draw without quotas gives. A cell that it leaves empty counts as half a sample.
    """
    shape = quotas.shape
    most = available.reshape(shape).astype(np.float64)
    target = np.where(most > 0, np.maximum(free.reshape(shape), 0.5), 0.0)
    asked = [
        samples * np.array([*shares.values(), max(0.0, 1 - sum(shares.values()))]) if shares else np.array([samples])
        for shares in (quotas.language, quotas.source)
    ]
    for _ in range(_ROUNDS):
        before = target.copy()
        for row in range(shape[0]) if quotas.language else ():
            target[row] = _fill(target[row], most[row], asked[0][row])
        for column in range(shape[1]) if quotas.source else ():
            target[:, column] = _fill(target[:, column], most[:, column], asked[1][column])
        if np.abs(target - before).max() <= _CLOSE * samples:
            break
    return _whole(_fill(target.ravel(), most.ravel(), samples), available, samples)


def _fill(values: NDArray[np.float64], most: NDArray[np.float64], total: float) -> NDArray[np.float64]:
    """`values` in their proportions, scaled to sum to `total`, but none above `most`; where that is less than `total`,
    all are at their most. Values of zero take what the others cannot hold.
    """
    left = min(float(total), float(most.sum()))
    result, open_ = np.zeros_like(values), most > 0
    while left > 0 and open_.any():
        share = np.where(open_, values, 0.0)
        if not share.any():
            share = np.where(open_, most - result, 0.0)
        step = share / share.sum() * left
        full = open_ & (result + step >= most)
        if not full.any():
            return result + step
        left -= float((most - result)[full].sum())
        result[full] = most[full]
        open_ &= ~full
    return result


def _whole(values: NDArray[np.float64], most: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Whole numbers that sum to `total`: the largest remainders are rounded up, where there is room."""
    whole = np.minimum(np.floor(values).astype(np.int64), most)
    order = np.lexsort([np.arange(len(values)), whole - values])
    while whole.sum() < total:
        room = [c for c in order.tolist() if whole[c] < most[c]][: total - int(whole.sum())]
        whole[room] += 1
    return whole


def shortfalls(quotas: Quotas, drawn: NDArray[np.int64], available: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The quotas that were not reached: quota, asked (share), drawn and available samples; rounding is none.

    `drawn` and `available` are [cells].
    """
    found = []
    samples = int(drawn.sum())
    for axis, kind in enumerate(KINDS):
        shares: Mapping[str, float] = getattr(quotas, kind)
        sums = [values.reshape(quotas.shape).sum(axis=1 - axis).tolist() for values in (drawn, available)]
        for number, (name, share) in enumerate(shares.items()):
            if sums[0][number] < share * samples - len(drawn):
                row = {"quota": f"{kind}.{name}", "asked": share, "drawn": sums[0][number]}
                found.append(row | {"available": sums[1][number]})
    return found
