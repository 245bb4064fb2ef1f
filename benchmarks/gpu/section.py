"""`python -m benchmarks.gpu.section MODULE FINDINGS.json SCRATCH [key=value ...]`: one section, in its own process."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from benchmarks.gpu.checks import EARLIER, ENDINGS, Findings, NotChecked, read_findings
from onevision.errors import Interrupted, OneVisionError
from onevision.files import write_json


def main(arguments: list[str]) -> int:
    """Run `MODULE.check(findings, scratch, **settings)`; what it raises becomes a finding. Exit code 1 if it broke,
    that of `Interrupted` if a signal ended its training."""
    module, path, scratch, *settings = arguments
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    before = Path(path).with_name(EARLIER)
    earlier = read_findings(before) if before.exists() else None
    findings = Findings(Path(path), earlier=earlier)
    # What an earlier piece found stands until there is as much again: this piece may end sooner.
    write_json(findings.path, (earlier or findings).content())
    try:
        check = importlib.import_module(module).check
        check(findings, Path(scratch), **dict(setting.split("=", 1) for setting in settings))
    except Interrupted as stopped:  # nothing failed: training saves and ends when time is up, which the runner notes
        print(stopped, flush=True)
        return stopped.exit_code
    except NotChecked as reason:
        findings.unchecked(ENDINGS[not findings.checks], str(reason))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("onevision", "benchmarks", "jobs", "tests"):
            return _broke(findings, error)
        findings.unchecked(ENDINGS[not findings.checks], f"{error.name} is not installed")
    except Exception as error:
        return _broke(findings, error)
    return 0


def _end_with(parent: int) -> None:
    """End this process group as soon as `parent` is gone: killed, it could not do so, and the GPU would stay taken."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _broke(findings: Findings, error: Exception) -> int:
    traceback.print_exc()
    findings.failed("it broke", reason_of(error))
    return 1


def reason_of(error: BaseException) -> str:
    """Kind, first line and place of an error; the line alone for one that is meant for a reader."""
    line = (str(error).splitlines() or [""])[0]
    if isinstance(error, OneVisionError):
        return line
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    place = f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    return f"{type(error).__name__}: {line}{place}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
