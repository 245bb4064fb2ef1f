"""Fingerprints: 128-bit xxh3 of files and of plain values, as 32 hexadecimal digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash


def bytes_digest(data: bytes) -> str:
    """Digest of a byte string."""
    return xxhash.xxh3_128_hexdigest(data)


def file_digest(path: str | Path) -> str:
    """Digest of a file's content, read in 8 MiB blocks."""
    state = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while block := file.read(8 << 20):
            state.update(block)
    return state.hexdigest()


def value_digest(value: Any) -> str:
    """Digest of a JSON-serialisable value; the order of dictionary keys does not count."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return bytes_digest(text.encode(errors="surrogatepass"))


def folder_digest(folder: str | Path, pattern: str = "**/*") -> str:
    """Digest of the names and contents of the files below a folder."""
    root = Path(folder)
    files = sorted(path for path in root.glob(pattern) if path.is_file())
    return value_digest([[path.relative_to(root).as_posix(), file_digest(path)] for path in files])
