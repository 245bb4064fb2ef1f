"""A look inside some steps of a run: the trace of torch.profiler, and the history of the GPU's memory.

They land in a folder, one file a rank, and change no result; the steps that are watched take longer.

    trace-rankR.json.gz       for ui.perfetto.dev or chrome://tracing
    memory-rankR.pickle       for docs.pytorch.org/memory_viz
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_ALLOCATIONS = 200_000  # of the newest that the history has


class StepProfiler:
    """Watches the steps `first` to `first + steps - 1` of a rank; with first=0 none, nor in a run that goes on
    after `first`.

    trace: leave the trace; memory: leave the memory's history, which needs a GPU.
    """

    def __init__(
        self, folder: Path, rank: int, first: int, steps: int, *, trace: bool = True, memory: bool = False
    ) -> None:
        self._folder, self._rank = folder, rank
        self._first, self._last = first, first + steps - 1
        self._on_gpu = torch.cuda.is_available()
        self._trace, self._memory = trace, memory and self._on_gpu
        self._profile: Any = None
        self._watching = False

    def before(self, step: int) -> None:
        """A step begins."""
        if step != self._first or not (self._trace or self._memory):
            return
        self._watching = True
        if self._memory:
            torch.cuda.memory._record_memory_history(max_entries=_ALLOCATIONS)
        if self._trace:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
            self._profile = profile(activities=activities)
            self._profile.start()

    def after(self, step: int) -> list[Path]:
        """A step has ended; the files that were written then."""
        return self.close() if self._watching and step >= self._last else []

    def close(self) -> list[Path]:
        """Write what was watched until now; the files."""
        if not self._watching:
            return []
        self._watching = False
        self._folder.mkdir(parents=True, exist_ok=True)
        written = []
        if self._profile is not None:
            if self._on_gpu:
                torch.cuda.synchronize()
            self._profile.stop()
            written.append(self._folder / f"trace-rank{self._rank}.json.gz")
            self._profile.export_chrome_trace(str(written[-1]))
            self._profile = None
        if self._memory:
            written.append(self._folder / f"memory-rank{self._rank}.pickle")
            torch.cuda.memory._dump_snapshot(str(written[-1]))
            torch.cuda.memory._record_memory_history(enabled=None)
        return written
