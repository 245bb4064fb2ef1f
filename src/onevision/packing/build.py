"""The pack step: the lengths of a corpus into `packs.h5`, and a list of the samples that are too long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onevision.corpus.index import CorpusIndex
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import DataError, InputError
from onevision.packing.index import (
    FILE,
    FORMAT_VERSION,
    PackIndex,
    check_attributes,
    length_attributes,
    pack_attributes,
    write_packs,
)
from onevision.packing.solver import solve
from onevision.recipe import DataRecipe
from onevision.steps import StepResult, forget, run_step

OVERLONG = "overlong.parquet"


def build_packs(
    data: DataRecipe,
    output: str | Path,
    rank: int = 0,
    world_size: int = 1,
    report: Callable[[str], None] = print,
) -> StepResult:
    """Pack the corpus `data.corpus` into the folder `output`; nothing is done when it already holds the same.

    A sample longer than `data.sequence_length` is never cut: it is left out and listed in overlong.parquet.
    `report` gets one line about the result.

    Raises:
        InputError: the corpus is missing or was made with another tokenizer, template or pixel limit, or more
            than one rank was asked for.
        DataError: more samples than `data.reject_threshold` allows are too long, or none is left.
        StorageError: the disk is full.
    """
    output = Path(output)
    if (rank, world_size) != (0, 1):
        raise InputError(f"the pack step runs as one process, not as rank {rank} of {world_size}")
    corpus = CorpusIndex.open(data.corpus)
    tokenizer = load_tokenizer(data.tokenizer)
    check_attributes(corpus, length_attributes(data, tokenizer), "make corpus")
    attributes = pack_attributes(corpus, data, tokenizer)
    inputs = {**attributes, "reject_threshold": data.reject_threshold, "format_version": FORMAT_VERSION}
    _forget_damaged(output, report)
    result = run_step("pack", output, inputs, lambda folder: _build(data, corpus, attributes, folder))
    summary = result.summary
    report(
        f"packs {output}: {summary['samples']:,} samples in {summary['packs']:,} packs of "
        f"{data.sequence_length:,} tokens, fill {summary['fill']:.2%}, {summary['overlong']} too long"
        + (" (unchanged)" if result.skipped else "")
    )
    return result


def _build(
    data: DataRecipe, corpus: CorpusIndex, attributes: dict[str, str | int], folder: Path
) -> dict[str, Any]:
    all_lengths = corpus.lengths
    fits = all_lengths <= data.sequence_length
    _check_overlong(data, corpus, all_lengths, fits)
    overlong = np.flatnonzero(~fits)
    ids = pa.array([corpus.id[row].decode() for row in overlong], pa.string())
    pq.write_table(pa.table({"id": ids, "length": all_lengths[overlong]}), folder / OVERLONG)

    rows = np.flatnonzero(fits)
    pack_start, order = solve(all_lengths[rows], data.sequence_length, data.pack_seed)
    sample = rows[order]
    lengths = all_lengths[sample].astype(np.int64)
    tokens = np.add.reduceat(lengths, pack_start[:-1])
    columns = {
        "pack_start": pack_start,
        "sample": sample,
        "tokens": tokens,
        "patches": np.add.reduceat(corpus.patches[sample], pack_start[:-1]),
        "attention_cost": np.add.reduceat(lengths**2, pack_start[:-1]),
    }
    fingerprint = write_packs(folder / FILE, columns, attributes)
    packs, real = len(tokens), int(tokens.sum())
    bin_tokens = -(-lengths.max() // 40)
    return {
        "packs": packs,
        "samples": len(sample),
        "overlong": len(overlong),
        "tokens": real,
        "fill": real / (packs * data.sequence_length),
        "lower_bound_packs": -(-real // data.sequence_length),
        "mean_samples_per_pack": len(sample) / packs,
        "length_histogram": _histogram(lengths, np.arange(0, lengths.max() + bin_tokens, bin_tokens)),
        "fill_histogram": _histogram(tokens / data.sequence_length, np.arange(21) / 20),
        "fingerprint": fingerprint,
    }


def _check_overlong(
    data: DataRecipe, corpus: CorpusIndex, lengths: NDArray[np.int32], fits: NDArray[np.bool_]
) -> None:
    overlong = int((~fits).sum())
    if fits.any() and overlong <= data.reject_threshold * len(fits):
        return
    if not len(fits):
        raise DataError(f"{corpus.path} holds no samples")
    raise DataError(
        f"{corpus.path}: {overlong} of {len(fits)} samples ({overlong / len(fits):.1%}, "
        f"data.reject_threshold={data.reject_threshold}) are longer than data.sequence_length="
        f"{data.sequence_length} tokens, the longest has {lengths.max()}: raise data.sequence_length or "
        "lower data.max_pixels"
    )


def _histogram(values: NDArray[Any], edges: NDArray[Any]) -> dict[str, list[float]]:
    """Counts between neighbouring edges; the last bin includes its upper edge."""
    counts, _ = np.histogram(values, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _forget_damaged(output: Path, report: Callable[[str], None]) -> None:
    """Make the step run again when its output no longer is what it wrote."""
    if not (output / "step.json").exists():
        return
    try:
        PackIndex.open(output)
    except (DataError, InputError) as error:
        report(f"the packs are made again: {error}")
        forget(output)
