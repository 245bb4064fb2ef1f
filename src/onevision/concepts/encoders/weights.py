"""What both encoders share: their folder, its fingerprint, the device, and rows of unit length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.errors import InputError
from onevision.fingerprint import file_digest, value_digest

EXTRA = "pip install onevision[concepts]"
SUFFIXES = {".json", ".txt", ".model", ".safetensors", ".bin"}  # configuration, tokenizer, weights


def need_packages(setting: str, *names: str) -> None:
    """Refuse a setting whose packages are not installed; they are looked for, not imported.

    Raises:
        InputError: naming the first one that is missing.
    """
    for name in names:
        if find_spec(name) is None:
            raise InputError(f"{setting} needs the package {name}, which is not installed: {EXTRA}")


def folder_fingerprint(kind: str, folder: Path) -> str:
    """Digest of the kind, and of the names and contents of all files that an encoder may read."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    return value_digest([kind, [[path.relative_to(folder).as_posix(), file_digest(path)] for path in files]])


def choose_device(local_rank: int) -> Any:
    """torch's device of a rank: GPUs are dealt out by its number on the node; the CPU where there are none."""
    import torch

    count = torch.cuda.device_count()
    return torch.device("cuda", local_rank % count) if count else torch.device("cpu")


@contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Load weights without bars on the screen; what goes wrong is one line.

    Raises:
        InputError: naming the folder and what was found.
    """
    from safetensors import SafetensorError
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        found = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"{folder} cannot be loaded as {what}: {found}; set concepts.weights to another folder"
        ) from None
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def computing(device: Any) -> Iterator[None]:
    """Compute without gradients, and on a CPU with one thread: the order of a sum must not depend on the machine."""
    import torch

    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Rows divided by their lengths, float32 [n, D]; rows of zeros stay as they are."""
    values = rows.astype(np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    np.divide(values, lengths, out=values, where=lengths > 0)
    return values
