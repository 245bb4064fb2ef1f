"""Shards below a URL, and reads that fail for a while."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from onevision.corpus import store as module
from onevision.corpus.reader import CorpusReader, DamagedSample
from onevision.corpus.record import Record
from onevision.corpus.store import LocalShards, RemoteShards, open_store, read_range
from onevision.errors import DataError, InputError


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits between two tries."""
    monkeypatch.setattr(module, "WAITS", (0.0, 0.0, 0.0))


@pytest.fixture
def memory(corpus: Path) -> Iterator[str]:
    """The shards in fsspec's memory, and no longer beside corpus.h5."""
    files = fsspec.filesystem("memory")
    for shard in corpus.glob("*.tar"):
        files.pipe_file(f"/bucket/corpus/{shard.name}", shard.read_bytes())
        shard.unlink()
    yield "memory://bucket/corpus"
    files.rm("/bucket", recursive=True)


def test_records_come_from_an_object_store(corpus: Path, records: list[Record], memory: str) -> None:
    reader = CorpusReader(corpus, memory)
    assert isinstance(reader.store, RemoteShards)
    assert [reader.record(row) for row in range(23)] == records


def test_records_come_from_another_folder_and_from_a_file_url(
    corpus: Path, records: list[Record], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for shard in corpus.glob("*.tar"):
        shard.rename(elsewhere / shard.name)
    for where in (str(elsewhere), f"file://{elsewhere}", f"{elsewhere}/"):
        reader = CorpusReader(corpus, where)
        assert [reader.record(row) for row in (0, 7, 22)] == [records[row] for row in (0, 7, 22)]
    assert isinstance(open_store(str(elsewhere)), LocalShards)


def test_a_sample_costs_one_request(corpus: Path, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []
    read = MemoryFileSystem.cat_file

    def counted(self: MemoryFileSystem, path: str, start: int, end: int) -> bytes:
        requests.append(path)
        return read(self, path, start, end)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    reader = CorpusReader(corpus, memory)
    assert max(len(entry.images) for entry in reader.entries(range(23))) > 1
    for row in range(23):
        reader.record(row)
    assert len(requests) == 23


def test_what_is_missing_or_cut_in_an_object_store_is_one_line(corpus: Path, memory: str) -> None:
    files = fsspec.filesystem("memory")
    reader = CorpusReader(corpus, memory)
    whole = files.cat_file("/bucket/corpus/shard-000000.tar")
    files.pipe_file("/bucket/corpus/shard-000000.tar", whole[:-100])
    with pytest.raises(DataError) as caught:
        CorpusReader(corpus, memory)
    assert str(caught.value) == (
        f"memory://bucket/corpus/shard-000000.tar has {len(whole) - 100} bytes, {corpus}/corpus.h5 says {len(whole)}: "
        "copy it there again"
    )
    files.pipe_file("/bucket/corpus/shard-000000.tar", whole[:600])
    with pytest.raises(DamagedSample, match=r"^memory://bucket/corpus/shard-000000.tar at byte 512: 88 of \d+ bytes"):
        reader.record(0)
    files.rm("/bucket/corpus/shard-000000.tar")
    with pytest.raises(DataError, match=r"^memory://bucket/corpus/shard-000000.tar is missing, .*corpus.h5 says \d+"):
        CorpusReader(corpus, memory)
    with pytest.raises(DataError, match=r"^memory://bucket/corpus/shard-000000.tar at byte 512 cannot be read"):
        reader.record(0)


def test_a_url_that_nothing_can_read_is_refused(corpus: Path) -> None:
    with pytest.raises(InputError, match="^shards at nowhere://bucket cannot be read: Protocol not known: nowhere"):
        CorpusReader(corpus, "nowhere://bucket")


class Failing:
    """Replaces a read: the first `times` calls raise `error`."""

    def __init__(self, read: Callable[..., bytes], error: Exception, times: int) -> None:
        self.read, self.error, self.times, self.calls = read, error, times, 0

    def __call__(self, *arguments: object, **options: object) -> bytes:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.read(*arguments, **options)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(5, "Input/output error"), "Input/output error"),
        (TimeoutError(), "TimeoutError"),
        (RuntimeError("connection\nreset"), "connection reset"),  # backends raise what they like
    ],
)
def test_what_passes_is_tried_again_and_what_stays_is_one_line(
    corpus: Path, records: list[Record], memory: str, error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = CorpusReader(corpus, memory)
    files = fsspec.filesystem("memory")
    read = files.cat_file
    monkeypatch.setattr(files, "cat_file", Failing(read, error, times=3))
    assert reader.record(5) == records[5]
    failing = Failing(read, error, times=4)
    monkeypatch.setattr(files, "cat_file", failing)
    with pytest.raises(DataError) as caught:
        reader.record(5)
    assert str(caught.value).startswith("memory://bucket/corpus/shard-000001.tar at byte ")
    assert str(caught.value).endswith(f" cannot be read: {line} (4 tries)") and "\n" not in str(caught.value)
    assert failing.calls == 4


def test_a_local_read_that_fails_opens_its_file_again(
    corpus: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = CorpusReader(corpus)
    assert reader.record(5) == records[5]
    failing = Failing(os.pread, OSError(116, "Stale file handle"), times=1)
    monkeypatch.setattr(os, "pread", failing)
    assert reader.record(5) == records[5]
    assert failing.calls == 2


def test_what_is_missing_or_forbidden_is_not_tried_again(tmp_path: Path) -> None:
    store = LocalShards(tmp_path)
    failing = Failing(store.read, PermissionError(13, "Permission denied"), times=9)
    store.read = failing  # type: ignore[method-assign]
    with pytest.raises(DataError, match="a.tar at byte 3 cannot be read: Permission denied$"):
        read_range(store, "a.tar", 3, 5)
    assert failing.calls == 1
