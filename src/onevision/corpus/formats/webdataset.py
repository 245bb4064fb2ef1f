"""The format `webdataset`: a folder of tar files in which the files of a sample share their name up to the first dot
behind the last slash, as WebDataset has it: in `coyo-1.0/0001.jpg` that is `coyo-1.0/0001`. Hidden files, such as those
that macOS leaves (`._0001.jpg`), belong to none.

A sample is one of
    key.img0.jpg, key.img1.jpg, …, key.json {images, captions, prompts}   the released packs: a record an image
    key.jpg, key.txt (or key.json with `caption`)                         an image and its caption
    key.jpg, key.json with `conversations` or `messages`                  images in the order of their names
A tar file is a unit. The source of a sample that names none is the folder of its tar, and a caption without a prompt
answers a fixed one (`onevision.corpus.formats.conversation.CAPTION_PROMPTS`).
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onevision.corpus.formats.conversation import caption_record, conversation_record, turns_of
from onevision.corpus.formats.textfile import open_text
from onevision.corpus.formats.unit import Listing, Rejected, Unit, file_size, files_below
from onevision.corpus.record import Record, Reject
from onevision.errors import InputError
from onevision.fingerprint import value_digest
from onevision.recipe import DataRecipe

IMAGES = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"))
CAPTIONS = ("caption", "text", "txt")  # keys of key.json


def list_units(data: DataRecipe) -> Listing:
    """A unit a tar file; the digest is of the files' names and bytes.

    Raises:
        InputError: there are no tar files, or one is a link that leads nowhere.
    """
    source = Path(data.source)
    files = files_below(source, ".tar")
    if not files:
        raise InputError(f"{source} holds no *.tar: data.source must name a folder of WebDataset shards")
    names = [path.relative_to(_folder(data)).as_posix() for path in files]
    states = [[name, file_size(path)] for name, path in zip(names, files, strict=True)]
    return Listing(tuple(Unit(name) for name in names), value_digest(states))


def read_unit(data: DataRecipe, unit: Unit) -> Iterator[Record | Rejected]:
    """The records of a tar file in their order; where it is damaged, what comes after is one reject.

    Raises:
        InputError: the file is gone.
    """
    path = _folder(data) / unit.file
    stem = unit.file.removesuffix(".tar")
    source = (_folder(data).resolve() / unit.file).parent.name  # a file may be a link: its name here counts
    open_text(path).close()
    held: dict[str, bytes] = {}
    held_key = ""
    try:
        for name, content in _members(path):
            folder, slash, file = name.removeprefix("./").rpartition("/")
            start, _, extension = file.partition(".")
            if not start:
                continue
            key = folder + slash + start
            if key != held_key and held:
                yield from _records(held, f"{stem}/{held_key}", source)
                held = {}
            held_key = key
            held[extension.lower()] = content
    except tarfile.TarError as error:
        yield Rejected(f"{stem}/{held_key}", "tar_unreadable", f"{error}: this sample and what comes after it is lost")
        return
    if held:
        yield from _records(held, f"{stem}/{held_key}", source)


class _Header(tarfile.TarInfo):
    """A member's header; one with a negative size would have the library go back and read the same for ever."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.HeaderError(f"a size of {count} bytes")
        return super()._block(count)  # type: ignore[misc]


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each regular file in a tar. Names are no paths: nothing is written to them.

    Raises:
        tarfile.TarError: it is damaged.
    """
    end = path.stat().st_size
    try:
        with tarfile.open(path, "r:", tarinfo=_Header) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # the library keeps all that it has seen
                if not member.isfile():
                    continue
                if member.issparse() or member.offset_data + member.size > end:  # it may say any size
                    raise tarfile.ReadError(f"{member.name[:80]!r} says that it has {member.size} bytes")
                content = tar.extractfile(member)
                assert content is not None, "a regular file"
                yield member.name, content.read()
            _check_end(path, tar.offset)
    except (OSError, EOFError, ValueError, ArithmeticError, LookupError, TypeError, RecursionError) as error:
        raise tarfile.ReadError(f"a header is damaged: {error}") from None  # numbers of any kind stand in headers


def _check_end(path: Path, offset: int) -> None:
    """A tar ends with a block of zeros; the library takes a cut one for a shorter one."""
    with path.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"the tar breaks off at byte {offset}")


def _records(files: dict[str, bytes], place: str, source: str) -> Iterator[Record | Rejected]:
    """The records of one sample: as many as the pack has, or one."""
    try:
        fields = _fields(files)
        if isinstance(fields.get("captions"), list):
            yield from _pack(files, fields, place, source)
            return
        images = tuple(files[name] for name in sorted(files, key=_natural) if name.rpartition(".")[2] in IMAGES)
        turns = turns_of(fields)
        if turns is not None:
            yield conversation_record(fields, turns, images, place, source)
            return
        if len(images) != 1:
            raise Reject("image_count", f"{len(images)} images with one caption")
        caption = _caption(files, fields)
        yield caption_record(fields, caption, fields.get("prompt"), images[0], place, source)
    except Reject as error:
        yield Rejected(place, error.reason, f"{place}: {error.detail}")


def _pack(files: dict[str, bytes], fields: dict[str, Any], place: str, source: str) -> Iterator[Record | Rejected]:
    captions, prompts = fields["captions"], fields.get("prompts")
    if not isinstance(prompts, list):
        prompts = []
    for k, caption in enumerate(captions):
        try:
            found = [name for name in (f"img{k}.{suffix}" for suffix in sorted(IMAGES)) if name in files]
            if not found:
                raise Reject("image_missing", f"there is no img{k}.jpg")
            prompt = prompts[k] if k < len(prompts) else None
            yield caption_record({}, caption, prompt, files[found[0]], f"{place}/{k}", source)
        except Reject as error:
            yield Rejected(f"{place}/{k}", error.reason, error.detail)


def _fields(files: dict[str, bytes]) -> dict[str, Any]:
    if "json" not in files:
        return {}
    try:
        fields = json.loads(files["json"].decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise Reject("not_utf8", f"json, byte {error.start}: {error.reason}") from None
    except (ValueError, RecursionError) as error:
        raise Reject("bad_json", str(error)) from None
    if not isinstance(fields, dict):
        raise Reject("bad_field", f"the json is {type(fields).__name__}, not an object")
    return fields


def _caption(files: dict[str, bytes], fields: dict[str, Any]) -> Any:
    if "txt" not in files:
        return next((fields[key] for key in CAPTIONS if key in fields), None)
    try:
        return files["txt"].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Reject("not_utf8", f"txt, byte {error.start}: {error.reason}") from None


def _natural(name: str) -> str:
    """img10 after img9, once numbers are as wide as each other."""
    return re.sub("[0-9]+", lambda number: number[0].lstrip("0").rjust(20), name)


def _folder(data: DataRecipe) -> Path:
    source = Path(data.source)
    return source.parent if source.is_file() else source
