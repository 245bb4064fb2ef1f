"""From a worker to the training process: objects in anonymous memory files, passed on through a socket.

A pipe would hand tens of megabytes over in small pieces, and the shared memory that torch uses, /dev/shm, is
as small as 64 MB in many containers. What was sent arrives even when the sender has died since.
"""

from __future__ import annotations

import os
import pickle
import socket
from typing import Any


def send(value: Any, channel: socket.socket) -> None:
    """Send an object over a Unix socket."""
    with os.fdopen(os.memfd_create("batches"), "wb") as file:
        pickle.dump(value, file, protocol=5)  # writes arrays without a copy
        file.flush()
        socket.send_fds(channel, [b"."], [file.fileno()])


def receive(channel: socket.socket) -> Any:
    """The object that was sent first of those that were not yet received."""
    _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
    with os.fdopen(descriptors[0], "rb") as file:
        file.seek(0)  # the place in the file is shared with the sender
        return pickle.load(file)
