"""First passes over tiles of the vocabulary, with an upper bound of the score of each (query, concept) pair.

int8: query q and concept c, less the mean m of the vocabulary, are rounded to 8-bit vectors, each with its own unit:
q = q' + e, c - m = c' + f. Then q.c = q.m + q'.c' + q'.f + e.(c - m), and by Cauchy and Schwarz

    q.c <= q.m + q'.c' + |q'| |f| + |e| |c - m|

where q'.c' is a product of whole numbers, exact in int32, and the four lengths are known.

float32: a matrix product, and the bound of its rounding |fl(q.c) - q.c| <= D u / (1 - D u) |q| |c|, u = 2^-24, which
holds for any order of summation.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.search import kernels
from onevision.concepts.search.rows import blocks, float32
from onevision.concepts.search.threads import over_rows

if TYPE_CHECKING:
    import torch

WIDTH = 64  # 8-bit vectors have a multiple of so many values
ROUNDING = 1e-6  # more than all float32 roundings of an upper bound, relative to the terms that it is made of
UNDERFLOW = 1e-30  # more than what numbers below float32's range lose in it
FASTER = 1.3  # from which on int8 is worth it

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]


@dataclass(frozen=True)
class Prepared:
    """Queries as a first pass takes them; the arrays are described in kernels.py."""

    left: torch.Tensor  # [n, P]
    weights: F4  # [n, 2]
    frame: F8  # [n, 3]


class FirstPass(Protocol):
    """passed * scale + weights[0] * error + weights[1] * length is the upper bound, in units of `frame`."""

    scale: F4  # [C]
    error: F4  # [C]
    length: F4  # [C]
    dtype: torch.dtype  # of what `run` writes

    def prepare(self, queries: F4) -> Prepared:
        """Queries [n, D], finite."""
        ...

    def run(self, prepared: Prepared, begin: int, end: int, out: torch.Tensor) -> None:
        """Write what comes out for the concepts begin ... end - 1 to `out`, [n, end - begin]."""
        ...


class FloatPass:
    """A float32 matrix product."""

    def __init__(self, rows: NDArray[Any], lengths: F8) -> None:
        """Of the rows of the vocabulary [C, D] (rows.py) and the lengths of its vectors [C]."""
        import torch

        self.dtype = torch.float32
        self._rows = rows
        self._longest = float(lengths.max())
        rounding = rows.shape[1] * 2.0**-24
        self._flushed = rows.shape[1] * 2.0**-125  # libraries may take numbers below float32's normal ones for zero
        self.scale = np.ones(len(rows), np.float32)
        self.error: F4 = (lengths * (rounding / (1 - rounding) + ROUNDING) + UNDERFLOW).astype(np.float32)
        self.length = np.zeros(len(rows), np.float32)

    def prepare(self, queries: F4) -> Prepared:
        """See FirstPass."""
        import torch

        lengths = np.empty(len(queries))
        kernels.lengths(queries, lengths)
        weights = np.zeros((len(queries), 2), np.float32)
        weights[:, 0] = lengths * (1 + ROUNDING) + UNDERFLOW
        frame = np.zeros((len(queries), 3))
        frame[:, kernels.UNIT] = 1.0
        frame[:, kernels.SLACK] = queries.shape[1] * 2.0**-50 * lengths * self._longest + self._flushed
        return Prepared(torch.from_numpy(queries), weights, frame)

    def run(self, prepared: Prepared, begin: int, end: int, out: torch.Tensor) -> None:
        """See FirstPass."""
        import torch

        torch.mm(prepared.left, torch.from_numpy(float32(self._rows[begin:end])).T, out=out)


class Int8Pass:
    """An int8 matrix product with int32 sums: four times as fast as float32 where the processor has VNNI."""

    def __init__(self, rows: NDArray[Any], lengths: F8) -> None:
        """Of the rows of the vocabulary [C, D] (rows.py) and the lengths of its vectors [C]."""
        import torch

        self.dtype = torch.int32
        count, dimension = rows.shape
        width = -(-dimension // WIDTH) * WIDTH
        self._block = width & -width
        self._signs = np.random.Philox(key=dimension).random_raw(width) % 2 * 2.0 - 1.0
        self._center: F8 = sum((block.sum(axis=0, dtype=np.float64) for _, block in blocks(rows)), np.zeros(dimension))
        self._center /= count
        self._longest = float(lengths.max() + np.linalg.norm(self._center))
        values = np.empty((count, width), np.int8)
        self.scale, error, length = np.empty(count, np.float32), np.empty(count), np.empty(count)
        for place, block in blocks(rows):
            outputs = values[place], self.scale[place], error[place], length[place]

            def work(part: slice, block: F4 = block, outputs: tuple[NDArray[Any], ...] = outputs) -> None:
                parts = (output[part] for output in outputs)
                kernels.quantise(block[part], self._center, self._signs, self._block, *parts)

            over_rows(len(block), work)
        self._values = torch.from_numpy(values)
        self.error: F4 = (error * (1 + ROUNDING) + length * ROUNDING + UNDERFLOW).astype(np.float32)
        self.length: F4 = (length * (1 + ROUNDING) + UNDERFLOW).astype(np.float32)

    def prepare(self, queries: F4) -> Prepared:
        """See FirstPass."""
        import torch

        count, dimension = queries.shape
        values = np.empty((count, len(self._signs)), np.int8)
        unit, error, length = np.empty(count, np.float32), np.empty(count), np.empty(count)
        kernels.quantise(queries, np.zeros(dimension), self._signs, self._block, values, unit, error, length)
        weights = np.empty((count, 2), np.float32)
        weights[:, 0] = np.linalg.norm(values.astype(np.float64), axis=1) * (1 + ROUNDING)
        weights[:, 1] = error / unit * (1 + ROUNDING) + UNDERFLOW
        frame = np.empty((count, 3))
        frame[:, kernels.UNIT] = unit
        frame[:, kernels.OFFSET] = queries.astype(np.float64) @ self._center
        frame[:, kernels.SLACK] = dimension * 2.0**-50 * length * self._longest
        return Prepared(torch.from_numpy(values), weights, frame)

    def run(self, prepared: Prepared, begin: int, end: int, out: torch.Tensor) -> None:
        """See FirstPass."""
        import torch

        torch._int_mm(prepared.left, self._values[begin:end].T, out=out)


def int8_is_better(dimension: int, block: int, tile: int) -> bool:
    """Whether products of int8 matrices are exact and faster than those of float32 on this processor, by trying them.

    Without VNNI, libraries add pairs of products in 16 bits, where large ones do not fit: the largest are tried. The
    choice changes how long a search takes, not what it finds.
    """
    import torch

    width = -(-dimension // WIDTH) * WIDTH
    for sign in (1, -1):
        left = torch.full((block, width), 127 * sign, dtype=torch.int8)
        right = torch.full((tile, width), 127, dtype=torch.int8)
        if not bool((torch._int_mm(left, right.T) == sign * 127 * 127 * width).all()):
            return False
    floats = torch.ones(block, dimension), torch.ones(tile, dimension)
    whole, real = torch.empty(block, tile, dtype=torch.int32), torch.empty(block, tile)
    fast = _seconds(lambda: torch._int_mm(left, right.T, out=whole))
    return FASTER * fast < _seconds(lambda: torch.mm(floats[0], floats[1].T, out=real))


def _seconds(call: Any) -> float:
    """The least of some times."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
