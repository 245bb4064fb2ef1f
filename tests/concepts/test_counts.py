"""Words and bigrams of the captions of a real small corpus."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from onevision.concepts.counts import count_corpus, tokens, written
from onevision.concepts.names import collect_names
from onevision.corpus.build import build_corpus
from onevision.corpus.index import CorpusIndex
from onevision.corpus.record import Message, Part, Record
from onevision.errors import DataError, InputError
from onevision.files import read_json
from onevision.ranks import ALONE
from onevision.recipe import ConceptRecipe, DataRecipe
from tests.fixtures import sample_record, tiny_tokenizer, write_records

CAPTIONS = [
    "A red house near the Golden Gate bridge.",
    "The golden gate, and a RED sea-urchin; 3 doors.",
    "葡萄和红色的门。",
    "红色的葡萄, a red house",
    "Golden Gate and the house's door",
]


def captioned(i: int, text: str) -> Record:
    record = sample_record(i)
    return replace(record, messages=(record.messages[0], Message("assistant", (Part("text", text),))))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRecipe:
    root = tmp_path_factory.mktemp("captions")
    tiny_tokenizer(root / "tokenizer")
    write_records(root / "records", [captioned(i, text) for i, text in enumerate(CAPTIONS)])
    data = DataRecipe(
        source=str(root / "records"), corpus=str(root / "corpus"), tokenizer=str(root / "tokenizer"), shard_samples=2
    )
    build_corpus(data, data.corpus)
    return data


def test_tokens_and_their_neighbours() -> None:
    assert list(tokens("The RED fox's sea-urchin: 42 eggs, it\nsays.")) == [
        ["the", "red", "fox's", "sea-urchin"], ["42", "eggs"], ["it", "says"],
    ]  # fmt: skip
    assert list(tokens("红色的门。iPhone 15手机")) == [["红", "色", "的", "门"], ["iphone", "15", "手", "机"]]
    assert list(tokens("Ein Cafe\u0301 — schön_er")) == [["ein", "café"], ["schön"], ["er"]]
    assert list(tokens("हिन्दी भाषा, שָׁלוֹם")) == [["हिन्दी", "भाषा"], [unicodedata.normalize("NFC", "שָׁלוֹם")]]
    assert list(tokens("…!")) == []
    assert list(tokens("red - blue--green 'grey' 红-色")) == [
        ["red"], ["blue"], ["green"], ["grey"], ["红"], ["色"],
    ]  # fmt: skip
    assert written("golden", "gate") == "golden gate"
    assert written("葡", "萄") == "葡萄" and written("15", "手") == "15 手"


def test_counts_are_those_of_all_captions(data: DataRecipe, tmp_path: Path) -> None:
    words: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for text in CAPTIONS:
        for run in tokens(text):
            words.update(run)
            pairs.update(zip(run, run[1:], strict=False))
    assert len(CorpusIndex.open(data.corpus).shards) == 3
    lines: list[str] = []
    counts = count_corpus(data, 2, tmp_path / "counts", ALONE, lines.append)
    assert counts.words == {word: count for word, count in words.items() if count >= 2}
    assert counts.bigrams == {pair: count for pair, count in pairs.items() if count >= 2}
    assert counts.total == words.total() and counts.samples == len(CAPTIONS)
    assert counts.bigrams["葡", "萄"] == 2 and counts.bigrams["golden", "gate"] == 3
    frequencies = list(counts.words.values())
    assert frequencies == sorted(frequencies, reverse=True)
    assert len(lines) == 1 and f"{words.total()} words in 5 captions" in lines[0]
    assert sorted(path.name for path in (tmp_path / "counts").iterdir()) == ["counts.parquet", "step.json"]
    assert count_corpus(data, 2, tmp_path / "counts", ALONE, lines.append) == counts
    assert lines[1].endswith("(unchanged)")


def test_other_shards_give_the_same_counts(data: DataRecipe, tmp_path: Path) -> None:
    other = replace(data, shard_samples=100, corpus=str(tmp_path / "corpus"))
    build_corpus(other, other.corpus)
    folders = tmp_path / "a", tmp_path / "b"
    for recipe, folder in zip((data, other), folders, strict=True):
        count_corpus(recipe, 2, folder, ALONE, print)
    assert (folders[0] / "counts.parquet").read_bytes() == (folders[1] / "counts.parquet").read_bytes()


def test_names_of_the_corpus(data: DataRecipe, tmp_path: Path) -> None:
    counts = count_corpus(data, 2, tmp_path / "counts", ALONE, print)
    recipe = ConceptRecipe(words="corpus", bigrams="corpus", min_word_count=2, min_bigram_pmi=3.0)
    names = collect_names(recipe, 0.0, counts)
    wanted = [
        written(*pair)
        for pair, count in counts.bigrams.items()
        if math.log2(count * counts.total / (counts.words[pair[0]] * counts.words[pair[1]])) >= 3.0
    ]
    assert names.names == [*counts.words, *wanted]
    assert {"golden gate", "葡萄", "红色"} <= set(wanted) and "色的" in {written(*pair) for pair in counts.bigrams}
    assert names.frequency[names.names.index("葡萄")] == 2
    with pytest.raises(InputError) as caught:
        collect_names(replace(recipe, min_bigram_pmi=30.0), 0.0, counts)
    assert f"keeps no bigram of a corpus of {counts.total} words" in str(caught.value)
    assert "set it lower" in str(caught.value)


def test_damaged_samples_are_counted(data: DataRecipe, tmp_path: Path) -> None:
    copy = replace(data, corpus=str(tmp_path / "corpus"))
    build_corpus(copy, copy.corpus)
    index = CorpusIndex.open(copy.corpus)
    shard = Path(copy.corpus) / index.shards[0]
    whole = shard.read_bytes()
    start = int(index.json_offset[0])
    shard.write_bytes(whole[:start] + b"x" + whole[start + 1 :])
    with pytest.raises(DataError) as caught:
        count_corpus(copy, 1, tmp_path / "counts", ALONE, print)
    assert "1 of 5 samples are damaged, more than data.reject_threshold=0.01 allows" in str(caught.value)
    counts = count_corpus(replace(copy, reject_threshold=0.5), 1, tmp_path / "counts", ALONE, print)
    assert "bridge" not in counts.words and counts.words["red"] == 2
    assert read_json(tmp_path / "counts" / "step.json")["summary"]["damaged"] == 1
