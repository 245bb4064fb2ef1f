"""Near duplicates are left out before anything is counted; the first in the order of the corpus stays.

First by image hashes, then by embedding among what is left. Pairs join sets: a sample may be left out for one that is
near to another one that stays. The pieces of the work are shared by ranks; what each has found lies in a file of the
work folder, so that an interrupted step does not look for it again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.balance import same_images, same_meaning
from onevision.concepts.balance.joined import later_rows
from onevision.concepts.index import ConceptIndex
from onevision.files import replacing
from onevision.progress import Progress
from onevision.ranks import Ranks

Pairs = NDArray[np.int64]  # [m, 2]: a row and an earlier one that it is joined with


def find_by_images(index: ConceptIndex, bits: int, work: Path, ranks: Ranks) -> NDArray[np.int64]:
    """Rows that are left out by their image hashes, ascending; the same on every rank.

    A sample without images, or with an image whose hash tells nothing, is like no other.
    """
    count = np.asarray(index.image_hash_count)
    hashes = same_images.Hashes(np.concatenate([[0], np.cumsum(count, dtype=np.int64)]), np.asarray(index.image_hash))
    equal = hashes.equal()
    alone = np.diff(hashes.start) > 0
    alone[np.repeat(np.arange(len(count)), count)[hashes.hash == 0]] = False
    equal = equal[alone[equal[:, 0]]]
    alone[equal[:, 0]] = False
    rows = np.flatnonzero(alone)
    tables = same_images.tables(len(rows), bits)
    near = _shared("images", len(tables), lambda k: hashes.near(rows, bits, k), work, ranks)
    return later_rows(np.concatenate([equal, near]))


def find_by_embedding(
    index: ConceptIndex, similarity: float, out: NDArray[np.int64], work: Path, ranks: Ranks
) -> NDArray[np.int64]:
    """Rows that are left out by their embedding, ascending, the rows `out` aside; the same on every rank."""
    parts = [index.part(k, sealed=False) for k in range(index.parts)]
    first = np.concatenate([same_meaning.first_concepts(part.matches, part.concept) for part in parts])
    left = np.ones(len(first), bool)
    left[out] = False
    rows, units = same_meaning.work_units(first, left)

    def near(k: int) -> Pairs:
        found = [same_meaning.near(index.embedding, rows[bucket], similarity) for bucket in units[k]]
        return np.concatenate(found)

    return later_rows(_shared("embedding", len(units), near, work, ranks))


def forget_pairs(work: Path) -> None:
    """Remove the files of the work folder."""
    for path in work.glob("duplicates-*.npy"):
        path.unlink()


def _shared(name: str, pieces: int, find: Callable[[int], Pairs], work: Path, ranks: Ranks) -> Pairs:
    """The pairs that all pieces of the work find; every rank does some and reads all."""
    paths = [work / f"duplicates-{name}-{k:03d}.npy" for k in range(pieces)]
    missing = ranks.first([k for k, path in enumerate(paths) if not path.exists()])
    progress = Progress("balance", len(missing), f"pieces, duplicates by {name}") if ranks.rank == 0 else None
    for done, k in enumerate(missing[ranks.rank :: ranks.size], start=1):
        with replacing(paths[k]) as temporary, temporary.open("wb") as file:
            np.save(file, find(k))
        if progress is not None:
            progress.advance(min(len(missing), done * ranks.size) - progress.done)
    ranks.wait()
    if progress is not None and missing:
        progress.show("")
    return np.concatenate([np.empty((0, 2), np.int64), *map(np.load, paths)])
