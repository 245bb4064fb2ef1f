"""The mean pack of a pack index."""

from __future__ import annotations

from pathlib import Path

from onevision.errors import InputError
from onevision.packing.index import PackIndex
from onevision.planning.work import Packs


def mean_of(folder: Path, length: int) -> Packs:
    """The mean pack of the folder's packs.h5, whose packs must have `length` slots.

    Raises:
        InputError: there are no packs, or they have another length.
        DataError: the index is damaged.
    """
    index = PackIndex.open(folder)
    if index.sequence_length != length or not index.samples:
        raise InputError(
            f"{folder} has {index.samples} samples in packs of {index.sequence_length}, and the plan is for "
            f"data.sequence_length={length}: pack them again, or set that"
        )
    tokens, patches = (
        sum(int(piece.sum(dtype="int64")) for piece in column.pieces) for column in (index.tokens, index.patches)
    )
    samples = index.samples
    return Packs(length, samples / index.packs, tokens / samples, patches / samples, index.most_patches)
