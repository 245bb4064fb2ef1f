"""Checks a release bundle, whoever made it: files, names, links, and that its records agree with each other."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onevision.errors import DataError, InputError
from onevision.release.agree import disagreements
from onevision.release.manifest import (
    MANIFEST,
    MOST_BYTES,
    SUMS,
    Entry,
    Found,
    open_regular,
    read_manifest,
    sha256,
    sha256_all,
    walk,
)


@dataclass(frozen=True)
class Verified:
    """What was found whole: files (the manifest and SHA256SUMS too), their bytes, the seconds that reading them took,
    and the SHA-256 of the manifest."""

    files: int
    bytes: int
    seconds: float
    manifest: str


def verify_release(folder: str | Path) -> Verified:
    """Check everything.

    Raises:
        InputError: it is no folder.
        DataError: a line for each file that is missing, changed or additional, for each link, for each name that is
            refused and for each record that contradicts another one.
    """
    folder, began = Path(folder), time.monotonic()
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: name that of the bundle")
    content, entries, problems = read_manifest(folder)
    found = walk(folder)
    manifest = sha256(folder / MANIFEST)
    problems += found.problems
    problems += _damaged(folder, entries, found)
    problems += _sums(folder, entries, manifest, found)
    seconds = time.monotonic() - began
    if not problems:  # of damaged records it would only repeat what is known
        problems += disagreements(folder, content, {entry.path for entry in entries})
    if problems:
        count = f"{len(problems)} problem{'s' if problems[1:] else ''}"
        raise DataError(*problems, f"{folder}: {count}, it is not what its {MANIFEST} says")
    return Verified(len(found.sizes), sum(found.sizes.values()), seconds, manifest)


def _damaged(folder: Path, entries: list[Entry], found: Found) -> Iterator[str]:
    whole: dict[str, Entry] = {}
    for entry in entries:
        size = found.sizes.get(entry.path)
        if size is None:
            yield f"{entry.path}: missing"
        elif size != entry.bytes:
            yield f"{entry.path}: changed, it has {size:,} bytes instead of {entry.bytes:,}"
        else:
            whole[entry.path] = entry
    listed = {entry.path for entry in entries}
    for name in found.sizes:
        if name not in listed and name not in (MANIFEST, SUMS):
            yield f"{name}: additional, {MANIFEST} does not list it"
    for name, digest in sha256_all(folder, {name: entry.bytes for name, entry in whole.items()}, "verify").items():
        if isinstance(digest, OSError):
            yield f"{name}: cannot be read: {digest.strerror or digest}"
        elif digest != whole[name].sha256:
            yield f"{name}: changed, its SHA-256 is {digest} instead of {whole[name].sha256}"


def _sums(folder: Path, entries: list[Entry], manifest: str, found: Found) -> Iterator[str]:
    """What SHA256SUMS says otherwise than manifest.json."""
    if SUMS not in found.sizes:
        yield f"{SUMS}: missing"
        return
    if found.sizes[SUMS] > MOST_BYTES:
        yield f"{SUMS}: is larger than {MOST_BYTES:,} bytes"
        return
    with open_regular(folder / SUMS) as file:
        text = file.read().decode(errors="replace")
    said: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if match is None or match[2] in said:
            yield f"{SUMS}: line {number} is not a SHA-256 and a name of its own"
        else:
            said[match[2]] = match[1]
    expected = {entry.path: entry.sha256 for entry in entries} | {MANIFEST: manifest}
    for name in sorted({*expected, *said}):
        if name not in said:
            yield f"{name}: missing in {SUMS}"
        elif name not in expected:
            yield f"{name}: listed in {SUMS}, not in {MANIFEST}"
        elif said[name] != expected[name]:
            yield f"{name}: {SUMS} has another SHA-256 than {'the file' if name == MANIFEST else MANIFEST}"
