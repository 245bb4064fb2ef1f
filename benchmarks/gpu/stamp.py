"""When and from what code a section ran: what a later piece of the same check may keep."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from pathlib import Path

from onevision.machine import commit, version

ROOT = Path(__file__).resolve().parents[2]
CODE = ("src", "cuda", "jobs", "benchmarks", "tests")  # what decides what a section finds
KINDS = (".py", ".cu", ".cuh", ".cpp", ".h", ".yaml", ".jinja")
PACKAGES = ("torch", "triton", "megatron-core", "transformer-engine")
LEFT_OUT = ("build", "results", "__pycache__")


@dataclass(frozen=True)
class Stamp:
    """`began`: UTC, to the second. `commit` is what git says, and may lack changes; `code` is a digest of the files."""

    began: str = ""
    commit: str = ""
    code: str = ""

    def __str__(self) -> str:
        named = f"commit {self.commit[:10]}, " if self.commit else ""
        return f"{self.began}, {named}code {self.code}"


def stamp() -> Stamp:
    """Of now, and of the code as it lies there."""
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds").removesuffix("+00:00")
    return Stamp(f"{now} UTC", commit() or "", code_digest(ROOT))


def code_digest(root: Path) -> str:
    """12 hexadecimal digits of all code below `root` and of the versions of what it stands on; no document, result or
    build changes it."""
    digest = hashlib.sha256(repr([(name, version(name)) for name in PACKAGES]).encode())
    for folder in CODE:
        for path in sorted((root / folder).rglob("*")):
            place = path.relative_to(root)
            if path.suffix in KINDS and not set(place.parts) & set(LEFT_OUT):
                content = path.read_bytes()
                digest.update(f"{place} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]
