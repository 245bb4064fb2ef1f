"""What import and export say at their end."""

from __future__ import annotations

from jobs.convert import summary_line

SIZES = {"architecture": "tiny", "tensors": 74, "parameters": 1_852_112, "bytes": 7_408_448}


def test_a_summary_is_a_line_for_a_person() -> None:
    assert summary_line({**SIZES, "ignored": []}) == "tiny, 1,852,112 parameters, 74 tensors, 7,408,448 bytes"
    exported = {**SIZES, "step": 800, "dtype": "float32", "shards": 1}
    assert summary_line(exported) == f"step 800, {summary_line(SIZES)}, float32, shards: 1"
