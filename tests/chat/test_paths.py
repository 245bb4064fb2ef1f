"""Images in a line: as they are typed, and as terminals write what is dropped on them."""

from __future__ import annotations

from pathlib import Path

import pytest

from onevision.chat.paths import read_file, read_line
from onevision.errors import InputError

CAT, TWO = Path("/tmp/cat.png"), Path("/tmp/two words.JPG")


@pytest.mark.parametrize(
    ("line", "pieces"),
    [
        ("What's this? It's odd.", ("What's this? It's odd.",)),
        ("/tmp/cat.png", (CAT,)),
        ("/tmp/cat.png what's this?", (CAT, "what's this?")),
        ("what's this? /tmp/cat.png ", (CAT, "what's this?")),
        ("'/tmp/two words.JPG'  What is 'this'?", (TWO, "What is 'this'?")),
        ('"/tmp/two words.JPG" and?', (TWO, "and?")),
        (r"/tmp/two\ words.JPG and?", (TWO, "and?")),
        ("file:///tmp/two%20words.JPG and?", (TWO, "and?")),
        ("file:///tmp/cat and?", (Path("/tmp/cat"), "and?")),
        ("file://host/tmp/cat#1.png and?", (Path("/tmp/cat#1.png"), "and?")),
        ("file://[x.png and?", (Path(), "and?")),
        ("~\0/cat.png ?", (Path("~\0/cat.png"), "?")),
        (r"'/tmp/it'\''s.png' and?", (Path("/tmp/it's.png"), "and?")),
        ("compare /tmp/cat.png with '/tmp/two words.JPG' please", ("compare", CAT, "with", TWO, "please")),
        ("/tmp/cat.png same as? /tmp/cat.png", (CAT, CAT, "same as?")),
        ("~/cat.png ?", (Path.home() / "cat.png", "?")),
        ("~nobody-here/cat.png ?", (Path("~nobody-here/cat.png"), "?")),
        ("a cat.png, and so on", ("a cat.png, and so on",)),
        ("", ()),
    ],
)
def test_images_of_a_line(line: str, pieces: tuple[str | Path, ...]) -> None:
    assert read_line(line).pieces == pieces


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    assert read_file(tmp_path / "file") == b"bytes"
    for path, line in (
        (tmp_path, "is a folder"),
        (tmp_path / "none.png", "none.png does not exist"),
        (tmp_path / "no\0ne.png", "does not exist"),
        (Path("/dev/zero"), "/dev/zero is not a file"),
        (tmp_path / f"{'long' * 80}.png", "cannot be read: File name too long"),
    ):
        with pytest.raises(InputError, match=line):
            read_file(path)
