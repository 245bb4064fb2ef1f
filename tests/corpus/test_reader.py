from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from onevision.corpus import store as module
from onevision.corpus.reader import CorpusReader, DamagedSample
from onevision.corpus.record import Record
from onevision.errors import DataError


def test_records_come_back_as_they_went_in(corpus: Path, records: list[Record]) -> None:
    reader = CorpusReader(corpus)
    assert len(reader) == len(records)
    for row in [7, 0, 22, 7, 13, *range(23)]:
        assert reader.record(row) == records[row]


def test_the_text_alone(corpus: Path, records: list[Record]) -> None:
    reader = CorpusReader(corpus)
    for entry, record in zip(reader.entries(range(23)), records, strict=True):
        assert reader.read_text(entry) == replace(record, images=(b"",) * len(record.images))
    entry = reader.entries([4])[0]
    with pytest.raises(DamagedSample, match="run `make corpus` again"):
        reader.read_text(replace(entry, text=(entry.text[0] + 1, entry.text[1])))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("row", [-1, 23])
def test_rows_outside_are_refused(corpus: Path, row: int) -> None:
    with pytest.raises(IndexError, match="of 23"):
        CorpusReader(corpus).record(row)


def test_a_closed_reader_goes_on(corpus: Path, records: list[Record]) -> None:
    reader = CorpusReader(corpus)
    assert reader.record(3) == records[3]
    reader.close()
    assert reader.record(3) == records[3]


def test_few_shards_are_kept_open(corpus: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_SHARDS", 2)
    reader = CorpusReader(corpus)
    before = descriptors()
    for row in [*range(23), *range(0, 23, 5)]:
        assert reader.record(row) == records[row]
    assert descriptors() == before + 2
    reader.close()
    assert descriptors() == before


def test_threads_share_a_reader_that_keeps_few_shards_open(
    corpus: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPEN_SHARDS", 1)
    reader = CorpusReader(corpus)
    with ThreadPoolExecutor(8) as pool:
        rows = [row % 23 for row in range(0, 5 * 800, 5)]
        assert list(pool.map(reader.record, rows)) == [records[row] for row in rows]


def test_changed_bytes_are_found(corpus: Path, records: list[Record]) -> None:
    reader = CorpusReader(corpus)
    row = 6
    offset = int(reader.index.image_offset[reader.index.image_start[row]])
    shard = corpus / reader.index.shards[reader.index.shard[row]]
    with shard.open("r+b") as file:
        file.seek(offset + 40)
        byte = file.read(1)
        file.seek(offset + 40)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DataError, match=r"shard-000001\.tar at byte \d+: sample sample-00006 was changed"):
        reader.record(row)
    assert reader.record(row + 1) == records[row + 1]


def test_a_shard_that_is_cut_while_open_is_found(corpus: Path) -> None:
    reader = CorpusReader(corpus)
    (entry,) = reader.entries([22])
    first = min(offset for offset, _ in (entry.text, *entry.images))
    with (corpus / "shard-000004.tar").open("r+b") as file:
        file.truncate(entry.text[0] + 5)
    found = rf"{entry.text[0] + 5 - first} of \d+ bytes are there; run `make corpus` again"
    with pytest.raises(DamagedSample, match=rf"shard-000004\.tar at byte {first}: {found}"):
        reader.record(22)


def test_a_shard_that_is_gone_is_named(corpus: Path) -> None:
    reader = CorpusReader(corpus)
    (corpus / "shard-000000.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000000\.tar at byte \d+ cannot be read: No such file"):
        reader.record(0)
