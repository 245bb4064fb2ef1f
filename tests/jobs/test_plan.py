"""`python -m jobs plan`."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from jobs.__main__ import main
from onevision.planning.hardware import GPUS
from onevision.planning.plan import make_plan
from onevision.planning.published import check
from onevision.planning.text import print_plan
from onevision.planning.work import Packs
from onevision.recipe import load_recipe

RECIPE = "jobs/recipes/8b/stage1_5.yaml"


def test_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    assert main(["plan", RECIPE, "gpus=16", "gpu=h100", "gpu.gemm=0.5", f"json={path}", "rows=3"]) == 0
    text = capsys.readouterr().out
    assert "what matters most" in text and "published 3.7 days" in text
    plan = json.loads(path.read_text())
    assert plan["figures"]["gemm"] == {"value": 0.5, "unit": "share", "source": "given as gpu.NAME"}
    seconds = [layout["seconds"] for layout in plan["layouts"]]
    assert seconds == sorted(seconds)
    for layout in plan["layouts"]:
        assert sum(layout["parts"].values()) == pytest.approx(layout["seconds"])
        assert sum(layout["memory"].values()) <= 85.5e9
    for size in ("tensor", "pipeline", "virtual_pipeline", "context"):
        assert {layout[size] for layout in plan["layouts"]} > {1}
    assert any("GB, the largest part" in reason for reason in plan["refused"])
    assert "gemm" not in {one["name"] for one in plan["sensitivities"]}  # it was given


def test_a_plan_fits_the_terminal_and_is_whole_elsewhere() -> None:
    recipe = load_recipe(RECIPE, ["train.global_batch_size=16"])
    plan, found = make_plan(recipe, 16, GPUS["a800"], Packs(8192, 10.0, 753.0, 2259.0)), check(GPUS["a800"])
    shown = {}
    for width in (None, 160, 150, 80, 60):
        out = io.StringIO()
        print_plan(plan, found, Console(file=out, force_terminal=width is not None, width=width or 80), rows=3)
        shown[width] = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines()]
    assert shown[None] == shown[160] and any(len(line) > 130 for line in shown[None])
    words = " ".join(shown[None]).split()
    for width in (150, 80, 60):
        assert max(map(len, shown[width])) <= width and "…" not in "".join(shown[width])
        (head,) = [line.split() for line in shown[width] if line.split()[:1] == ["TP"]]
        assert ("compute" in head) == (width != 60) and "GB" in head and "bubble" not in head
        assert " ".join(shown[width]).split()[-60:] == words[-60:]  # lines go on below


def test_a_batch_below_the_gpus_is_raised_unless_it_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", RECIPE, "gpus=32"]) == 0
    assert "train.global_batch_size=16 is below 32 GPUs: planned with 32" in capsys.readouterr().out
    assert main(["plan", RECIPE, "gpus=32", "train.global_batch_size=16"]) == 0
    assert "32 x a800, 16 packs a step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["gpu=v100"], "gpu=v100 is not one of"),
        (["gpus=9999999999"], "gpus=9999999999 is above 65536"),
        (["gpus=8", "gpu=h100", "json=jobs"], "json=jobs cannot be written: Is a directory"),
        (["gpus=0"], "gpus=0 is not a whole number"),
        (["nodes=2"], "without nodes=2: say gpus=N gpu=NAME"),
        (["gpus=1"], "no layout of 8b on gpus=1 gpu=a800"),
        (["gpu.gem=0.5"], "unknown figure 'gem'; the nearest is 'gemm'"),
        (["gpu.gemm=fast"], "gemm=fast is not a number"),
        (["train.precision=fp8"], "train.precision=fp8"),
        (["train.precision=fp32"], "train.precision=fp32"),
        (["sample_tokens=9000"], "do not go into packs"),
        (["sample_tokens=0"], "sample_tokens=0 is not a number above 0"),
        (["sample_tokens=100", "sample_patches=500"], "more than 4 for each"),
        (["packs=nowhere"], "nowhere/packs.h5 does not exist"),
        (["packs=nowhere", "pack_samples=9"], "give one of them"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_line(
    settings: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", RECIPE, *settings]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_it_starts_without_torch() -> None:
    code = f"import sys; from jobs.__main__ import main; main(['plan', '{RECIPE}']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
