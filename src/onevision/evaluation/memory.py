"""What the model has seen of the last prompt and its answer: the next turn of a chat, alike at first, goes on there."""

from __future__ import annotations

import numpy as np
import torch

from onevision.data.image import MERGE
from onevision.evaluation.prompt import Prompt
from onevision.model.cache import KeyValueCache

_NONE = np.empty(0, np.int64)


class Memory:
    """A cache that outlives an answer, and the tokens that are in it."""

    def __init__(self) -> None:
        self.cache = KeyValueCache()
        self._prompt: Prompt | None = None
        self._ids = self._rows = _NONE

    def begin(self, prompt: Prompt, image_pad: int) -> np.ndarray:
        """Rows int64 [N] of the cache that hold the first N tokens of `prompt`, one less than it has at most; the rows
        of other tokens are free again. An image is among them whole or not at all."""
        count = self._common(prompt, image_pad)
        rows = self._rows[:count]
        self.cache.give_back(self._rows[count:])
        self._prompt, self._ids, self._rows = None, _NONE, _NONE
        return rows

    def keep(self, prompt: Prompt, ids: np.ndarray, rows: np.ndarray) -> None:
        """Remember tokens int64 [N], those of `prompt` first, that the model has seen, by their rows."""
        self._prompt, self._ids, self._rows = prompt, ids, rows

    def _common(self, prompt: Prompt, image_pad: int) -> int:
        most = min(len(self._ids), len(prompt.ids) - 1)
        differ = np.flatnonzero(self._ids[:most] != prompt.ids[:most])
        count = int(differ[0]) if len(differ) else most
        while count and prompt.ids[count] == prompt.ids[count - 1] == image_pad:  # back to where the image begins
            count -= 1
        seen = int((prompt.ids[:count] == image_pad).sum())
        if self._prompt is None or not seen:
            return count
        images = image_count(prompt, seen)
        patches = seen * MERGE**2
        same = np.array_equal(self._prompt.grid_thw[:images], prompt.grid_thw[:images]) and torch.equal(
            self._prompt.patches[:patches], prompt.patches[:patches]
        )
        return count if same else int(np.flatnonzero(prompt.ids == image_pad)[0])


def image_count(prompt: Prompt, tokens: int) -> int:
    """How many of a prompt's images its first `tokens` image tokens are."""
    return int(np.searchsorted(prompt.grid_thw.prod(1).cumsum() // MERGE**2, tokens, side="right"))
