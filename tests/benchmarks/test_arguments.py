"""A benchmark that takes hours refuses an argument that it does not know before it measures anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.results import settings


@pytest.mark.parametrize("argument", ["quick", "quik=1", "=1"])
def test_what_is_mistyped_is_named(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        settings(["strict=1", argument], "quick", "strict")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {argument!r} is not one of quick=, strict=\n"


def test_a_value_may_hold_an_equals_sign() -> None:
    assert settings(["folder=a=b", "strict="], "folder", "strict") == {"folder": "a=b", "strict": ""}


def test_the_check_of_layouts_says_nothing_else_before_an_error() -> None:
    command = [sys.executable, "-m", "benchmarks.parallel", "quick=1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: unknown argument 'quick=1'; there are only=TEXT and strict=1\n"
