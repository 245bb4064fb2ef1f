"""The format `llava-json`: LLaVA's JSON or JSON lines, and the image files that their rows name.

`data.source` is such a file or a folder of them; an array is read under either name. A row is
`{id, image: name | [names] | null, conversations: […]}` (`images` and other ways to write turns are read too:
`onevision.corpus.formats.conversation`). Names of images are relative to `data.image_root`, or to the folder of the
source where that is empty. The source of a row that names none is the name of its file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from onevision.corpus.formats.conversation import conversation_record, turns_of
from onevision.corpus.formats.images import ImageStates, check_names, read_image
from onevision.corpus.formats.textfile import Row, cut, read_rows
from onevision.corpus.formats.unit import Listing, Rejected, Unit, files_below
from onevision.corpus.record import Record, Reject
from onevision.errors import InputError
from onevision.fingerprint import file_digest
from onevision.recipe import DataRecipe


def list_units(data: DataRecipe) -> Listing:
    """Units of `data.shard_samples` rows; the digest is of the JSON, and of the images' names and bytes.

    Raises:
        InputError: there is no JSON, or it cannot be read.
    """
    source = Path(data.source)
    files = files_below(source, ".json", ".jsonl")
    if not files:
        raise InputError(f"{source} holds no *.json or *.jsonl: data.source must name LLaVA JSON or a folder of it")
    state = xxhash.xxh3_128()
    units = []
    with ImageStates(_image_root(data), state.update) as images:

        def seen(row: Row) -> None:
            images.add(lambda: _image_names(row.value))

        for path in files:
            name = path.relative_to(_folder(data)).as_posix()
            state.update(f"{name} {file_digest(path)}\n".encode())
            units += cut(name, read_rows(path), data.shard_samples, seen)
            images.flush()
    return Listing(tuple(units), state.hexdigest())


def read_unit(data: DataRecipe, unit: Unit) -> Iterator[Record | Rejected]:
    """The records of a unit in the order of their rows, or what was wrong with them.

    Raises:
        InputError: the JSON file is gone.
    """
    path, root = _folder(data) / unit.file, _image_root(data)
    source = unit.file.rpartition(".")[0]
    for row in read_rows(path, unit.first, unit.begin, unit.end):
        name = place = f"{source}/{row.number}"
        fields = row.value
        if isinstance(fields, dict) and isinstance(fields.get("id"), (str, int)):
            name = str(fields["id"])
        try:
            image_names = _image_names(fields)
            turns = turns_of(fields)
            if turns is None:
                raise Reject("no_messages", f"it has the keys {', '.join(map(str, fields))[:80]}")
            images = tuple(read_image(root, image) for image in image_names)
            yield conversation_record(fields, turns, images, place, source)
        except Reject as error:
            yield Rejected(name, error.reason, f"row {row.number}: {error.detail}")


def _folder(data: DataRecipe) -> Path:
    source = Path(data.source)
    return source.parent if source.is_file() else source


def _image_root(data: DataRecipe) -> Path:
    return Path(data.image_root) if data.image_root else _folder(data)


def _image_names(fields: Any) -> list[str]:
    if isinstance(fields, Reject):
        raise fields
    if not isinstance(fields, dict):
        raise Reject("bad_field", f"the row is {type(fields).__name__}, not an object")
    found: Any = next((fields[key] for key in ("image", "images") if fields.get(key)), [])
    names = [found] if isinstance(found, str) else found
    if isinstance(names, list) and None in names:
        raise Reject("image_missing", f"an image of {len(names)} is null")
    return check_names(names)
