from __future__ import annotations

from pathlib import Path

import pytest

from onevision.corpus.build import build_corpus
from onevision.corpus.record import Record
from onevision.recipe import DataRecipe
from tests.fixtures import sample_record, tiny_tokenizer, write_records


@pytest.fixture(scope="session")
def records() -> list[Record]:
    return [sample_record(i, i % 4, 1 + i % 3) for i in range(23)]


@pytest.fixture
def data(tmp_path: Path, records: list[Record]) -> DataRecipe:
    """A data recipe whose source and tokenizer exist: 23 records, to be cut into 5 shards."""
    tiny_tokenizer(tmp_path / "tokenizer")
    write_records(tmp_path / "source", records)
    return DataRecipe(
        source=str(tmp_path / "source"), tokenizer=str(tmp_path / "tokenizer"), shard_samples=5, reject_threshold=0.5
    )


@pytest.fixture
def corpus(tmp_path: Path, data: DataRecipe) -> Path:
    """The corpus folder of `data`."""
    return build_corpus(data, tmp_path / "corpus").folder
