"""Helper processes that must not outlive the process they work for, however that one ends."""

from __future__ import annotations

import os
import threading
import time


def die_with(parent: int) -> None:
    """End this process within a second of the death of `parent`, also when it is blocked on a pipe nobody reads."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
