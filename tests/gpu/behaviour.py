"""A section for the tests, that ends in the way it is told to."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import time
from pathlib import Path

from benchmarks.gpu.checks import Findings, NotChecked, say
from onevision.errors import InputError


def check(findings: Findings, scratch: Path, how: str) -> None:
    """Note one fact, then end as `how` says."""
    findings.fact("before", 1.5, "s")
    say(f"about to end: {how}")
    print("for the log alone")
    if how == "breaks":
        raise ValueError("a value\nof two lines")
    if how == "refuses":
        raise InputError("a file is not there")
    if how == "lacks a package":
        importlib.import_module("no_such_package.part")
    if how == "needs more":
        raise NotChecked("the GPU has no FP8")
    if how == "exits":
        os._exit(7)
    if how == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hangs":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "600"])
        (scratch / "child").write_text(str(child.pid))
        print(f"child {child.pid}")
        time.sleep(600)
    if how == "draws":
        (scratch / "curve.svg").write_text("<svg/>")
    if how.startswith("stages "):
        _stages(findings, Path(how.removeprefix("stages ")))


def _stages(findings: Findings, journal: Path) -> None:
    """Three parts, of which each is kept once it is done; the second hangs as long as the file `gate` is not there."""
    done = dict(findings.earlier.facts) if findings.earlier else {}
    for part in ("first", "second", "third"):
        if part not in done:
            with journal.open("a") as out:
                out.write(f"{part}\n")
            if part == "second" and not journal.with_name("gate").exists():
                child = subprocess.Popen(["sleep", "600"])
                journal.with_name("child").write_text(str(child.pid))
                time.sleep(600)
            done[part] = 1
        findings.facts[part] = done[part]
        findings.save()
