"""Whatever becomes of a section: the reason is told, what it found is kept, and the others go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu.checks import FAILED, UNCHECKED, Check
from benchmarks.gpu.runner import ROOT, Ended, Section, run_sections, subprocess_environment
from jobs import gpu_check
from onevision.files import read_json

MODULE = "tests.gpu.behaviour"


def section(how: str, limit: float = 250.0, seconds: float = 1.0) -> Section:
    return Section(how.replace(" ", "-"), MODULE, seconds, limit, {"how": how})


def gone(process: int) -> bool:
    return not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE


def last(ended: Ended) -> Check:
    return ended.findings.checks[-1]


@pytest.fixture(scope="module")
def all_endings(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Ended], list[str], Path]:
    """Sections by the way they end, the lines for the terminal, and the folder of the report."""
    out = tmp_path_factory.mktemp("out")
    hows = ["breaks", "refuses", "lacks a package", "needs more", "exits", "is killed", "draws"]
    sections = [section("hangs", limit=8.0), *map(section, hows)]
    said: list[str] = []
    saved: list[str] = []
    ended = run_sections(sections, out / "log.txt", 3000, lambda one: saved.append(one.section), said.append)
    assert list(dict.fromkeys(saved)) == [one.name for one in sections]
    return {one.section: one for one in ended}, said, out


@pytest.mark.parametrize(
    ("how", "outcome", "reason"),
    [
        ("breaks", FAILED, "ValueError: a value (behaviour.py:"),
        ("refuses", FAILED, "a file is not there"),
        ("lacks-a-package", UNCHECKED, "no_such_package is not installed"),
        ("needs-more", UNCHECKED, "the GPU has no FP8"),
        ("exits", FAILED, "exit code 7; last line: for the log alone"),
        ("is-killed", FAILED, "by SIGKILL; last line: for the log alone"),
        ("hangs", FAILED, "ended after its limit of 8 s; last line: child "),
    ],
)
def test_a_section_that_does_not_end_well_says_why_and_keeps_what_it_found(
    all_endings: tuple[dict[str, Ended], list[str], Path], how: str, outcome: str, reason: str
) -> None:
    ended = all_endings[0][how]
    assert ended.findings.checks[0] == Check("before", 1.5, "s")
    assert len(ended.findings.checks) == 2
    assert last(ended).outcome == outcome and last(ended).note.startswith(reason), last(ended)
    assert bool(ended.tail) == (outcome == FAILED)
    assert ended.seconds is not None


def test_a_section_that_hangs_ends_with_all_that_it_started(
    all_endings: tuple[dict[str, Ended], list[str], Path],
) -> None:
    assert gone(int(last(all_endings[0]["hangs"]).note.rpartition(" ")[2]))


def test_what_is_for_the_terminal_the_log_and_the_report(
    all_endings: tuple[dict[str, Ended], list[str], Path],
) -> None:
    ended, said, out = all_endings
    text = "\n".join(said)
    assert "breaks (at most 250 s)" in text and "  about to end: breaks" in text and "for the log alone" not in text
    log = (out / "log.txt").read_text()
    assert "for the log alone" in log and "==== breaks" in log and "ValueError: a value\nof two lines" in log
    assert (out / "draws.svg").exists()
    assert [check.name for check in ended["draws"].findings.checks] == ["before"]


def test_what_does_not_fit_into_the_time_is_not_checked(tmp_path: Path) -> None:
    long = Section("long", MODULE, seconds=100, limit=200, settings={"how": "draws"})
    first, second = run_sections([long, section("draws", limit=50)], tmp_path / "log", 40, lambda _: None, print)
    assert first.seconds is None and last(first).outcome == UNCHECKED
    assert last(first).note == "out of time: 40 s left, takes about 100 s"
    assert second.seconds is not None and second.findings.checks == [Check("before", 1.5, "s")]
    assert (first.whole, second.whole) == (False, True)


def test_an_interrupted_check_keeps_what_it_has_and_leaves_no_process(tmp_path: Path) -> None:
    code = f"""
from dataclasses import replace
from pathlib import Path
from jobs.gpu_check import check
from tests.gpu.test_runner import section
sections = [section("draws"), section("hangs"), replace(section("draws"), name="ops")]
check(sections, "NVIDIA H100 80GB HBM3", Path({str(tmp_path)!r}), 3000)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=subprocess_environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "about to end: hangs" in line:
            break
    deadline = time.monotonic() + 20
    while "child " not in (log := (tmp_path / "log.txt").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(60) != 0
    assert "draws (" in rest and "hangs (" in rest and "not to its end)" in rest and "gpu-check.md" in rest
    content = read_json(tmp_path / "gpu-check.json")
    assert content["not_run_yet"] == ["ops"] and list(content["sections"]) == ["draws", "hangs"]
    before, rest = content["sections"]["hangs"]["checks"]
    assert before["value"] == 1.5 and (rest["outcome"], rest["note"]) == (UNCHECKED, "interrupted")
    assert gone(int(log.rpartition("child ")[2].split()[0]))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["only=party"], "unknown section 'party'; the nearest is 'parity'"),
        (["seconds=soon"], "seconds=soon is not a number above 0"),
        (["party.steps=3"], "party.steps=3: 'party' is not one of the sections environment, build,"),
        (["fast=1"], "gpu-check takes out=, seconds=, only=, again=, not fast=1"),
        (["again=party"], "again=party: unknown section 'party'; the nearest is 'parity'"),
    ],
)
def test_wrong_settings_are_refused_in_a_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.__main__ import main

    assert main(["gpu-check", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs", "gpu-check", f"out={tmp_path / 'out'}"]
    ended = subprocess.run(command, cwd=ROOT, env=subprocess_environment(), capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("error: gpu-check needs a GPU, and ")
    assert not (tmp_path / "out").exists()


def test_make_takes_the_python_that_is_named(tmp_path: Path) -> None:
    """It installs nothing: the named one is used as it is."""
    named = tmp_path / "python3"
    named.write_text('#!/bin/sh\necho "$PYTHONPATH|$@"\n')
    named.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MAKEFLAGS")}
    command = ["make", "--no-print-directory", "gpu-check", f"PYTHON={named}", "ONLY=build", "SECONDS=9", "AGAIN=ops"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout == "src:.|-m jobs gpu-check seconds=9 only=build again=ops\n"


def test_a_section_can_be_given_other_settings() -> None:
    sections = gpu_check.chosen("only", "parity,throughput")
    throughput, parity = gpu_check.with_settings(sections, ["parity.steps=100", "throughput.model=1.7b"])
    assert parity.settings == {"steps": "100"}
    assert "sanitizer" not in [one.name for one in gpu_check.chosen("only", "")]
    assert [one.name for one in gpu_check.chosen("only", "sanitizer")] == ["sanitizer"]
    assert throughput.settings["package"] == "benchmarks.throughput" and throughput.settings["model"] == "1.7b"


def test_sections_have_modules_with_a_check() -> None:
    import importlib

    for one in (*gpu_check.SECTIONS, *gpu_check.ASKED):
        assert callable(importlib.import_module(one.module).check), one.name
        assert one.seconds <= one.limit
    assert json.dumps([one.settings for one in gpu_check.SECTIONS])
