"""Reading a records folder: `records.jsonl` and the image files that its lines name.

A line is `{id, images: ["images/x.png", …], messages: [{role, content: [{type: text, text} | {type: image}]}],
category, language, source, license}`. Image names are relative to the folder. Nothing that is wrong with a line ends
the reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from onevision.corpus.record import Record, Reject, parse_record
from onevision.errors import InputError
from onevision.fingerprint import file_digest

RECORDS = "records.jsonl"


@dataclass(frozen=True)
class Rejected:
    """A line that is not a usable record: its id (or "line <n>"), the reason that is counted, and what was found."""

    id: str
    reason: str
    detail: str


def read_records(folder: str | Path) -> Iterator[Record | Rejected]:
    """The records of a folder in the order of their lines, or what was wrong with them; blank lines are passed over.

    Raises:
        InputError: there is no records.jsonl, or it cannot be read.
    """
    root = Path(folder)
    for number, line in _lines(root):
        name = f"line {number}"
        try:
            fields = _fields(line)
            if isinstance(fields, dict) and isinstance(fields.get("id"), str):
                name = fields["id"].encode(errors="replace").decode() or name
            images = tuple(_read_image(root, image) for image in _image_names(fields))
            yield parse_record(fields, images)
        except Reject as error:
            yield Rejected(name, error.reason, f"line {number}: {error.detail}")


def source_digest(folder: str | Path) -> tuple[str, int]:
    """Digest of records.jsonl and of the names and contents of the images that it names, and the number of records.

    Raises:
        InputError: there is no records.jsonl, or it cannot be read.
    """
    root = Path(folder)
    state = xxhash.xxh3_128()
    records = 0
    for _, line in _lines(root):
        records += 1
        state.update(line)
        try:
            names = _image_names(_fields(line))
        except Reject:
            continue
        for name in names:
            try:
                content = file_digest(root / name)
            except OSError:
                content = "unreadable"
            state.update(f"{name} {content}\n".encode())
    return state.hexdigest(), records


def _lines(root: Path) -> Iterator[tuple[int, bytes]]:
    path = root / RECORDS
    if not path.is_file():
        raise InputError(f"{path} does not exist: data.source must name a folder with {RECORDS} and its images")
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _fields(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise Reject("not_utf8", f"byte {error.start}: {error.reason}") from None
    except (ValueError, RecursionError) as error:
        raise Reject("bad_json", str(error)) from None


def _image_names(fields: Any) -> list[str]:
    names = fields.get("images", []) if isinstance(fields, dict) else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Reject("bad_field", "images is not a list of file names")
    for name in names:
        path = Path(name)
        if not name.isprintable() or not path.parts or path.is_absolute() or ".." in path.parts:
            raise Reject("image_path", f"{name!r} is not a path inside the folder")
    return names


def _read_image(root: Path, name: str) -> bytes:
    try:
        return (root / name).read_bytes()
    except FileNotFoundError:
        raise Reject("image_missing", f"{name} does not exist") from None
    except OSError as error:
        raise Reject("image_unreadable", f"{name}: {error.strerror}") from None
