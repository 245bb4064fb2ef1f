"""The corpus step: a source into tar shards, `corpus.h5` and a ledger of what was rejected.

The source is cut into units (`onevision.corpus.formats`) that ranks share; each becomes one shard and the file of its
columns. An interrupted step goes on with the units that are missing, and the corpus is the same, bit for bit, for any
number of ranks.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from onevision.corpus.filters import filtered
from onevision.corpus.formats import Rejected, list_units, read_unit
from onevision.corpus.formats.unit import CUT
from onevision.corpus.index import FORMAT_VERSION, CorpusIndex
from onevision.corpus.join import LEDGER, join_parts
from onevision.corpus.part import build_part
from onevision.corpus.record import Record
from onevision.data.template import TEMPLATE_FINGERPRINT
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import DataError
from onevision.fingerprint import value_digest
from onevision.progress import Progress
from onevision.ranks import ALONE, Ranks
from onevision.recipe import DataRecipe
from onevision.steps import StepResult, forget_damaged, run_parts


def build_corpus(
    data: DataRecipe, output: str | Path, ranks: Ranks = ALONE, report: Callable[[str], None] = print
) -> StepResult:
    """Import `data.source` into the corpus folder `output`; nothing is done when it already holds the same.

    Samples keep their order and image files their bytes. Lengths come from the image headers and the tokenizer. What
    was read is known by the names and sizes of the files and the content of texts; the content of images counts
    in the digests of the summary (`source` and `fingerprint`). `report` gets one line about the result.

    Raises:
        InputError: the source or the tokenizer is missing.
        DataError: more records than `data.reject_threshold` allows were rejected, or more files could not be read to
            their end, or no record is left.
        StorageError: the disk is full.
    """
    output = Path(output)
    tokenizer = load_tokenizer(data.tokenizer)
    listing = ranks.first(list_units(data) if ranks.rank == 0 else None)
    if not listing.units:
        raise DataError(f"{data.source} holds no records")
    lengths: dict[str, str | int] = {
        "tokenizer": tokenizer.fingerprint,
        "template": TEMPLATE_FINGERPRINT,
        "min_pixels": data.min_pixels,
        "max_pixels": data.max_pixels,
    }
    inputs = {
        "listing": listing.digest,
        "units": value_digest([asdict(unit) for unit in listing.units]),
        "format": data.format,
        "columns": data.columns,
        "verify_images": data.verify_images,
        "filters": [data.min_caption, data.max_caption] if filtered(data) else [],
        **lengths,
        "format_version": FORMAT_VERSION,
    }
    if ranks.rank == 0:
        forget_damaged(output, partial(CorpusIndex.open, output), "the corpus is built again", report)
    files = len({unit.file for unit in listing.units})
    watch = _Watch(len(listing.units), ranks)

    def build(folder: Path, k: int) -> dict[str, Any]:
        unit = listing.units[k]
        return build_part(folder, k, unit, watch.items(k, read_unit(data, unit)), data, tokenizer)

    def finish(folder: Path, known: list[dict[str, Any]]) -> dict[str, Any]:
        summary = join_parts(folder, known, lengths)
        _check_shares(data, files, summary, folder / LEDGER, _kept_ledger(output))
        return summary

    result = run_parts("corpus", output, inputs, len(listing.units), build, finish, ranks)
    watch.end()
    if ranks.rank == 0:
        _check_shares(data, files, result.summary, output / LEDGER, _kept_ledger(output))
        _kept_ledger(output).unlink(missing_ok=True)
        report(_line(output, result))
    return result


class _Watch:
    """Shows how far the units are; the first rank's pace is taken for that of all."""

    def __init__(self, units: int, ranks: Ranks) -> None:
        self._units, self._ranks = units, ranks
        self._progress: Progress | None = None
        self._samples = self._rejected = 0
        self._began = 0.0

    def items(self, k: int, items: Iterator[Record | Rejected]) -> Iterator[Record | Rejected]:
        """The items of unit k, counted as they pass."""
        if self._ranks.rank:
            yield from items
            return
        if self._progress is None:  # units before the first that is missing were done by an earlier start
            self._progress = Progress("corpus", self._units, "shards", start=k)
            self._began = time.monotonic()
        for item in items:
            self._samples += 1
            self._rejected += isinstance(item, Rejected)
            self._progress.advance(0, self._note())
            yield item
        done = min(self._units, k + self._ranks.size)
        self._progress.advance(done - self._progress.done, self._note())

    def end(self) -> None:
        """Show the last line."""
        if self._progress is not None:
            self._progress.show(self._note())

    def _note(self) -> str:
        rate = self._samples * self._ranks.size / max(time.monotonic() - self._began, 1e-9)
        return f"{rate:,.0f} samples/s, {self._rejected} rejected"


def _kept_ledger(output: Path) -> Path:
    """Where the ledger of a failed step is kept."""
    return output.with_name(f"{output.name}.{LEDGER}")


def _check_shares(data: DataRecipe, files: int, summary: dict[str, Any], ledger: Path, kept: Path) -> None:
    """Hold the rejected records to the threshold; and the files that could not be read to their end, of which nobody
    knows how many records are lost."""
    samples, rejected, by_reason = summary["samples"], summary["rejected"], summary["rejects_by_reason"]
    total, threshold = samples + rejected, data.reject_threshold
    cut = sum(by_reason.get(reason, 0) for reason in CUT)
    if not total:  # units without rows
        raise DataError(f"{data.source} holds no records")
    if not samples or rejected > threshold * total:
        found = f"{rejected} of {total} records rejected ({rejected / total:.1%}, data.reject_threshold={threshold})"
    elif cut > threshold * files:
        found = (
            f"{cut} of {files} files cannot be read to the end ({cut / files:.1%}, data.reject_threshold={threshold}); "
            f"copy them again; {rejected} of {total} records rejected"
        )
    else:
        return
    shutil.copyfile(ledger, kept)
    raise DataError(f"{data.source}: {found}{_reasons(by_reason, ': ')}; each one is listed in {kept}")


def _reasons(by_reason: dict[str, int], before: str) -> str:
    return before + ", ".join(f"{count} {reason}" for reason, count in by_reason.items()) if by_reason else ""


def _line(output: Path, result: StepResult) -> str:
    summary = result.summary
    return (
        f"corpus {output}: {summary['samples']:,} samples in {summary['shards']} shards, "
        f"{summary['text_tokens'] + summary['vision_tokens']:,} tokens, "
        f"{summary['rejected']} rejected{_reasons(summary['rejects_by_reason'], ': ')}"
        + (" (unchanged)" if result.skipped else "")
    )
