from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from onevision.corpus import join
from onevision.corpus import part as module
from onevision.corpus.build import build_corpus
from onevision.corpus.index import CorpusIndex
from onevision.corpus.reader import CorpusReader
from onevision.corpus.record import Message, Part, Record
from onevision.data.decode import image_patches
from onevision.data.image import ImageError
from onevision.errors import DataError, InputError
from onevision.recipe import DataRecipe
from onevision.steps import step_summary
from tests.fixtures import image_bytes, sample_record, tiny_tokenizer, write_records


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "step.json"}


def test_summary(tmp_path: Path, data: DataRecipe, records: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    result = build_corpus(data, tmp_path / "corpus", report=lines.append)
    index = CorpusIndex.open(result.folder)
    names = [record.category for record in records]
    assert not result.skipped and result.summary == step_summary(tmp_path / "corpus")
    assert result.summary == {
        "samples": 23,
        "rejected": 0,
        "rejects_by_reason": {},
        "shards": 5,
        "images": sum(len(record.images) for record in records),
        "text_tokens": int(np.sum(index.text_tokens)),
        "vision_tokens": int(np.sum(index.vision_tokens)),
        "samples_by_category": {name: names.count(name) for name in ("digits", "charts", "text")},
        "tokens_per_category": {
            name: int(index.lengths[index.category == k].sum()) for k, name in enumerate(index.categories)
        },
        "source": result.summary["source"],
        "fingerprint": index.fingerprint,
    }
    assert "5/5 shards" in capsys.readouterr().out
    assert len(lines) == 1 and "23 samples in 5 shards" in lines[0]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, data: DataRecipe, records: list[Record]) -> None:
    first = build_corpus(data, tmp_path / "one")
    write_records(tmp_path / "again", records)
    second = build_corpus(replace(data, source=str(tmp_path / "again")), tmp_path / "two")
    assert files(first.folder) == files(second.folder)
    assert "shard-000004.tar" in files(first.folder)
    assert first.summary == second.summary


def test_an_unchanged_step_is_skipped(tmp_path: Path, data: DataRecipe) -> None:
    first = build_corpus(data, tmp_path / "corpus")
    times = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    second = build_corpus(data, tmp_path / "corpus")
    assert second.skipped and second.summary == first.summary
    assert times == {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}


@pytest.mark.parametrize("change,same", [
    ({"min_pixels": 6272}, False), ({"max_pixels": 100_000}, False), ({"filters": "all"}, True),
    ({"verify_images": True}, True), ({"shard_samples": 6}, True),
])  # fmt: skip
def test_changed_settings_build_again(tmp_path: Path, data: DataRecipe, change: dict[str, Any], same: bool) -> None:
    first = build_corpus(data, tmp_path / "corpus").summary["fingerprint"]
    second = build_corpus(replace(data, **change), tmp_path / "corpus")
    assert not second.skipped
    assert (second.summary["fingerprint"] == first) == same  # packs stay good when only the storage differs


def test_changed_source_or_tokenizer_builds_again(tmp_path: Path, data: DataRecipe, records: list[Record]) -> None:
    fingerprints = [build_corpus(data, tmp_path / "corpus").summary["fingerprint"]]
    image = next(Path(data.source).glob("images/*.png"))
    image.write_bytes(image.read_bytes() + b"\0")  # Pillow does not mind, the content is another
    changed = build_corpus(data, tmp_path / "corpus")
    fingerprints.append(changed.summary["fingerprint"])
    path = tiny_tokenizer(data.tokenizer).path
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    retold = build_corpus(data, tmp_path / "corpus")
    fingerprints.append(retold.summary["fingerprint"])
    assert not changed.skipped and not retold.skipped and len(set(fingerprints)) == 3


def test_a_damaged_corpus_is_built_again(tmp_path: Path, data: DataRecipe) -> None:
    whole = files(build_corpus(data, tmp_path / "corpus").folder)
    with (tmp_path / "corpus" / "shard-000001.tar").open("r+b") as file:
        file.truncate(100)
    lines: list[str] = []
    result = build_corpus(data, tmp_path / "corpus", report=lines.append)
    assert not result.skipped and files(result.folder) == whole
    assert "shard-000001.tar has 100 bytes" in lines[0]


def bad_records(records: list[Record]) -> list[Record]:
    def with_image(name: str, image: bytes) -> Record:
        return replace(sample_record(0), id=name, images=(image,))

    spoken = (Message("user", (Part("text", "Q"),)), Message("assistant", (Part("text", " "),)))
    return [
        *records[:20],
        with_image("dot", image_bytes(1, 1)),
        with_image("strip", image_bytes(20_000, 20)),
        with_image("cut", image_bytes(60, 60)),  # its file is cut below
        replace(sample_record(0, 0), id="mute", messages=spoken),
        replace(sample_record(1), id=records[3].id),
    ]


