"""What a person should look at before a bundle is published: absolute paths and names of hosts in its text files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

SUFFIXES = (".json", ".jsonl", ".yaml", ".log", ".out", ".err", ".txt", ".md", ".html", ".sh")
MOST_BYTES = 64 << 20  # of a file that is looked through
SHOWN = 3
_EMBEDDED = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+")  # pictures in a page
# Folders that are the same on any machine say nothing about one.
COMMON = ("usr", "dev", "proc", "sys", "etc", "lib", "lib64", "bin", "sbin", "opt", "run", "var", "tmp")
_PATH = re.compile(
    r"(?<![\w./:<>*~$\"'}\\-])/[A-Za-z_][\w.-]*(?:/[\w.@+-]+)+|(?<=[\"'])/[A-Za-z_][\w.-]*(?:/[\w.@+-]+)+"
)


def personal(folder: Path, names: Iterable[str], hosts: Iterable[str]) -> list[str]:
    """Lines of what was found: the first two parts of each path, and each of the `hosts`, with the files."""
    wanted = {host for host in hosts if host}
    host = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, sorted(wanted)))})(?![\w-])") if wanted else None
    paths: dict[str, list[str]] = {}
    seen: dict[str, list[str]] = {}
    for name in names:
        path = folder / name
        if path.suffix not in SUFFIXES or path.stat().st_size > MOST_BYTES:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".html":
            text = _EMBEDDED.sub("", text)
        for start in sorted({_start(match) for match in _PATH.findall(text)} - {""}):
            paths.setdefault(start, []).append(name)
        for known in sorted(set(host.findall(text))) if host else ():
            seen.setdefault(known, []).append(name)
    lines = [f"path {start}/… in {_files(files)}" for start, files in paths.items()]
    return lines + [f"host {known} in {_files(files)}" for known, files in seen.items()]


def _start(path: str) -> str:
    parts = path.split("/")[1:]
    return "" if parts[0] in COMMON else "/" + "/".join(parts[:2])


def _files(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if names[SHOWN:] else ""
    return ", ".join(names[:SHOWN]) + more
