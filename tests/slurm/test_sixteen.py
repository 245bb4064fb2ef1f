"""A job of 16 ranks on all nodes, and what goes on with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.slurm.lab import Lab
from benchmarks.slurm.whole import sixteen_then_four

pytestmark = pytest.mark.slow


def test_sixteen_nodes_equal_one_process_and_four_go_on(
    lab: Lab, site_file: Path, recipe_file: Path, tmp_path: Path
) -> None:
    found = sixteen_then_four(lab, site_file, recipe_file, tmp_path)
    assert found.steps == list(range(1, 7))
    assert 1 < found.stopped < 6
    assert found.sixteen <= 1e-5
    assert found.four <= 1e-5
