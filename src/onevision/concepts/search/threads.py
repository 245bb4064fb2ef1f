"""Compiled code that lets other Python threads run, over the rows of arrays."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def over_rows(count: int, work: Callable[[slice], None]) -> None:
    """Call `work` with slices of rows, one a thread; there are as many as torch uses."""
    import torch

    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        work(slice(0, count))
        return
    bounds = [count * thread // threads for thread in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda pair: work(slice(*pair)), zip(bounds[:-1], bounds[1:], strict=True)))
