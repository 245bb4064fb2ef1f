"""The mean of real packs."""

from __future__ import annotations

from pathlib import Path

import pytest

from onevision.corpus.build import build_corpus
from onevision.corpus.index import CorpusIndex
from onevision.errors import InputError
from onevision.packing.build import build_packs
from onevision.packing.index import PackIndex
from onevision.planning.packs import mean_of
from onevision.recipe import DataRecipe
from tests.fixtures import sample_record, tiny_tokenizer, write_records


def test_the_mean_pack_of_an_index(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path / "tokenizer")
    write_records(tmp_path / "records", [sample_record(number, images=1) for number in range(20)])
    data = DataRecipe(
        source=str(tmp_path / "records"), corpus=str(tmp_path / "corpus"), tokenizer=str(tmp_path / "tokenizer"),
        sequence_length=512,
    )  # fmt: skip
    build_corpus(data, data.corpus)
    build_packs(data, tmp_path / "packs")
    corpus, index = CorpusIndex.open(data.corpus), PackIndex.open(tmp_path / "packs")
    packs = mean_of(tmp_path / "packs", 512)
    assert packs.samples == 20 / index.packs
    assert packs.sample_tokens == pytest.approx(corpus.lengths[:].mean())
    assert packs.sample_patches == pytest.approx(corpus.patches[:].mean())
    assert packs.most_patches == index.most_patches
    assert packs.fill == pytest.approx(corpus.lengths[:].sum() / index.packs / 512)
    with pytest.raises(InputError, match="packs of 512, and the plan is for data.sequence_length=8192"):
        mean_of(tmp_path / "packs", 8192)
