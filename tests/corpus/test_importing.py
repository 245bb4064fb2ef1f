"""Every format through the whole step: the same corpus for any number of ranks and after any interruption, lengths
that are those of training, images byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from onevision.corpus.build import build_corpus
from onevision.corpus.formats import images, list_units
from onevision.corpus.reader import CorpusReader
from onevision.corpus.record import Record
from onevision.data.decode import image_patches
from onevision.data.loader import PackLoader
from onevision.data.template import encode
from onevision.data.tokenizer import load_tokenizer
from onevision.demo.source import CATEGORIES, build_source
from onevision.demo.tokenizer import build_tokenizer
from onevision.errors import DataError
from onevision.packing.build import build_packs
from onevision.recipe import DataRecipe
from onevision.training.inputs import open_sources
from tests.corpus.formats.sources import EN, FORMATS, read, write_llava, write_parquet, write_webdataset
from tests.fixtures import sample_record, tiny_tokenizer, write_records
from tests.forks import forked, wait_for

MPIEXEC = Path(sys.executable).with_name("mpiexec")
PROGRAM = """
import sys
from onevision.corpus.build import build_corpus
from onevision.ranks import find_ranks
from onevision.recipe import DataRecipe
options = dict(source=sys.argv[1], format=sys.argv[2], tokenizer=sys.argv[3], shard_samples=5, max_pixels=60_000)
build_corpus(DataRecipe(**options), sys.argv[4], find_ranks())
"""


@pytest.fixture
def data(tmp_path: Path, request: pytest.FixtureRequest) -> DataRecipe:
    """A recipe for a source of the format."""
    tiny_tokenizer(tmp_path / "tokenizer")
    source = tmp_path / "source"
    if request.param == "records":
        write_records(source, [sample_record(i, i % 4, 1 + i % 3) for i in range(23)])
    else:
        {"parquet": write_parquet, "webdataset": write_webdataset, "llava-json": write_llava}[request.param](source)
    return DataRecipe(
        source=str(source), format=request.param, tokenizer=str(tmp_path / "tokenizer"),
        corpus=str(tmp_path / "corpus"), packs=str(tmp_path / "packs"), shard_samples=5,
        max_pixels=60_000, sequence_length=1024,
    )  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "step.json"}


every_format = pytest.mark.parametrize("data", FORMATS, indirect=True)


def assert_lengths_are_those_of_training(data: DataRecipe) -> int:
    """Compare every sample's row with what training makes of it; returns how many samples there are.

    An epoch is read as in training, and every sample is encoded with the sizes of its decoded images.
    """
    build_packs(data, data.packs, report=lambda line: None)
    sources, tokenizer = open_sources(data), load_tokenizer(data.tokenizer)
    loader = PackLoader(sources, tokenizer, data, seed=1, global_batch_size=1, micro_batch_size=1)
    (source,) = sources.sources
    seen = []
    for step in range(source.packs.packs):
        (batch,) = loader.batches(step)
        assert not batch.skipped
        assert 4 * len(batch.image_slots) == len(batch.patches)
        seen += batch.sample_ids.tolist()
    assert sorted(seen) == list(range(len(source.corpus)))
    index = source.corpus.index
    for row in seen:
        record = source.corpus.record(row)
        grids = [image_patches(image, data.min_pixels, data.max_pixels)[1] for image in record.images]
        patches = [height * width for _, height, width in grids]
        assert sum(patches) == 4 * index.vision_tokens[row]
        encoded = encode(record, tokenizer, [count // 4 for count in patches])
        assert len(encoded.ids) == index.text_tokens[row] + index.vision_tokens[row]
    return len(seen)


@every_format
def test_records_and_lengths(data: DataRecipe) -> None:
    expected = read(data)
    summary = build_corpus(data, data.corpus).summary
    reader = CorpusReader(data.corpus)
    assert summary["rejected"] == 0 and len(reader) == len(expected) > 19
    assert [reader.record(row) for row in range(len(reader))] == expected  # images byte for byte
    assert assert_lengths_are_those_of_training(data) == len(expected)


@pytest.mark.slow
def test_lengths_of_the_demo_corpus(tmp_path: Path) -> None:
    build_source(tmp_path / "source", 7, dict.fromkeys(CATEGORIES, 120), {})
    build_tokenizer(tmp_path / "source" / "train", tmp_path / "tokenizer", vocab_size=1024)
    data = DataRecipe(
        source=str(tmp_path / "source" / "train"), tokenizer=str(tmp_path / "tokenizer"), shard_samples=1000,
        corpus=str(tmp_path / "corpus"), packs=str(tmp_path / "packs"), max_pixels=50_176, sequence_length=768,
    )  # fmt: skip
    samples = build_corpus(data, data.corpus).summary["samples"]
    assert assert_lengths_are_those_of_training(data) == samples == 120 * len(CATEGORIES)


@pytest.mark.parametrize("data", ["records", "parquet"], indirect=True)
@pytest.mark.parametrize("size", [1, 3])
def test_ranks_make_the_same_corpus(data: DataRecipe, size: int, tmp_path: Path) -> None:
    alone = build_corpus(data, tmp_path / "alone")
    arguments = [data.source, data.format, data.tokenizer, str(tmp_path / "out")]
    command = [str(MPIEXEC), "-n", str(size), sys.executable, "-m", "mpi4py", "-c", PROGRAM, *arguments]
    run = subprocess.run(command, timeout=200, check=True, capture_output=True, text=True)
    assert files(tmp_path / "out") == files(alone.folder)
    assert sum(line.startswith("corpus ") for line in run.stdout.splitlines()) == 1


def build_slowly(data: DataRecipe, at: int, marks: Path) -> None:
    """Build, and stop for good in the middle of unit `at`."""
    from onevision.corpus import part

    take = part.take
    shards = Path(data.corpus).with_name(".corpus.parts")

    def slow(record: Record, *args: object) -> object:
        if len(list(shards.glob("part-*.json"))) == at:
            (marks / "there").touch()
            wait_for(lambda: False)
        return take(record, *args)  # type: ignore[arg-type]

    part.take = slow  # type: ignore[assignment]
    build_corpus(data, data.corpus)


@every_format
def test_a_killed_import_goes_on_and_ends_the_same(data: DataRecipe, tmp_path: Path) -> None:
    units = len(list_units(data).units)
    work = tmp_path / ".corpus.parts"
    for at in (1, units - 1):
        with forked(build_slowly, data, at, tmp_path) as process:
            wait_for(lambda: (tmp_path / "there").exists() or not process.alive)
            assert process.alive, process.error
            process.kill()
        (tmp_path / "there").unlink()
        assert len(list(work.glob("part-*.json"))) == len(list(work.glob("shard-*.tar"))) == at
    kept = {path.name: path.stat().st_mtime_ns for path in work.glob("shard-*.tar")}
    resumed = build_corpus(data, data.corpus)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in resumed.folder.glob("shard-*.tar")}.items()
    assert files(resumed.folder) == files(build_corpus(data, tmp_path / "undisturbed").folder)
    assert not list(resumed.folder.glob(".*"))


@pytest.mark.parametrize("data", ["records", "llava-json"], indirect=True)
def test_image_files_are_asked_for_by_threads_where_answers_take_long(
    data: DataRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = list_units(data).digest
    for name, value in {"SLOW": 0.0, "CHUNK": 2, "THREADS": 3}.items():
        monkeypatch.setattr(images, name, value)
    assert list_units(data).digest == plain
    largest = max(Path(data.source).rglob("*.[jp][pn]g"), key=lambda path: path.stat().st_size)
    largest.rename(largest.with_suffix(".gone"))
    assert list_units(data).digest != plain


@every_format
def test_an_unchanged_source_is_not_read_again(data: DataRecipe) -> None:
    build_corpus(data, data.corpus)
    assert build_corpus(data, data.corpus).skipped
    found = [path for path in Path(data.source).rglob("*") if path.is_file()]
    largest = max(found, key=lambda path: path.stat().st_size)
    with largest.open("ab") as file:
        file.write(b"\n")
    assert not build_corpus(replace(data, reject_threshold=1.0), data.corpus).skipped


@pytest.mark.parametrize("data", ["webdataset", "parquet", "llava-json"], indirect=True)
def test_a_file_that_breaks_off_is_more_than_one_record(data: DataRecipe) -> None:
    sources = [path for path in Path(data.source).rglob("*") if path.suffix in (".tar", ".parquet", ".json", ".jsonl")]
    path = max((path for path in sources if path.suffix != ".jsonl"), key=lambda path: path.stat().st_size)
    os.truncate(path, path.stat().st_size * 9 // 10 // 512 * 512)
    files = len(sources)
    share = rf"1 of {files} files cannot be read to the end \({1 / files:.1%}, .*; 1 of \d\d records rejected: 1 \w+_un"
    with pytest.raises(DataError, match=share):
        build_corpus(replace(data, reject_threshold=0.99 / files), data.corpus)
    assert pq.read_table(f"{data.corpus}.rejects.parquet").num_rows == 1
    assert build_corpus(replace(data, reject_threshold=1 / files), data.corpus).summary["rejected"] == 1


@pytest.mark.parametrize("data", ["webdataset", "parquet"], indirect=True)
def test_captions_are_filtered_by_default(data: DataRecipe) -> None:
    data = replace(data, reject_threshold=1.0, min_caption=len(EN.format(10)))  # numbers below ten, and Chinese
    strict = build_corpus(data, data.corpus)
    rejects = pq.read_table(strict.folder / "rejects.parquet").to_pylist()
    assert set(strict.summary["rejects_by_reason"]) == {"caption_length"} and len(rejects) > 3
    off = build_corpus(replace(data, filters="none"), data.corpus)
    assert off.summary["rejected"] == 0 and off.summary["samples"] == strict.summary["samples"] + len(rejects)
