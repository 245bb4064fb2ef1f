"""Sources in all four formats with records that nobody meant: each record is taken or listed with a reason, or the
step ends with one line; a corpus that was made holds what was taken, and nothing was written beside it."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st

from onevision.corpus.build import build_corpus
from onevision.corpus.reader import CorpusReader
from onevision.corpus.record import Record, record_fields
from onevision.recipe import DataRecipe
from tests.fixtures import image_bytes, sample_record, tiny_tokenizer
from tests.fuzz.harness import Box, campaign
from tests.fuzz.strategies import damaged, damages, scalars, texts, values

Fuzz = Callable[[Callable[..., None]], Counter[str]]
NAMES = [
    "a.png",
    "b.png",
    "../outside.png",
    "/etc/passwd",
    "..",
    ".",
    "",
    "images",
    "missing.png",
    "a.png/x",
    "a\0b",
    "\n",
    "x" * 5000,
    "\ud800",
    "~/a.png",
    "a.png ",
    "./a.png",
]
# What makes a deep, long or repetitive line.
LINES = [
    b"",
    b"null",
    b"[]",
    b"{",
    b"}{",
    b"\xff\xfe",
    b"\0",
    b'{"id": "\xff"}',
    b"[" * 900,
    b"[" * 990 + b"]" * 990,
    b"[" * 100_000,
    b'{"a":' * 985 + b"1" + b"}" * 985,
    b'{"messages": ' + b"[" * 960 + b"]" * 960 + b"}",
    b'{"id": ' + b"9" * 5000 + b"}",
    b'{"id": 1e999}',
    b'{"id": NaN}',
    b'{"id": "a", "id": "b"}',
    b'"' + b"a" * 300_000 + b'"',
    b"\xef\xbb\xbf{}",
    b"\r\n\r\n",
]

names = st.sampled_from(NAMES)
contents = (
    texts
    | st.integers(0, 40).map(lambda n: "<image>" * n + "What?")
    | st.sampled_from(["word " * 60_000, "长" * 30_000, "a" * 300_000, "I'm sorry, ", "no " * 20])
    | st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "image", "image_url", 5, [], None])},
            optional={"text": scalars, "image": names},
        )
        | values,
        max_size=4,
    )
    | values
)
roles = st.sampled_from(["user", "assistant", "system", "human", "gpt", "USER", "", "\ud800"]) | values
turns = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": roles,
            "from": roles,
            "content": contents,
            "value": contents,
            "user": contents,
            "assistant": contents,
        },
    )
    | values,
    max_size=4,
)
given_keys = st.dictionaries(
    st.sampled_from(
        [
            "id",
            "images",
            "image",
            "messages",
            "conversations",
            "texts",
            "category",
            "language",
            "source",
            "license",
            "video",
            "captions",
            "caption",
            "prompts",
            "prompt",
        ]
    ),
    values | turns | st.lists(names, max_size=3) | names | contents,
    max_size=3,
)
missing_keys = st.lists(
    st.sampled_from(["id", "images", "messages", "category", "language", "source", "license"]), max_size=2
)


def tools(box: Box) -> dict[str, Any]:
    """The tokenizer and two images, made once."""
    if not box.shared:
        box.shared["tokenizer"] = tiny_tokenizer(box.root / "tokenizer").path.parent
        box.shared["images"] = {name: image_bytes(40 + k, 50, seed=k) for k, name in enumerate(("a.png", "b.png"))}
    return box.shared


@cache
def good(i: int) -> Record:
    """A record that has nothing wrong."""
    return sample_record(i, 1)


def built(box: Box, folder: Path, **settings: Any) -> None:
    """Import folder/source into folder/run/corpus, which is all that may be written to; then read all of it."""
    data = DataRecipe(
        source=str(folder / "source"),
        tokenizer=str(tools(box)["tokenizer"]),
        **{"shard_samples": 3, "reject_threshold": 1.0, **settings},
    )
    (folder / "run").mkdir()
    result, error = box.attempt(lambda: build_corpus(data, folder / "run" / "corpus", report=str), folder / "run")
    if error is None:
        made = folder / "run" / "corpus"
        summary = result.summary
        reader = CorpusReader(made)
        ids = [reader.record(row).id for row in range(len(reader))]
        reader.close()
        assert len(ids) == len(set(ids)) == summary["samples"] > 0
        rejects = pq.read_table(made / "rejects.parquet").to_pylist()
        reasons = Counter(row["reason"] for row in rejects)
        assert all(row["detail"] for row in rejects) and dict(reasons) == summary["rejects_by_reason"]
        box.notes["with rejects"] += bool(rejects)
        assert {path.suffix for path in made.iterdir()} <= {".tar", ".h5", ".parquet", ".json"}
    left = {path.name for path in (folder / "run").iterdir()}
    assert left <= {"corpus", "corpus.rejects.parquet", ".corpus.parts"}, left


def write_images(box: Box, folder: Path) -> None:
    (folder / "source").mkdir()
    for name, data in tools(box)["images"].items():
        (folder / "source" / name).write_bytes(data)


def changed(i: int, change: tuple[dict[str, Any], list[str]]) -> dict[str, Any]:
    """A good record with an image, with keys set and keys left out."""
    fields = {**record_fields(good(i)), "images": ["a.png"], **change[0]}
    return {key: value for key, value in fields.items() if key not in change[1]}


def dumped(value: Any) -> bytes:
    """As JSON in which lone surrogates are as they are in other programs' files."""
    return json.dumps(value, ensure_ascii=True).encode()


