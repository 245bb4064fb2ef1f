"""A benchmark that takes hours refuses an argument that it does not know before it measures anything."""

from __future__ import annotations

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
