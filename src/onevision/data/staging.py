"""The way of batches to a device, on a stream of its own: copies and kernels run beside the step that computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from onevision.data.batch import MOVED, PackedBatch

Staged = tuple[PackedBatch, "torch.cuda.Event | None"]  # a batch, and when it is whole on the device


class Staging:
    """Threads make and send batches, and the one that computes receives them. On a CPU there is nothing to do."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, make: Callable[[], PackedBatch]) -> Staged:
        """Make a batch, whose parts may be on the device already, and have the rest copied there. Called in any thread;
        `make` runs with the stream of the copies as the current one.
        """
        if self._stream is None:
            return make(), None
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            batch = make()
            at_host = {name: value for name in MOVED if not (value := getattr(batch, name)).is_cuda}
            pinned = {name: value.pin_memory() for name, value in at_host.items()}
            moved = replace(batch, **pinned).to(self.device)
            return moved, self._stream.record_event()

    def receive(self, staged: Staged) -> PackedBatch:
        """The batch for the current stream, which waits for it; the host does not."""
        batch, whole = staged
        if whole is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(whole)
            for name in MOVED:  # or its memory would be given away before the step has used it
                getattr(batch, name).record_stream(stream)
        return batch
