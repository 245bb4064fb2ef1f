"""manifest.json and SHA256SUMS of a release bundle: every file with its size and SHA-256.

A bundle comes from elsewhere: its manifest may say anything. A name in it is a plain relative path of the bundle or is
refused, and files are only read as the walk of the folder finds them: regular ones, never through a link.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from onevision.errors import DataError, InputError
from onevision.files import read_json, write_json, write_text
from onevision.progress import Progress

FORMAT = "onevision-release"
VERSION = 1
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
MOST_BYTES = 256 << 20  # of a manifest that is read: a million files
BLOCK = 8 << 20
THREADS = 4  # hashlib lets the others run; more than a disk gives is no use


@dataclass(frozen=True)
class Entry:
    """A file of the bundle."""

    path: str  # relative, with slashes
    bytes: int
    sha256: str


class Counter:
    """Bytes that several threads have read, shown as MB with their rate."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._lock, self._bytes = progress, threading.Lock(), 0

    def add(self, count: int) -> None:
        """So many bytes more."""
        with self._lock:
            self._bytes += count
            self._progress.advance(megabytes(self._bytes) - self._progress.done)


def megabytes(count: int) -> int:
    """Bytes as MB, rounded up."""
    return -(-count // 1_000_000)


def name_problem(name: str) -> str | None:
    """Why a name cannot be that of a file in a bundle; None if it can."""
    if not name or name.startswith("/") or "\\" in name or not name.isprintable():
        return "is no relative path of printable characters"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "leaves the folder, or names a file in a roundabout way"
    if name in (MANIFEST, SUMS):
        return "cannot list itself"
    return None


@dataclass(frozen=True)
class Found:
    """What a walk of the folder has found: sizes of regular files by name, and a line about everything else."""

    sizes: dict[str, int]
    problems: list[str]


def walk(folder: Path) -> Found:
    """All that lies below a folder. No link is followed: a bundle has none, and one may lead anywhere."""
    sizes: dict[str, int] = {}
    problems: list[str] = []
    root = folder.resolve()
    waiting = [folder]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(inside) as found:
                entries = sorted(found, key=lambda one: one.name)
        except OSError as error:
            problems.append(f"{inside.relative_to(folder)}: cannot be read: {error.strerror}")
            continue
        for entry in entries:
            path = Path(entry.path)
            name = path.relative_to(folder).as_posix()
            if entry.is_symlink():
                target = Path(os.path.realpath(path))  # of a link to itself, which resolve() refuses, too
                where = "within" if target.is_relative_to(root) else "out of"
                problems.append(f"{name}: a link that leads {where} the bundle, to {path.readlink()}")
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif entry.is_file(follow_symlinks=False):
                sizes[name] = entry.stat(follow_symlinks=False).st_size
            else:
                problems.append(f"{name}: neither a file nor a folder")
    return Found(dict(sorted(sizes.items())), problems)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file; never what a link points to, and without waiting for the writer of a pipe.

    Raises:
        OSError: it is something else, or cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is no regular file")
    return os.fdopen(handle, "rb", buffering=0)


def sha256(path: Path, counter: Counter | None = None) -> str:
    """SHA-256 of a file.

    Raises:
        OSError: as `open_regular`.
    """
    state, block = hashlib.sha256(), memoryview(bytearray(BLOCK))
    with open_regular(path) as file:
        while count := file.readinto(block):  # type: ignore[attr-defined]  # a raw file has it
            state.update(block[:count])
            if counter is not None:
                counter.add(count)
    return state.hexdigest()


def sha256_all(folder: Path, sizes: Mapping[str, int], name: str) -> dict[str, str | OSError]:
    """SHA-256 of files of a folder by their names, or the error of one that cannot be read; shows how far it is."""
    total = sum(sizes.values())
    with Progress(name, megabytes(total), "MB") as progress:
        counter = Counter(progress)

        def digest(path: str) -> str | OSError:
            try:
                return sha256(folder / path, counter)
            except OSError as error:
                return error

        workers = min(THREADS, len(os.sched_getaffinity(0)))
        with ThreadPoolExecutor(workers) as pool:
            largest_first = sorted(sizes, key=lambda path: -sizes[path])
            found = dict(zip(largest_first, pool.map(digest, largest_first), strict=True))
    return {path: found[path] for path in sizes}


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> tuple[list[Entry], str]:
    """Hash all files of a folder, write manifest.json with `facts` and SHA256SUMS; returns the files and the SHA-256
    of manifest.json.

    Raises:
        InputError: a file has a name that a bundle cannot have.
        DataError: there is something else than files and folders, or a file cannot be read.
    """
    for old in (MANIFEST, SUMS):
        (folder / old).unlink(missing_ok=True)
    found = walk(folder)
    if found.problems:
        raise DataError(*(f"{folder}/{line}" for line in found.problems))
    for name in found.sizes:
        if problem := name_problem(name):
            raise InputError(f"{folder / name}: its name {problem}: rename it, or remove it")
    entries = []
    for name, digest in sha256_all(folder, found.sizes, "hash").items():
        if isinstance(digest, OSError):
            raise DataError(f"{folder / name} cannot be read: {digest.strerror or digest}")
        entries.append(Entry(name, found.sizes[name], digest))
    files = [{"path": entry.path, "bytes": entry.bytes, "sha256": entry.sha256} for entry in entries]
    write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, **facts, "files": files})
    own = sha256(folder / MANIFEST)
    write_text(folder / SUMS, sums_text([*entries, Entry(MANIFEST, 0, own)]))
    return entries, own


def sums_text(entries: Iterable[Entry]) -> str:
    """SHA256SUMS, as `sha256sum -c` reads it."""
    return "".join(f"{entry.sha256}  {entry.path}\n" for entry in sorted(entries, key=lambda one: one.path))


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[Entry], list[str]]:
    """What manifest.json says; its files as far as their names are those of a bundle, and a line for each other one.

    Raises:
        DataError: it is missing, or is no manifest of a bundle.
    """
    path = folder / MANIFEST
    try:
        state = path.lstat()
    except FileNotFoundError:
        raise DataError(f"{MANIFEST}: missing, so that nothing says what {folder} should hold") from None
    if not stat.S_ISREG(state.st_mode) or state.st_size > MOST_BYTES:
        raise DataError(f"{MANIFEST}: is no file of at most {MOST_BYTES:,} bytes")
    try:
        content = read_json(path)
    except InputError as error:
        raise DataError(f"{MANIFEST}: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("files"), list):
        raise DataError(f"{MANIFEST}: is not that of a release bundle")
    if content.get("version") != VERSION:
        raise DataError(f"{MANIFEST}: has version {content.get('version')!r}, this suite reads {VERSION}")
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for row in content["files"]:
        entry, problem = _entry(row)
        if entry is None:
            problems.append(problem)
        elif entry.path in entries:
            problems.append(f"{entry.path}: listed twice in {MANIFEST}")
        else:
            entries[entry.path] = entry
    return content, list(entries.values()), problems


def _entry(row: Any) -> tuple[Entry | None, str]:
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        return None, f"{MANIFEST}: an entry names no file: {json.dumps(row)[:80]}"
    name, size, digest = row["path"], row.get("bytes"), row.get("sha256")
    if problem := name_problem(name):
        return None, f"{name}: refused, a name in {MANIFEST} that {problem}"
    if type(size) is not int or size < 0 or not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        return None, f"{name}: {MANIFEST} has no size and SHA-256 of it"
    return Entry(PurePosixPath(name).as_posix(), size, digest), ""
