"""The benchmark of generation: both ways answer alike. How fast they are is not looked at here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.generation import main


def test_both_ways_give_the_same_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompt=20", "new=4", "batches=1,3", f"out={tmp_path}"]) == 0
    content = json.loads((tmp_path / "generation.json").read_text(encoding="utf-8"))
    assert [row["measure"] for row in content["rows"]] == ["tokens/s (100% the same answers)"] * 2
    assert all(row["value"] > 0 and row["reference_value"] > 0 for row in content["rows"])
    assert content["hardware"]["preset"] == "tiny"
    assert main(["preset=small", f"out={tmp_path}"]) == 2
    assert main(["promt=20"]) == 2
    error = capsys.readouterr().err
    assert "preset='small' is not one of" in error
    assert "unknown 'promt'" in error