def write_bad(data: DataRecipe, records: list[Record]) -> None:
    shutil.rmtree(data.source)
    folder = write_records(data.source, bad_records(records))
    (folder / "images" / "00022_0.png").write_bytes(image_bytes(60, 60)[:20])


def test_bad_records_go_into_the_ledger(tmp_path: Path, data: DataRecipe, records: list[Record]) -> None:
    write_bad(data, records)
    lines: list[str] = []
    result = build_corpus(data, tmp_path / "corpus", report=lines.append)
    assert result.summary["samples"] == 20 and result.summary["rejected"] == 5
    assert result.summary["rejects_by_reason"] == {
        "duplicate_id": 1, "empty_answer": 1, "image_aspect": 1, "image_too_small": 1, "image_undecodable": 1,
    }  # fmt: skip
    ledger = pq.read_table(result.folder / "rejects.parquet").to_pylist()
    assert [(row["id"], row["reason"]) for row in ledger] == [
        ("dot", "image_too_small"),
        ("strip", "image_aspect"),
        ("cut", "image_undecodable"),
        ("mute", "empty_answer"),
        (records[3].id, "duplicate_id"),
    ]
    assert {row["unit"] for row in ledger} == {"records.jsonl rows 21 to 25"}
    assert "20000x20" in ledger[1]["detail"] and "1x1" in ledger[0]["detail"]
    assert "5 rejected: 1 duplicate_id, " in lines[-1]
    reader = CorpusReader(result.folder)
    assert [reader.record(row) for row in range(20)] == records[:20]


def test_too_many_rejects_fail_and_keep_what_was_there(
    tmp_path: Path, data: DataRecipe, records: list[Record]
) -> None:
    output = tmp_path / "corpus"
    before = files(build_corpus(data, output).folder)
    write_bad(data, records)
    with pytest.raises(DataError) as raised:
        build_corpus(replace(data, reject_threshold=0.19), output)
    message = str(raised.value)
    kept = tmp_path / "corpus.rejects.parquet"
    assert "5 of 25 records rejected (20.0%, data.reject_threshold=0.19)" in message
    assert "1 image_aspect" in message and str(kept) in message and "\n" not in message
    assert pq.read_table(kept).num_rows == 5
    assert files(output) == before
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".corpus.parts").glob("shard-*")}
    assert len(times) == 5
    build_corpus(replace(data, reject_threshold=0.2), output)  # exactly the share is allowed, and nothing is read again
    assert not kept.exists() and not (tmp_path / ".corpus.parts").exists()
    assert {path.name: path.stat().st_mtime_ns for path in output.glob("shard-*")} == times
    with pytest.raises(DataError, match=r"5 of 25 records rejected \(20.0%, data.reject_threshold=0.19\)"):
        build_corpus(replace(data, reject_threshold=0.19), output)  # a finished one is held to the share as well
    assert pq.read_table(kept).num_rows == 5
    assert build_corpus(replace(data, reject_threshold=0.3), output).skipped and not kept.exists()


