"""The vocabulary step: what it leaves, what refuses it, any number of ranks, and a kill in between."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from onevision.concepts import vocabulary as vocabulary_step
from onevision.concepts.encoders import load_encoder
from onevision.concepts.vocabulary import FILE, LIST, Vocabulary, build_vocabulary
from onevision.corpus.build import build_corpus
from onevision.errors import DataError, InputError
from onevision.files import read_json
from onevision.recipe import ConceptRecipe, DataRecipe, Recipe, save_recipe
from tests.concepts.test_counts import CAPTIONS, captioned
from tests.concepts.tiny_clip import DIMENSION, save_tiny_clip
from tests.fixtures import edited, tiny_tokenizer, write_records
from tests.kills import kill_after_parts

MPIEXEC = Path(sys.executable).with_name("mpiexec")
FEW = 512  # names of a part
PROGRAM = f"""
import sys
from onevision.concepts import vocabulary
from onevision.ranks import find_ranks
from onevision.recipe import load_recipe
vocabulary.PART_NAMES = {FEW}
vocabulary.build_vocabulary(load_recipe(sys.argv[1]), sys.argv[2], find_ranks())
"""


def write_list(path: Path, count: int) -> str:
    """Many different names."""
    path.write_text("".join(f"thing {chr(97 + i % 26)}{chr(97 + i // 26 % 26)} {i}\n" for i in range(count)))
    return str(path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_clip(tmp_path_factory.mktemp("clip")))


@pytest.fixture
def recipe(clip: str, tmp_path: Path) -> Recipe:
    mine = write_list(tmp_path / "mine.txt", 100)
    words = tmp_path / "words.txt"
    words.write_text("cat\t100\nbroken\ndog\t200\nthing ba 1\t300\n")
    concepts = ConceptRecipe(
        words=str(words), lists=[mine], encoder="clip", weights=clip, templates=["{}", "a photo of a {}."]
    )
    return Recipe(concepts=concepts, data=DataRecipe(reject_threshold=0.5))


def test_what_the_step_leaves(recipe: Recipe, tmp_path: Path) -> None:
    lines: list[str] = []
    result = build_vocabulary(recipe, tmp_path / "vocabulary", report=lines.append)
    vocabulary = Vocabulary.open(tmp_path / "vocabulary")
    assert len(vocabulary) == 102 and vocabulary.names[:4] == ("cat", "dog", "thing ba 1", "thing aa 0")
    assert (tmp_path / "vocabulary" / LIST).read_text().splitlines() == list(vocabulary.names)
    assert vocabulary.provenance[:4].tolist() == [2, 2, 18, 16]
    assert vocabulary.frequency[:4].tolist() == [100, 200, 300, 0]
    encoder = load_encoder(recipe.concepts)
    both = [encoder.texts([shape.format(name) for name in vocabulary.names]) for shape in recipe.concepts.templates]
    mean = np.mean(both, axis=0)
    wanted = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float16)
    assert vocabulary.embedding.shape == (102, DIMENSION) and vocabulary.embedding.dtype == np.float16
    assert np.array_equal(vocabulary.embedding, wanted)
    assert vocabulary.encoder == encoder.fingerprint and vocabulary.templates == ("{}", "a photo of a {}.")
    assert result.summary == {
        "concepts": 102,
        "dimension": DIMENSION,
        "sources": {"words": {"named": 3, "added": 3}, "lists": {"named": 100, "added": 99}},
        "rejects": {recipe.concepts.words: {"no_count": 1}},
        "fingerprint": vocabulary.fingerprint,
    }
    assert lines == [
        f"vocabulary {tmp_path}/vocabulary: 102 concepts (3 of words, 99 of lists), {DIMENSION} values each, "
        "1 lines rejected"
    ]
    assert sorted(path.name for path in (tmp_path / "vocabulary").iterdir()) == [LIST, "step.json", FILE]
    with h5py.File(vocabulary.path) as file:
        assert file["name"][0] == b"cat" and file["embedding"].chunks is None


def test_again_only_when_something_changed(recipe: Recipe, tmp_path: Path) -> None:
    output = tmp_path / "vocabulary"
    first = build_vocabulary(recipe, output).summary["fingerprint"]
    assert build_vocabulary(recipe, output).skipped
    templates = replace(recipe, concepts=replace(recipe.concepts, templates=["{}"]))
    assert build_vocabulary(templates, output).summary["fingerprint"] != first
    Path(recipe.concepts.words).write_text("cat\t101\nbroken\ndog\t200\nthing ba 1\t300\n")
    counted = build_vocabulary(recipe, output)
    assert not counted.skipped and counted.summary["fingerprint"] != first
    save_tiny_clip(tmp_path / "other", seed=1)
    other = replace(recipe, concepts=replace(recipe.concepts, weights=str(tmp_path / "other")))
    assert build_vocabulary(other, output).summary["fingerprint"] != counted.summary["fingerprint"]


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda data: data[:500], "is damaged"),
        (lambda data: data[: len(data) // 2], "is damaged"),
        (lambda data: b"", "is damaged"),
    ],
)
def test_a_damaged_vocabulary_is_refused_and_made_again(
    damage: Callable[[bytes], bytes], found: str, recipe: Recipe, tmp_path: Path
) -> None:
    output = tmp_path / "vocabulary"
    whole = build_vocabulary(recipe, output).summary
    file = output / FILE
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=f"{file} {found}.*: run `make vocabulary` again"):
        Vocabulary.open(output)
    lines: list[str] = []
    again = build_vocabulary(recipe, output, report=lines.append)
    assert not again.skipped and again.summary == whole and lines[0].startswith("the vocabulary is made again: ")
    assert Vocabulary.open(output).fingerprint == whole["fingerprint"]


def test_files_that_are_no_vocabulary(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="vocabulary.h5 does not exist: run `make vocabulary`, or set concepts.vocab"):
        Vocabulary.open(tmp_path)
    build_vocabulary(recipe, tmp_path / "vocabulary")
    with edited(tmp_path / "vocabulary" / FILE) as file:
        del file["frequency"]
        file["frequency"] = np.zeros(3, np.int64)
    with pytest.raises(DataError, match="its columns do not fit each other"):
        Vocabulary.open(tmp_path / "vocabulary")
    with edited(tmp_path / "vocabulary" / FILE) as file:
        file.attrs["format_version"] = 99
    with pytest.raises(InputError, match="has format 99, not 1: run `make vocabulary` again"):
        Vocabulary.open(tmp_path / "vocabulary")


def test_wrong_settings_leave_nothing(recipe: Recipe, tmp_path: Path) -> None:
    changes = {
        "concepts.templates is empty": {"templates": []},
        "'a photo' has no {}": {"templates": ["{}", "a photo"]},
        "a vocabulary has no source": {"words": "", "lists": []},
        "is no folder of a CLIP model": {"weights": str(tmp_path)},
    }
    for message, change in changes.items():
        with pytest.raises(InputError) as caught:
            build_vocabulary(replace(recipe, concepts=replace(recipe.concepts, **change)), tmp_path / "vocabulary")
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="1 of 4 lines"):
        build_vocabulary(replace(recipe, data=DataRecipe()), tmp_path / "vocabulary")
    assert not (tmp_path / "vocabulary").exists()


def command(recipe: Path, output: Path, ranks: int) -> list[str]:
    program = [sys.executable, "-m", "mpi4py", "-c", PROGRAM, str(recipe), str(output)]
    return [str(MPIEXEC), "-n", str(ranks), *program]


@pytest.mark.slow
def test_two_ranks_that_go_on_after_a_kill_leave_what_one_leaves(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_step, "PART_NAMES", FEW)
    tiny_tokenizer(tmp_path / "tokenizer")
    write_records(tmp_path / "records", [captioned(i, text) for i, text in enumerate(CAPTIONS)])
    data = DataRecipe(
        source=str(tmp_path / "records"), corpus=str(tmp_path / "corpus"), tokenizer=str(tmp_path / "tokenizer"),
        shard_samples=2,
    )  # fmt: skip
    build_corpus(data, data.corpus)
    concepts = replace(
        recipe.concepts, words="corpus", bigrams="corpus", min_word_count=1, min_bigram_pmi=4, encoder_batch=16,
        lists=[write_list(tmp_path / "many.txt", 3 * FEW)],
    )  # fmt: skip
    recipe, file = replace(recipe, data=data, concepts=concepts), tmp_path / "recipe.yaml"
    save_recipe(recipe, file)
    alone = build_vocabulary(recipe, tmp_path / "alone")
    assert alone.summary["concepts"] > 3 * FEW  # four parts

    output, work = tmp_path / "killed", tmp_path / ".killed.parts"
    kill_after_parts(command(file, output, 1), work, 1)
    assert not output.exists() and list(work.glob("part-*.json"))
    first = {path.name: path.stat().st_mtime_ns for path in work.glob("part-*.json")}
    assert 1 <= len(first) < 4
    subprocess.run(command(file, output, 2), timeout=250, check=True)

    assert read_json(output / "step.json")["summary"] == alone.summary
    assert (output / LIST).read_bytes() == (tmp_path / "alone" / LIST).read_bytes()
    vocabulary, wanted = Vocabulary.open(output), Vocabulary.open(tmp_path / "alone")
    assert vocabulary.fingerprint == wanted.fingerprint
    assert np.array_equal(vocabulary.embedding, wanted.embedding)


def test_a_start_that_ended_after_the_file_was_written_goes_on(recipe: Recipe, tmp_path: Path) -> None:
    """The work folder of a start that was killed while it removed what it no longer needs."""
    whole = build_vocabulary(recipe, tmp_path / "a").summary
    work = tmp_path / ".b.parts"
    work.mkdir()
    for name in (FILE, LIST):
        (work / name).write_bytes((tmp_path / "a" / name).read_bytes())
    (work / "part-00000.json").write_text(f'{{"dimension": {DIMENSION}}}')
    (work / "key.json").write_text(f'"{read_json(tmp_path / "a" / "step.json")["key"]}"')
    assert build_vocabulary(recipe, tmp_path / "b").summary == whole
    assert Vocabulary.open(tmp_path / "b").fingerprint == whole["fingerprint"]
