"""HDF5 files of columns: laid out in memory and written as bytes, read by mapping the columns into memory."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np


@contextmanager
def create(path: Path) -> Iterator[h5py.File]:
    """Yield a new file (for HDF5 1.10 and later) to fill; it is written to `path` when the block ends well.

    The library itself never sees a full disk: it could not close its file any more, and hides the system's error.

    Raises:
        OSError: as any write.
    """
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("v110", "v110")) as file:
        yield file
    with path.open("wb") as target:
        target.write(image.getbuffer())


def mapped(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """A contiguous dataset of the file `path` as read-only mapped memory: shared by processes, safe to fork."""
    offset = dataset.id.get_offset()
    if offset is None:  # an empty dataset has no place in the file
        return dataset[()]
    return np.memmap(path, dtype=dataset.dtype, mode="r", offset=offset, shape=dataset.shape)
