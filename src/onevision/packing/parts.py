"""How the rows of a corpus are dealt to the parts in which they are packed.

Of every `parts` neighbouring tiles of rows each part gets one, drawn at random: so each part is a mixture of the whole
corpus, however that is ordered, it is read in runs of neighbouring rows, and no part needs anything of another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_TILE = 1024  # rows: 4 KiB of a column
MIN_TILES = 64  # a part


@dataclass(frozen=True)
class Parts:
    """The rows of a corpus in `count` parts of about `part_samples` rows each."""

    rows: int
    part_samples: int
    seed: int

    @property
    def count(self) -> int:
        """How many parts there are; it depends on the number of rows alone."""
        return max(1, -(-self.rows // self.part_samples))

    @property
    def tile(self) -> int:
        """Rows of a tile; only the last one of the corpus may be shorter."""
        return max(1, min(MAX_TILE, self.part_samples // MIN_TILES))

    @cached_property
    def _first(self) -> list[NDArray[np.int64]]:
        """The first row of each tile of each part, ascending."""
        tiles = -(-self.rows // self.tile)
        rounds = -(-tiles // self.count)
        drawn = np.random.Philox(key=self.seed % 2**64).random_raw(rounds * self.count).reshape(rounds, self.count)
        tile = np.argsort(drawn, axis=1, kind="stable") + self.count * np.arange(rounds)[:, None]
        return [column[column < tiles] * self.tile for column in tile.T]

    def rows_of(self, part: int) -> NDArray[np.int64]:
        """The rows of a part, ascending."""
        rows = (self._first[part][:, None] + np.arange(self.tile)).ravel()
        return rows[rows < self.rows] if len(rows) and rows[-1] >= self.rows else rows

    def read(self, column: Any, part: int) -> NDArray[Any]:
        """The values of a column (anything that can be sliced) in the rows of a part."""
        runs = [column[row : row + self.tile] for row in self._first[part].tolist()]
        return np.concatenate(runs) if runs else np.asarray(column[:0])