@campaign(
    45,
    tools,
    changes=st.lists(st.tuples(given_keys, missing_keys), min_size=1, max_size=4),
    raw=st.sampled_from(LINES) | st.binary(max_size=20),
    doubled=st.booleans(),
    threshold=st.sampled_from([0.0, 0.5, 1.0]),
)
def records(
    box: Box, changes: list[tuple[dict[str, Any], list[str]]], raw: bytes, doubled: bool, threshold: float
) -> None:
    """records.jsonl."""
    folder = box.folder()
    write_images(box, folder)
    lines = [dumped(changed(i, change)) for i, change in enumerate(changes)]
    lines += [raw, dumped(changed(90, ({}, []))), *lines[: 1 if doubled else 0]]
    (folder / "source" / "records.jsonl").write_bytes(b"\n".join(lines))
    built(box, folder, reject_threshold=threshold)


@campaign(
    30,
    tools,
    changes=st.lists(st.tuples(given_keys, missing_keys), min_size=1, max_size=4),
    turns=turns,
    raw=st.sampled_from(LINES) | st.binary(max_size=20),
    array=st.booleans(),
)
def llava(box: Box, changes: list[tuple[dict[str, Any], list[str]]], turns: list[Any], raw: bytes, array: bool) -> None:
    """LLaVA's JSON and JSON lines."""
    folder = box.folder()
    write_images(box, folder)
    first = {"id": "first", "image": "a.png", "conversations": turns}
    rows = [
        dumped(row) for row in (first, *(changed(i, change) for i, change in enumerate(changes)), changed(90, ({}, [])))
    ]
    rows.insert(1, raw)
    if array:
        (folder / "source" / "rows.json").write_bytes(b"[" + b",\n".join(rows) + b"]")
    else:
        (folder / "source" / "rows.jsonl").write_bytes(b"\n".join(rows))
    built(box, folder, format="llava-json")


def arrow(values: list[Any]) -> pa.Array | None:
    """A column of what Python says, or nothing where Arrow has no type for it."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError, TypeError, ValueError):
        return None


class Bomb:
    """Unpickled it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@campaign(
    30,
    tools,
    columns=st.dictionaries(
        st.sampled_from(
            [
                "image",
                "images",
                "caption",
                "text",
                "conversations",
                "prompt",
                "id",
                "category",
                "source",
                "license",
                "x",
            ]
        ),
        st.lists(values, min_size=3, max_size=3)
        | st.lists(contents, min_size=3, max_size=3)
        | st.lists(st.binary(max_size=40), min_size=3, max_size=3)
        | st.none(),
        max_size=4,
    ),
    changes=st.just([]) | damages,
    extension=st.booleans(),
)
def parquet(
    box: Box, columns: dict[str, list[Any] | None], changes: list[tuple[str, float, object]], extension: bool
) -> None:
    """Parquet with columns of other types, and damaged Parquet; also with a type of Arrow's that was a pickle once."""
    folder = box.folder()
    (folder / "source").mkdir()
    image = tools(box)["images"]["a.png"]
    table: dict[str, Any] = {
        "image": pa.array([image, b"", image]),
        "caption": pa.array([f"A caption of some length, number {k}." for k in range(3)]),
    }
    for name, found in columns.items():
        if found is None:
            table.pop(name, None)
        elif (column := arrow(found)) is not None:
            table[name] = column
    made = pa.table(table)
    if extension and len(made.schema):
        key = {
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Bomb(folder / "exploded")),
        }
        made = made.cast(pa.schema([made.schema.field(0).with_metadata(key), *list(made.schema)[1:]]))
    buffer = io.BytesIO()
    try:
        pq.write_table(made, buffer, row_group_size=2)
    except pa.ArrowException:  # an empty struct has no place in Parquet
        box.counts["no Parquet"] += 1
        return
    (folder / "source" / "part.parquet").write_bytes(damaged(buffer.getvalue(), changes))
    built(box, folder, format="parquet", min_caption=1)
    assert not (folder / "exploded").exists()