def test_a_source_with_nothing_usable_fails_at_any_threshold(tmp_path: Path, data: DataRecipe) -> None:
    everything = replace(data, reject_threshold=1.0)
    (Path(data.source) / "records.jsonl").write_text("{}\n[]\n")
    with pytest.raises(DataError, match="2 of 2 records rejected"):
        build_corpus(everything, tmp_path / "corpus")
    (Path(data.source) / "records.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no records"):
        build_corpus(everything, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_corrupt_body_slips_through_unless_verified(tmp_path: Path, data: DataRecipe, format: str) -> None:
    whole = image_bytes(200, 160, format=format)
    broken = replace(sample_record(0), id="broken", images=(whole[: len(whole) // 2],))
    write_records(data.source, [broken, sample_record(1), sample_record(2)])
    reader = CorpusReader(build_corpus(data, tmp_path / "loose").folder)
    assert reader.record(0) == broken
    with pytest.raises(ImageError, match="image_undecodable"):
        image_patches(reader.record(0).images[0], data.min_pixels, data.max_pixels)
    strict = build_corpus(replace(data, verify_images=True), tmp_path / "strict")
    assert strict.summary["rejects_by_reason"] == {"image_undecodable": 1} and strict.summary["samples"] == 2


def test_of_equal_ids_in_several_units_the_first_is_kept(
    tmp_path: Path, data: DataRecipe, records: list[Record]
) -> None:
    again = [replace(records[k], id=records[j].id) for k, j in ((4, 0), (5, 1), (6, 20), (9, 1))]
    write_records(data.source, [*records[:6], again[0], *records[6:20], again[1], again[2], again[3], *records[20:]])
    result = build_corpus(data, tmp_path / "corpus")
    assert result.summary["samples"] == 23 and result.summary["rejects_by_reason"] == {"duplicate_id": 4}
    reader = CorpusReader(result.folder)
    expected = [*records[:20], again[2], *records[21:]]  # the record of the twentieth comes after one with its id
    assert [reader.record(row) for row in range(23)] == expected
    ledger = pq.read_table(result.folder / "rejects.parquet").to_pylist()
    assert [(row["id"], row["unit"]) for row in ledger] == [
        (records[0].id, "records.jsonl rows 6 to 10"),
        *((records[k].id, "records.jsonl rows 21 to 25") for k in (1, 20, 1)),  # the last one by joining
    ]
    write_records(tmp_path / "unique", expected)
    unique = build_corpus(replace(data, source=str(tmp_path / "unique")), tmp_path / "other")
    assert unique.summary["fingerprint"] == result.summary["fingerprint"]


def test_joining_may_be_interrupted_anywhere(
    tmp_path: Path, data: DataRecipe, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = [*records, *(replace(record, category="again") for record in records[::2])]
    write_records(data.source, twice)
    whole = files(build_corpus(data, tmp_path / "whole").folder)
    calls = [(join, "without_rows", 0), (join, "without_rows", 1), (join, "without_rows", 0)]
    calls += [(join, "_write_ledger", 0), (join.IndexWriter, "write", 0)]
    for place, name, after in calls:
        call, left = getattr(place, name), after

        def breaks(*args: Any, call: Any = call) -> Any:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return call(*args)

        monkeypatch.setattr(place, name, breaks)
        with pytest.raises(KeyboardInterrupt):
            build_corpus(data, tmp_path / "corpus")
        monkeypatch.undo()
    assert files(build_corpus(data, tmp_path / "corpus").folder) == whole


def test_texts_alone_make_a_corpus(tmp_path: Path, data: DataRecipe) -> None:
    texts = [sample_record(i, 0) for i in range(3)]
    write_records(data.source, texts)
    result = build_corpus(data, tmp_path / "corpus")
    reader = CorpusReader(result.folder)
    assert result.summary["images"] == result.summary["vision_tokens"] == 0
    assert [reader.record(row) for row in range(3)] == texts


def test_missing_inputs_are_named(tmp_path: Path, data: DataRecipe) -> None:
    with pytest.raises(InputError, match=r"nowhere/records\.jsonl does not exist"):
        build_corpus(replace(data, source=str(tmp_path / "nowhere")), tmp_path / "corpus")
    with pytest.raises(InputError, match=r"nowhere/tokenizer\.json does not exist"):
        build_corpus(replace(data, tokenizer=str(tmp_path / "nowhere")), tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_too_many_names_are_refused(tmp_path: Path, data: DataRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_NAMES", 2)
    with pytest.raises(DataError, match="more than 2 different values of 'category'"):
        build_corpus(data, tmp_path / "corpus")


@pytest.mark.parametrize("samples,limit", [(40, 30_000), (5, 11_000)])  # a shard does not fit; an index does not
def test_a_full_disk_is_one_line_and_the_rerun_goes_on(
    tmp_path: Path, data: DataRecipe, samples: int, limit: int
) -> None:
    write_records(data.source, [sample_record(i, 0) for i in range(samples)])
    data = replace(data, shard_samples=40)
    program = f"""
import resource, signal, sys
from onevision.corpus.build import build_corpus
from onevision.errors import StorageError
from onevision.recipe import DataRecipe
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    build_corpus(DataRecipe(**{json.loads(json.dumps(data.__dict__))!r}), {str(tmp_path / "corpus")!r})
except StorageError as error:
    print("caught", error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0 and not run.stderr, run.stderr
    caught = [line for line in run.stdout.splitlines() if line.startswith("caught")]
    assert len(caught) == 1 and "make room and run again" in caught[0], run.stdout + run.stderr
    assert {path.name for path in tmp_path.iterdir()} == {".corpus.parts", "source", "tokenizer"}
    assert build_corpus(data, tmp_path / "corpus").summary["samples"] == samples
    assert {path.name for path in tmp_path.iterdir()} == {"corpus", "source", "tokenizer"}


def test_an_interrupt_leaves_the_old_corpus(
    tmp_path: Path, data: DataRecipe, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "corpus"
    before = files(build_corpus(data, output).folder)
    write_records(data.source, [*records, sample_record(99)])
    take = module.take

    def interrupted(record: Record, *args: Any) -> Any:
        if record.id == "sample-00012":
            raise KeyboardInterrupt
        return take(record, *args)

    monkeypatch.setattr(module, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_corpus(data, output)
    assert files(output) == before
    monkeypatch.undo()
    assert build_corpus(data, output).summary["samples"] == 24
