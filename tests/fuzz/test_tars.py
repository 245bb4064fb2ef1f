"""Tar files with damage and with headers that lie: a corpus' shards give the same samples or damaged ones, an import
takes what is whole and lists what is not."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from onevision.corpus.build import build_corpus
from onevision.corpus.reader import CorpusReader, DamagedSample
from onevision.corpus.record import Record
from onevision.recipe import DataRecipe
from tests.fixtures import sample_record, tiny_tokenizer, write_records
from tests.fuzz.harness import Box, campaign
from tests.fuzz.strategies import damaged, damages
from tests.fuzz.test_records import built, tools

Fuzz = Callable[[Callable[..., None]], Counter[str]]
SAMPLES = 5


def corpus(box: Box) -> tuple[Path, list[Record]]:
    """A corpus of two shards and its records, made once."""
    if not box.shared:
        root = box.root / "good"
        tiny_tokenizer(root / "tokenizer")
        made = [sample_record(i, i % 3, 1 + i % 2) for i in range(SAMPLES)]
        data = DataRecipe(
            source=str(write_records(root / "source", made)), tokenizer=str(root / "tokenizer"), shard_samples=3
        )
        build_corpus(data, root / "corpus", report=str)
        box.shared |= {"corpus": root / "corpus", "records": made}
    return box.shared["corpus"], box.shared["records"]


@campaign(70, corpus, shard=st.integers(0, 1), changes=damages, cut_back=st.booleans())
def shards(box: Box, shard: int, changes: list[tuple[str, float, object]], cut_back: bool) -> None:
    """A shard with flipped bits, of the same size or another; every sample is what it was, or known to be damaged."""
    good, records = corpus(box)
    folder = shutil.copytree(good, box.folder() / "corpus")
    path = folder / f"shard-{shard:06d}.tar"
    before = path.read_bytes()
    after = damaged(before, changes)
    path.write_bytes(after[: len(before)].ljust(len(before), b"\0") if cut_back else after)

    def read() -> list[Record | None]:
        reader = CorpusReader(folder)
        found: list[Record | None] = []
        for row in range(len(reader)):
            try:
                found.append(reader.record(row))
            except DamagedSample as error:
                assert str(error).isprintable()
                found.append(None)
        reader.close()
        return found

    found, error = box.attempt(read)
    if error is None:
        assert all(record in (None, expected) for record, expected in zip(found, records, strict=True))
        box.notes["samples damaged"] += found.count(None)
        box.notes["samples whole"] += len(found) - found.count(None)


def tar_of(box: Box, form: int) -> bytes:
    """A good tar of three samples, with a long name, a link and a sparse file among its members."""
    image = tools(box)["images"]["a.png"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for k in range(3):
            key = f"{'long/' * (18 if k == 1 else 1)}{k}"
            for name, content in ((f"{key}.png", image), (f"{key}.txt", b"A caption that says a little.")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                member.pax_headers = {"comment": "é"} if form == tarfile.PAX_FORMAT else {}
                tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("9.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return buffer.getvalue()


def number(value: int) -> bytes:
    """A number of twelve bytes as GNU writes those that octal digits cannot."""
    return (b"\xff" if value < 0 else b"\x80") + (value % 256**11).to_bytes(11, "big")


# Places of a header's fields, and what to write there.
FIELDS = {
    "name": (0, 100),
    "size": (124, 12),
    "mtime": (136, 12),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 155),
    "sparse": (386, 96),
    "real size": (483, 12),
}
CONTENTS = [
    b"",
    b"\0",
    b"0" * 11,
    b"7" * 11,
    b"-7777777777",
    b"8888",
    b" ",
    b"\xff" * 12,
    *map(number, (-1, -512, -513, -1024, -(2**62), 2**40, 2**62, 2**87)),
    *(bytes([kind]) for kind in b"01234567gxLKSDMNV\0z"),
    b"../../outside",
    b"/etc/passwd",
    b"a" * 100,
    b"\xff\xfe" * 50,
    b"ustar\x0000",
    b"ustar  \0",
    number(0) + number(2**40),
    (b"0" * 11 + b" " + b"7" * 11 + b" ") * 4,
]
PAX = [
    b"12 size=-512\n",
    b"12 size=9999\n",
    b"22 size=99999999999999\n",
    b"17 path=../../x\n",
    b"20 GNU.sparse.size=9\n",
    b"0 a=b\n",
    b"-5 a=b\n",
    b"9999999 a=b\n",
    b"x",
    b"11 size=1e9\n",
    b"13 mtime=inf\n",
    b"23 hdrcharset=BINARY\n\n",
    b"8 a=\xff\n",
    b"9" * 5000 + b" size=1\n",
    b"30 GNU.sparse.realsize=99999999\n",
    b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n",
    b"28 GNU.sparse.map=0,99999999\n",
    b"28 GNU.sparse.map=9,-9,a,b\n\n\n",
    b"25 GNU.sparse.name=/x/../\n",
]
headers = st.lists(
    st.tuples(
        st.integers(0, 8),
        st.sampled_from(sorted(FIELDS)),
        st.sampled_from(CONTENTS) | st.integers(-(2**63), 2**63).map(number),
    ),
    max_size=4,
)


def with_headers(tar: bytes, edits: list[tuple[int, str, bytes]], extended: bytes) -> bytes:
    """The tar with fields of its headers changed and their checksums right, and with an extended header before it."""
    blocks = bytearray(tar)
    with tarfile.open(fileobj=io.BytesIO(tar)) as whole:
        places = [member.offset for member in whole]
    for which, field, content in edits:
        place = places[which % len(places)]
        start, size = FIELDS[field]
        blocks[place + start : place + start + size] = content[:size].ljust(size, b"\0")
        blocks[place + 148 : place + 156] = b" " * 8
        blocks[place + 148 : place + 156] = b"%06o\0 " % sum(blocks[place : place + 512])
    if extended:
        header = tarfile.TarInfo("x")
        header.type, header.size = tarfile.XHDTYPE, len(extended)
        blocks[:0] = header.tobuf(tarfile.USTAR_FORMAT) + extended.ljust(-(-len(extended) // 512) * 512, b"\0")
    return bytes(blocks)


@campaign(
    40,
    tools,
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    edits=headers,
    extended=st.just(b"") | st.sampled_from(PAX) | st.lists(st.sampled_from(PAX), max_size=3).map(b"".join),
    changes=st.just([]) | damages,
)
def imported(box: Box, form: int, edits: list[tuple[int, str, bytes]], extended: bytes, changes: list[Any]) -> None:
    """A WebDataset tar whose headers lie, and damaged ones."""
    folder = box.folder()
    (folder / "source").mkdir()
    made = with_headers(tar_of(box, form), edits, extended)
    (folder / "source" / "0.tar").write_bytes(damaged(made, changes))
    built(box, folder, format="webdataset", min_caption=1)


@pytest.mark.parametrize("function", [shards, imported], ids=lambda f: f.__name__)
def test_tars(fuzz: Fuzz, function: Callable[..., None]) -> None:
    counts = fuzz(function)
    assert counts["accepted"] and counts["DataError"]
