"""Which packs a step reads: a pure function of its number, so that no state needs saving.

All steps read on along one endless row of packs. A mixture of sources is laid out in rounds. At the end of each round
every source has had its exact share of all packs up to there, rounded down; inside a round the sources come in a random
order. Each source goes through its own packs in epochs: every pack once an epoch, in an order of that epoch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from onevision.errors import InputError

ROUND = 128  # packs, on average; at least four a source
FEW = 4096  # packs whose order is made as a whole
KEYS = 8  # rounds of the Feistel network


class Mixture:
    """The endless row of packs of S sources. After any n packs, a source with share w of them has had n * w, give or
    take its part of a round: |count - n * w| <= w * (round + 2 * S) + 1.
    """

    def __init__(self, packs: Sequence[int], rates: Sequence[Fraction], seed: int) -> None:
        """`packs` are those of each source. It is read in proportion to its rate, which is positive.

        Raises:
            InputError: a source has no packs.
        """
        if not packs or min(packs) < 1:
            raise InputError("there are no packs to read")
        self.packs, self.seed = tuple(packs), seed % 2**64
        self.shares = tuple(rate / sum(rates) for rate in rates)
        self._round = max(ROUND, 4 * len(packs))

    def at(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places `first` to `first + count - 1` of the row.

        Returns:
            The source of each, int64 [count], and its pack in that source, int64 [count].
        """
        source, draw = self._draws(first, count)
        pack = np.empty(count, np.int64)
        for number in np.unique(source).tolist():
            here = source == number
            pack[here] = self._epochs(number, draw[here])
        return source, pack

    def epochs(self, count: int) -> tuple[float, ...]:
        """How often the first `count` packs of the row go through each source."""
        number, start = self._round_at(count)
        had = np.array(self._before(number))
        had += np.bincount(self._order(number)[: count - start], minlength=len(had))
        return tuple(int(drawn) / packs for drawn, packs in zip(had, self.packs, strict=True))

    def _before(self, number: int) -> list[int]:
        """Packs that each source has had before round `number`."""
        packs = number * self._round
        return [packs * share.numerator // share.denominator for share in self.shares]

    def _round_at(self, place: int) -> tuple[int, int]:
        """The round that holds a place of the row, and the place where it starts."""
        # What is rounded down is less than one pack a source, so that a round starts less than a round early.
        number = place // self._round
        while sum(self._before(number + 1)) <= place:
            number += 1
        return number, sum(self._before(number))

    def _order(self, number: int) -> NDArray[np.int64]:
        """The sources in their order in one round."""
        counts = np.subtract(self._before(number + 1), self._before(number))
        random = np.random.Generator(np.random.Philox(key=np.array([self.seed, number], np.uint64)))
        return random.permutation(np.repeat(np.arange(len(counts)), counts))

    def _draws(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each place, and how many packs that source has had before."""
        if len(self.packs) == 1:
            return np.zeros(count, np.int64), np.arange(first, first + count)
        number, start = self._round_at(first)
        sources, draws = [], []
        place = start
        while place < first + count:
            order = self._order(number)
            draw = np.empty(len(order), np.int64)
            for source, before in enumerate(self._before(number)):
                here = np.flatnonzero(order == source)
                draw[here] = before + np.arange(len(here))
            sources.append(order)
            draws.append(draw)
            place += len(order)
            number += 1
        window = slice(first - start, first - start + count)
        return np.concatenate(sources)[window], np.concatenate(draws)[window]

    def _epochs(self, source: int, draw: NDArray[np.int64]) -> NDArray[np.int64]:
        packs = self.packs[source]
        epoch, place = np.divmod(draw, packs)
        pack = np.empty(len(draw), np.int64)
        for number in np.unique(epoch).tolist():
            here = epoch == number
            key = np.array([self.seed, number + (source << 40)], np.uint64)
            pack[here] = permuted(place[here], packs, key)
        return pack


def permuted(places: NDArray[np.int64], size: int, key: NDArray[np.uint64]) -> NDArray[np.int64]:
    """What a random order of the numbers below `size` has at `places`; of many numbers without the whole order, which
    for 10 million takes 80 MB a rank and seconds at the start of each epoch.

    Many are sent through a Feistel network over the next power of four; what comes out too large is sent on until it is
    not.

    Args:
        places: int64, each below `size`.
        size: at most 2**62.
        key: uint64 [2], which of the orders.
    """
    random = np.random.Philox(key=key)
    if size <= FEW:
        return np.random.Generator(random).permutation(size)[places]
    half = ((size - 1).bit_length() + 1) // 2
    mask = np.uint64(2**half - 1)
    keys = random.random_raw(KEYS)
    values = places.astype(np.uint64)
    pending = np.arange(len(values))
    while len(pending):
        left, right = values[pending] >> np.uint64(half), values[pending] & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & mask)
        values[pending] = (left << np.uint64(half)) | right
        pending = pending[values[pending] >= size]
    return values.astype(np.int64)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the result depends on every bit of the value (MurmurHash3's finalizer)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))
