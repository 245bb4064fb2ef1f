"""What the solver is measured against: trl's best-fit-decreasing packing, first-fit in NumPy, and dd."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def trl_bfd(lengths: NDArray[np.int32], capacity: int) -> tuple[float, int]:
    """CPU seconds and packs of trl's own `pack_dataset(strategy="bfd")` on a dataset of these lengths.

    It packs the tokens themselves, not row numbers: its input has to hold them.
    """
    import pyarrow as pa
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    tokens = pa.array(np.zeros(offsets[-1], np.int32))
    dataset = Dataset(pa.table({"input_ids": pa.LargeListArray.from_arrays(pa.array(offsets), tokens)}))
    start = time.process_time()
    packed = pack_dataset(dataset, capacity, strategy="bfd", map_kwargs={"batch_size": len(lengths), "num_proc": None})
    return time.process_time() - start, len(packed)


def numpy_first_fit(lengths: NDArray[np.int32], capacity: int) -> tuple[float, int]:
    """CPU seconds and packs of first-fit: each sample, in the corpus' order, into the first pack that has room."""
    start = time.process_time()
    room = np.full(len(lengths), capacity, np.int32)
    shortest = int(lengths.min())
    first, last = 0, 1
    for length in lengths.tolist():
        while room[first] < shortest:  # full for good
            first += 1
        pack = first + int(np.argmax(room[first : last + 1] >= length))
        room[pack] -= length
        last = max(last, pack + 1)
    return time.process_time() - start, last


def dd_write(path: Path, size: int) -> float:
    """Seconds in which dd writes `size` bytes and has them on the disk (conv=fsync)."""
    start = time.perf_counter()
    blocks = ["bs=8M", f"count={size}", "iflag=count_bytes"]
    subprocess.run(["dd", "if=/dev/zero", f"of={path}", *blocks, "conv=fsync"], check=True, capture_output=True)
    return time.perf_counter() - start


def dd_read(paths: list[Path]) -> float:
    """Seconds in which dd reads the files, none of which is in the page cache."""
    forget(paths)
    start = time.perf_counter()
    for path in paths:
        subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=8M"], check=True, capture_output=True)
    return time.perf_counter() - start


def to_disk(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def forget(paths: list[Path]) -> None:
    """Have the system drop the files from its page cache."""
    for path in paths:
        to_disk(path)
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