MEMBERS = [
    "a.jpg",
    "a.png",
    "a.json",
    "a.txt",
    "a.img0.jpg",
    "a.img1.jpg",
    "a.img².jpg",
    "a.img" + "9" * 80 + ".jpg",
    "a.pyd",
    "a.pickle",
    "a.pth",
    "a.cls",
    "../a.jpg",
    "/a.jpg",
    "./a.json",
    "a",
    ".json",
    "..json",
    "a.",
    "\ud800.json",
    "b.json",
    "b.txt",
    "dir/a.json",
    "a." + "x" * 200,
]


packs = st.tuples(
    st.integers(0, 2),
    st.fixed_dictionaries(
        {"captions": st.lists(texts | values, max_size=3)},
        optional={"prompts": values | st.lists(texts | values, max_size=3)},
    ),
).map(
    lambda pack: [
        ("p.json", tarfile.REGTYPE, dumped(pack[1])),
        *((f"p.img{k}.jpg", tarfile.REGTYPE, b"image") for k in range(pack[0])),
    ]
)


@campaign(
    35,
    tools,
    pack=st.just([]) | packs,
    members=st.lists(
        st.tuples(
            st.sampled_from(MEMBERS),
            st.sampled_from(
                [
                    tarfile.REGTYPE,
                    tarfile.AREGTYPE,
                    tarfile.SYMTYPE,
                    tarfile.LNKTYPE,
                    tarfile.DIRTYPE,
                    tarfile.FIFOTYPE,
                    tarfile.CHRTYPE,
                    tarfile.CONTTYPE,
                    tarfile.GNUTYPE_SPARSE,
                ]
            ),
            given_keys.map(dumped)
            | st.fixed_dictionaries({"captions": values | st.lists(texts, max_size=3), "prompts": values}).map(dumped)
            | st.binary(max_size=30)
            | st.just(b"image")
            | st.sampled_from(LINES),
        ),
        min_size=1,
        max_size=6,
    ),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def webdataset(
    box: Box, pack: list[tuple[str, bytes, bytes]], members: list[tuple[str, bytes, bytes]], form: int
) -> None:
    """Tar files of WebDataset with other members than a writer of samples makes."""
    folder = box.folder()
    (folder / "source").mkdir()
    image = tools(box)["images"]["a.png"]
    with tarfile.open(folder / "source" / "0.tar", "w", format=form, errors="surrogateescape", encoding="utf-8") as tar:
        good_ones = [
            ("good.png", tarfile.REGTYPE, b"image"),
            ("good.txt", tarfile.REGTYPE, b"A caption that says a little."),
        ]
        for name, kind, content in [*pack, *members, *good_ones]:
            content = image if content == b"image" else content
            member = tarfile.TarInfo(
                name.encode("utf-8", "replace").decode()
                if form != tarfile.USTAR_FORMAT
                else name[:90].encode("ascii", "replace").decode()
            )
            member.type, member.linkname, member.size = (
                kind,
                "../../outside",
                len(content) if kind in tarfile.REGULAR_TYPES else 0,
            )
            tar.addfile(member, io.BytesIO(content))
    built(box, folder, format="webdataset", min_caption=1)


@pytest.mark.parametrize("function", [records, llava, parquet, webdataset], ids=lambda f: f.__name__)
def test_records(fuzz: Fuzz, function: Callable[..., None]) -> None:
    counts = fuzz(function)
    assert counts["accepted"] and counts["with rejects"]


def test_absurd_names_are_refused_and_not_stored_by_the_widest(tmp_path: Path) -> None:
    """A column of names is as wide as its widest: one name of 10 MB beside 1,000 others would take 10 GB."""
    box = Box(tmp_path)
    folder = box.folder()
    write_images(box, folder)
    rows = [changed(i, ({"category": f"c{i}"}, [])) for i in range(3)] + [
        changed(9, ({"category": "c" * 10_000_000}, []))
    ]
    (folder / "source" / "records.jsonl").write_bytes(b"\n".join(map(dumped, rows)))
    built(box, folder)
    assert np.all(
        [(folder / "run" / "corpus" / name).stat().st_size < 100_000 for name in ("corpus.h5", "part-000000.h5")]
    )
