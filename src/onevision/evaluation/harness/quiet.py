"""lmms-eval without what would fill a log: bars, and lines that no user can act on."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import datasets
from loguru import logger
from tqdm import tqdm


class NoBar(tqdm):
    """A bar that is not drawn."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{**settings, "disable": True})


def quiet(*modules: ModuleType) -> None:
    """Have modules of lmms-eval draw no bars, and show its errors only: what happens, our own lines tell."""
    datasets.disable_progress_bars()
    for module in modules:
        module.tqdm = NoBar  # type: ignore[attr-defined]
    logger.remove()
    logger.add(sys.stderr, level="ERROR", format="lmms-eval: {message}")
