"""The pack step: the lengths of a corpus into `packs.h5`, and a list of the samples that are too long."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onevision.corpus.hdf5 import seal_file
from onevision.corpus.index import CorpusIndex
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import DataError, InputError
from onevision.files import storage_errors
from onevision.packing.balanced import Bounds, solve_bounded
from onevision.packing.draws import stream
from onevision.packing.index import (
    FILE,
    FORMAT_VERSION,
    START,
    PackIndex,
    check_attributes,
    length_attributes,
    pack_attributes,
    write_master,
    write_pack_part,
)
from onevision.packing.parts import Parts
from onevision.packing.single import merge_parts
from onevision.packing.solver import solve
from onevision.packing.summary import TABLES, pack_columns, part_facts, summarise
from onevision.progress import Progress
from onevision.ranks import ALONE, Ranks
from onevision.recipe import DataRecipe
from onevision.steps import StepResult, forget_damaged, run_parts

OVERLONG = "overlong.parquet"
READ_ROWS = 1 << 20  # rows of the corpus that are looked at at a time


def build_packs(
    data: DataRecipe, output: str | Path, ranks: Ranks = ALONE, report: Callable[[str], None] = print
) -> StepResult:
    """Pack the corpus `data.corpus` into the folder `output`; nothing is done when it already holds the same.

    The corpus is packed in parts, which `ranks` share; the packs do not depend on how many there are, and a step that
    was killed goes on with the parts that are missing. A sample that does not keep the bounds of a pack alone is never
    cut: it is left out and listed in overlong.parquet. `report` gets one line about the result, on rank 0.

    Raises:
        InputError: the corpus is missing or was made with another tokenizer, template or pixel limit, or
            `data.single_file` is asked of several ranks whose h5py cannot do it.
        DataError: more samples than `data.reject_threshold` allows are too long, or none is left.
        StorageError: the disk is full.
    """
    corpus = CorpusIndex.open(data.corpus)
    tokenizer = load_tokenizer(data.tokenizer)
    check_attributes(corpus, length_attributes(data, tokenizer), "make corpus")
    return pack_corpus(corpus, pack_attributes(corpus, data, tokenizer), data, Path(output), ranks, report)


def pack_corpus(
    corpus: CorpusIndex,
    attributes: dict[str, str | int],
    data: DataRecipe,
    output: Path,
    ranks: Ranks = ALONE,
    report: Callable[[str], None] = print,
) -> StepResult:
    """As `build_packs`, for an opened corpus; `attributes` are those of `pack_attributes`.

    Raises:
        InputError, DataError, StorageError: as `build_packs`, but for what is wrong with the corpus itself.
    """
    if not len(corpus):
        raise DataError(f"{corpus.path} holds no samples")
    if data.single_file and ranks.size > 1 and not h5py.get_config().mpi:
        raise InputError(
            f"data.single_file={data.single_file}: {ranks.size} ranks need an h5py that was built with MPI, h5py "
            f"{h5py.__version__} is not: set data.single_file=false, or pack with one process"
        )
    inputs = {**attributes, "reject_threshold": data.reject_threshold, "format_version": FORMAT_VERSION}
    if ranks.rank == 0:
        forget_damaged(output, partial(PackIndex.open, output), "the packs are made again", report)
    packing = _Packing(data, corpus, attributes, show=ranks.rank == 0)
    result = run_parts("pack", output, inputs, packing.parts.count, packing.pack, packing.finish, ranks)
    if data.single_file:
        with storage_errors(output):
            merge_parts(output / FILE, START, ranks.communicator, seal_file)
    summary = result.summary
    if ranks.rank == 0:
        report(
            f"packs {output}: {summary['samples']:,} samples in {summary['packs']:,} packs of "
            f"{data.sequence_length:,} tokens, fill {summary['fill']:.2%}, {summary['overlong']} too long"
            + (" (unchanged)" if result.skipped else "")
        )
    return result


class _Packing:
    """The parts of a pack step."""

    def __init__(
        self, data: DataRecipe, corpus: CorpusIndex, attributes: dict[str, str | int], show: bool
    ) -> None:
        self.data, self.corpus, self.attributes = data, corpus, attributes
        self.parts = Parts(len(corpus), data.pack_part_samples, data.pack_seed)
        self.bounds = Bounds(
            data.sequence_length,
            data.max_patches or 4 * data.sequence_length,
            data.max_attention_cost or data.sequence_length**2,
        )
        self._show = show
        self._progress: Progress | None = None

    def pack(self, folder: Path, part: int) -> dict[str, Any]:
        """Pack a part; returns what the summary needs to know of it."""
        self._count(folder)
        rows, read = self.parts.rows_of(part), self.parts.read
        vision = read(self.corpus.vision_tokens, part)
        lengths, patches = read(self.corpus.text_tokens, part) + vision, vision * 4
        fits = ~np.any(list(self._breaks(lengths, patches).values()), axis=0)
        if not fits.all():
            rows, lengths, patches = rows[fits], lengths[fits], patches[fits]
        state = stream("pack", self.data.pack_seed, part)
        if self.data.max_patches or self.data.max_attention_cost:
            pack_start, order = solve_bounded(lengths, patches, self.bounds, state)
        else:
            pack_start, order = solve(lengths, self.bounds.tokens, state)
        columns = pack_columns(pack_start, order, lengths, patches)
        write_pack_part(folder, part, {"pack_start": pack_start, "sample": rows[order], **columns})
        tables = {name: read(getattr(self.corpus, name), part)[fits] for name in TABLES}
        return part_facts(lengths, tables)

    def finish(self, folder: Path, known: list[dict[str, Any]]) -> dict[str, Any]:
        """Write what joins the parts, and the list of what was left out; returns the summary."""
        self._count(folder)
        overlong = self._overlong()
        by_reason = {reason: overlong["reason"].count(reason) for reason in sorted(set(overlong["reason"]))}
        self._check(by_reason, max(overlong["length"], default=0))
        pq.write_table(pa.table(overlong), folder / OVERLONG)
        write_master(folder, self.parts.count, self.attributes)
        index = PackIndex.open(folder)
        return {
            **summarise(index, known, self.corpus),
            "overlong": len(overlong["id"]),
            "overlong_by_reason": by_reason,
            "fingerprint": index.fingerprint,
        }

    def _breaks(self, lengths: NDArray[np.int32], patches: NDArray[np.int32]) -> dict[str, NDArray[np.bool_]]:
        """Which samples do not keep a bound alone, by the name of the bound."""
        return {
            "sequence_length": lengths > self.bounds.tokens,
            "max_patches": patches > self.bounds.patches,
            "max_attention_cost": lengths.astype(np.int64) ** 2 > self.bounds.attention_cost,
        }

    def _overlong(self) -> dict[str, list[Any]]:
        """Id, length, patches of what was left out, and the first bound that it breaks, in the corpus' order."""
        found: dict[str, list[Any]] = {"id": [], "length": [], "patches": [], "reason": []}
        for first in range(0, len(self.corpus), READ_ROWS):
            vision = np.asarray(self.corpus.vision_tokens[first : first + READ_ROWS])
            lengths = self.corpus.text_tokens[first : first + READ_ROWS] + vision
            breaks = self._breaks(lengths, vision * 4)
            for row in np.flatnonzero(np.any(list(breaks.values()), axis=0)).tolist():
                found["id"].append(self.corpus.id[first + row].decode())
                found["length"].append(int(lengths[row]))
                found["patches"].append(int(vision[row]) * 4)
                found["reason"].append(next(name for name, broken in breaks.items() if broken[row]))
        return found

    def _check(self, by_reason: dict[str, int], longest: int) -> None:
        rows, overlong = len(self.corpus), sum(by_reason.values())
        if overlong < rows and overlong <= self.data.reject_threshold * rows:
            return
        reasons = ", ".join(f"data.{name}={getattr(self.data, name)}: {count}" for name, count in by_reason.items())
        raise DataError(
            f"{self.corpus.path}: {overlong} of {rows} samples ({overlong / rows:.1%}, data.reject_threshold="
            f"{self.data.reject_threshold}) do not keep the bounds of a pack ({reasons}), the longest of them has "
            f"{longest} tokens: raise the bounds or lower data.max_pixels"
        )

    def _count(self, folder: Path) -> None:
        """Show how far all ranks together are."""
        if not self._show:
            return
        rows, done = len(self.corpus), len(list(folder.glob("part-*.json")))
        samples = rows * done // self.parts.count
        if self._progress is None:
            self._progress = Progress("pack", rows, start=samples)
        if done < self.parts.count:
            self._progress.advance(samples - self._progress.done)
        else:
            self._progress.done = samples
            self._progress.show("")
