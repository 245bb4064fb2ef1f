"""The ranks that answer a task together. They exchange nothing but "done": answers lie in files that all can read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(days=7)  # for the slowest rank; a rank that dies is the launcher's to see


@dataclass
class Share:
    """This rank among `size`; `store` is torch's TCPStore where there are several."""

    rank: int = 0
    size: int = 1
    store: Any = None

    def done(self, what: str) -> None:
        """Tell that this rank has done its share of `what`, such as the questions of a task."""
        if self.store is not None:
            self.store.set(f"{what}/{self.rank}", "done")

    def wait_for_others(self, what: str) -> None:
        """Wait until every rank has told so."""
        if self.store is not None:
            self.store.wait([f"{what}/{rank}" for rank in range(self.size)], PATIENCE)


def join(rank: int, size: int, host: str, port: int) -> Share:
    """The share of a rank; the first one, on `host`, serves the others and has to stay until they are done."""
    if size == 1:
        return Share()
    from torch.distributed import TCPStore

    store = TCPStore(host, port, is_master=rank == 0, wait_for_workers=False, timeout=PATIENCE)
    return Share(rank, size, store)


@contextmanager
def not_launched() -> Iterator[None]:
    """Without the launcher's variables, of which lmms-eval would make a group of processes: ranks share questions here,
    each has its own model, and the first one scores alone."""
    taken = {name: os.environ.pop(name) for name in _LAUNCHED if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)
