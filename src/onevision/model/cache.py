"""Keys and values of the tokens that the model has seen, so that generation computes each token once.

Megatron-core 0.16.1 has two such memories, and neither fits packed segments: the static one has a place for every
token of the longest sequence of a batch and one offset that all sequences share, the dynamic one needs a GPU and the
package flash-attn. Here a token has one row in every layer, wherever one is free: sequences of any lengths share the
memory without gaps, and come and go one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FIRST_ROWS = 256


class KeyValueCache:
    """Rows for tokens, in each layer a key and a value [heads of k and v, head_dim]; the memory grows with the tokens
    that are held at once."""

    def __init__(self) -> None:
        self._free = np.arange(FIRST_ROWS)
        self._capacity = FIRST_ROWS
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # by layer number: keys and values, both [capacity, g, d]

    @property
    def held(self) -> int:
        """Rows in use."""
        return self._capacity - len(self._free)

    def take(self, count: int) -> np.ndarray:
        """Rows for `count` tokens, int64 [count]."""
        if count > len(self._free):
            capacity = max(2 * self._capacity, self.held + count)
            self._free = np.concatenate([self._free, np.arange(self._capacity, capacity)])
            self._capacity = capacity
        rows, self._free = self._free[:count], self._free[count:]
        return rows

    def give_back(self, rows: np.ndarray) -> None:
        """Free rows of tokens that nobody will look at again."""
        self._free = np.concatenate([rows, self._free])

    def layer(self, number: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, both [rows, g, d], of the dtype and on the device of `like` [T, g, d]."""
        held = self._layers.get(number)
        if held is None or len(held[0]) < self._capacity:
            grown = tuple(like.new_empty(self._capacity, *like.shape[1:]) for _ in range(2))
            for new, old in zip(grown, held or (), strict=False):
                new[: len(old)] = old
            self._layers[number] = held = (grown[0], grown[1])
        return held


@dataclass(frozen=True)
class CachedRows:
    """The rows of one pass: those of its tokens, and those that they see.

    new: int64 [T]; seen: int64 [K], of every segment all tokens so far, its new ones at the end; None where the
    segments have no other tokens than the new ones.
    """

    cache: KeyValueCache
    new: Tensor
    seen: Tensor | None

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep key and value [T, g, d] of the new tokens; keys and values [K, g, d] of all tokens of the segments."""
        keys, values = self.cache.layer(layer, key)
        keys.index_copy_(0, self.new, key)
        values.index_copy_(0, self.new, value)
        if self.seen is None:
            return key, value
        return keys.index_select(0, self.seen), values.index_select(0, self.seen)


def on_device(rows: np.ndarray, device: torch.device) -> Tensor:
    """Rows as a tensor on `device`."""
    return torch.from_numpy(np.ascontiguousarray(rows)).to(device)
