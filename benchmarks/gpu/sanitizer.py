"""Asked for by name: the ops of cuda/ under compute-sanitizer, which sees what no comparison of values does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.checks import Findings, NotChecked, say
from onevision.ops.library import here

# Bytes outside of any allocation; shared memory without a barrier; threads that wait at different barriers.
TOOLS = ("memcheck", "racecheck", "synccheck")
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")


def check(findings: Findings, scratch: Path, tools: str = ",".join(TOOLS)) -> None:
    """Run `benchmarks.gpu.smallest` under each tool.

    Raises:
        NotChecked: compute-sanitizer is not on PATH, or the ops are not built.
    """
    if shutil.which("compute-sanitizer") is None:
        raise NotChecked("compute-sanitizer is not on PATH")
    if not here().path().exists():
        raise NotChecked("the ops of cuda/ are not built: run the section build")
    for tool in tools.split(","):
        log = scratch / f"{tool}.txt"
        command = [
            "compute-sanitizer", "--tool", tool, "--log-file", str(log), "--print-limit", "20",
            sys.executable, "-m", "benchmarks.gpu.smallest",
        ]  # fmt: skip
        code = subprocess.run(command).returncode
        said = log.read_text(errors="replace") if log.exists() else ""
        print(said, flush=True)
        found = _SUMMARY.search(said)
        if found is None:
            findings.failed(tool, f"exit code {code} and no summary: {said.strip()[-200:] or 'it said nothing'}")
            continue
        findings.goal(f"{tool}: errors", int(found[1]), "", "none", found[1] == "0" and code == 0, f"exit code {code}")
        say(f"{tool}: {found[1]} errors")
