"""Words and bigrams of the captions of a corpus, counted: for `concepts.words: corpus` and `concepts.bigrams: corpus`.

Captions are cut into tokens: runs of letters, digits and marks, in lower case, with apostrophes and hyphens inside
them. Scripts that do not separate words (Chinese, Japanese kana, Thai, Lao, Burmese, Khmer, Tibetan) give a token a
character; a bigram of two such characters is written without a blank, so that a word of two characters, as most Chinese
ones are, is found as a bigram of high PMI. Two tokens with nothing but blanks between them are a bigram.

Every shard's counts are a part of the step, cut into `BUCKETS` by a hash of the token, and joined bucket by bucket:
what is held in memory at a time is the counts of one shard or of one bucket.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import xxhash

from onevision.concepts.captions import caption
from onevision.corpus.reader import CorpusReader, DamagedSample
from onevision.errors import DataError
from onevision.files import replacing
from onevision.progress import Progress
from onevision.ranks import Ranks
from onevision.recipe import DataRecipe
from onevision.steps import run_parts

FILE = "counts.parquet"
BUCKETS = 64
READ_ROWS = 1024  # samples whose places are looked up at once
_UNSPACED = (
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U000323af"
)
# Vowel signs and accents behind their letter (categories M*), which \w leaves out: most words of Hindi have one. Only
# those of the basic plane, which `re` looks up in a table: with those of rarer scripts it takes five times as long.
_MARKS = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c)[0] == "M")
_LETTER = rf"[^\W_{_UNSPACED}]"
_LETTERS = rf"{_LETTER}+(?:[{_MARKS}]+{_LETTER}*)*"
_TOKEN = re.compile(rf"[{_UNSPACED}]|{_LETTERS}(?:['’-]{_LETTERS})*")
_CHARACTER = re.compile(rf"[{_UNSPACED}]")
# What keeps two tokens from being neighbours: punctuation, and apostrophes and hyphens that are not inside a token.
_GAP = re.compile(rf"[^\w\s'’{_UNSPACED}{_MARKS}-]+|_+|(?<!{_LETTER})(?<![{_MARKS}])['’-]|['’-](?!{_LETTER})")


@dataclass(frozen=True)
class CorpusCounts:
    """What the captions of a corpus hold at least `min_count` times, most frequent first."""

    words: dict[str, int]
    bigrams: dict[tuple[str, str], int]
    total: int  # all tokens, rare ones too
    samples: int


def tokens(text: str) -> Iterator[list[str]]:
    """Runs of neighbouring tokens of a text."""
    for run in _GAP.split(unicodedata.normalize("NFC", text).lower()):
        found = _TOKEN.findall(run)
        if found:
            yield found


def written(first: str, second: str) -> str:
    """Two neighbouring tokens as a concept."""
    together = _CHARACTER.fullmatch(first) and _CHARACTER.fullmatch(second)
    return f"{first}{second}" if together else f"{first} {second}"


def count_corpus(
    data: DataRecipe, min_count: int, output: Path, ranks: Ranks, report: Callable[[str], None]
) -> CorpusCounts:
    """Count the captions of `data.corpus` into the folder `output`, a step of its own: nothing is counted again.

    Raises:
        InputError: the corpus is missing.
        DataError: more samples than `data.reject_threshold` allows are damaged.
        StorageError: the disk is full.
    """
    counting = _Counting(data, min_count, show=ranks.rank == 0)
    inputs = {
        "corpus": counting.reader.index.fingerprint,
        "min_count": min_count,
        "tokens": [_TOKEN.pattern, _GAP.pattern],
        "reject_threshold": data.reject_threshold,
    }
    result = run_parts("counts", output, inputs, counting.parts, counting.count, counting.finish, ranks)
    summary = result.summary
    if ranks.rank == 0:
        report(
            f"counts {output}: {summary['total']:,} words in {summary['samples']:,} captions, at least {min_count:,} "
            f"times {summary['words']:,} words and {summary['bigrams']:,} bigrams"
            + (" (unchanged)" if result.skipped else "")
        )
    table = pq.read_table(output / FILE).to_pydict()
    words: dict[str, int] = {}
    bigrams: dict[tuple[str, str], int] = {}
    for name, count in zip(table["name"], table["count"], strict=True):
        first, tab, second = name.partition("\t")
        if tab:
            bigrams[first, second] = count
        else:
            words[first] = count
    return CorpusCounts(words, bigrams, summary["total"], summary["samples"])


class _Counting:
    """The parts of the counting: the shards."""

    def __init__(self, data: DataRecipe, min_count: int, show: bool) -> None:
        self.reader = CorpusReader(data.corpus, data.shards)
        self._start = np.cumsum([0, *map(len, self.reader.index.id.pieces)])
        self.parts = len(self._start) - 1
        self._min_count, self._threshold = min_count, data.reject_threshold
        self._progress = Progress("counts", len(self.reader)) if show else None

    def count(self, folder: Path, part: int) -> dict[str, Any]:
        """Count the captions of a shard."""
        found: Counter[str] = Counter()
        damaged: list[str] = []
        first, last = self._start[part : part + 2].tolist()
        for row in range(first, last, READ_ROWS):
            for entry in self.reader.entries(range(row, min(row + READ_ROWS, last))):
                try:
                    text = caption(self.reader.read_text(entry))
                except DamagedSample as error:
                    damaged.append(str(error))
                    continue
                for run in tokens(text):
                    found.update(run)
                    found.update(map("\t".join, zip(run, run[1:], strict=False)))
        names = sorted(found)
        buckets = np.array([xxhash.xxh3_64_intdigest(name.encode()) % BUCKETS for name in names], np.uint8)
        table = pa.table({"name": names, "count": [found[name] for name in names], "bucket": buckets})
        with replacing(folder / _part_file(part)) as temporary:
            pq.write_table(table.sort_by("bucket"), temporary, row_group_size=1 << 16)
        if self._progress:
            done = sum(int(self._start[k + 1] - self._start[k]) for k in _finished(folder)) + last - first
            self._progress.advance(done - self._progress.done)
        return {
            "samples": last - first,
            "damaged": damaged[:1],
            "rejected": len(damaged),
            "total": sum(count for name, count in found.items() if "\t" not in name),
        }

    def finish(self, folder: Path, known: list[dict[str, Any]]) -> dict[str, Any]:
        """Join the counts of all shards."""
        samples, rejected = (sum(part[key] for part in known) for key in ("samples", "rejected"))
        if rejected > self._threshold * samples:
            first = next(part["damaged"][0] for part in known if part["damaged"])
            raise DataError(
                f"{rejected} of {samples} samples are damaged, more than data.reject_threshold={self._threshold} "
                f"allows; the first: {first}"
            )
        parts = [folder / _part_file(part) for part in range(self.parts)]
        if not (folder / FILE).exists():
            frequent = pa.concat_tables(self._bucket(parts, number) for number in range(BUCKETS))
            with replacing(folder / FILE) as temporary:
                pq.write_table(frequent.sort_by([("count", "descending"), ("name", "ascending")]), temporary)
        for path in parts:
            path.unlink(missing_ok=True)
        names = pq.read_table(folder / FILE, columns=["name"])["name"]
        bigrams = int(pc.sum(pc.match_substring(names, "\t")).as_py() or 0)
        total = sum(part["total"] for part in known)
        return {
            "samples": samples,
            "damaged": rejected,
            "total": total,
            "words": len(names) - bigrams,
            "bigrams": bigrams,
        }

    def _bucket(self, parts: list[Path], number: int) -> pa.Table:
        """Name and count of what is frequent in one bucket."""
        rows = ds.dataset(parts).to_table(["name", "count"], filter=ds.field("bucket") == number)
        sums = rows.group_by("name").aggregate([("count", "sum")]).rename_columns(["name", "count"])
        return sums.filter(pc.field("count") >= self._min_count)


def _part_file(part: int) -> str:
    return f"counts-{part:05d}.parquet"


def _finished(folder: Path) -> list[int]:
    """Parts that are known already."""
    return [int(path.stem.removeprefix("part-")) for path in folder.glob("part-*.json")]
