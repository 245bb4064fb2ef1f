"""Figures of GPUs, and what replaces them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from onevision.errors import InputError
from onevision.planning.hardware import GPUS, SHARE, calibrated, find_gpu, with_figures

A800 = GPUS["a800"]


def test_every_figure_has_a_source_and_is_possible() -> None:
    for gpu in GPUS.values():
        for name, figure in gpu.figures().items():
            assert figure.source, (gpu.name, name)
            assert 0 <= figure.value <= (1 if figure.unit == SHARE else float("inf")), (gpu.name, name)


@pytest.mark.parametrize("name", ["a800", "h100"])
def test_memory_is_that_of_the_site_profile(name: str) -> None:
    profile = OmegaConf.load(Path("sbatch/clusters") / f"{name}.yaml")
    assert GPUS[name].memory.value == profile.gpu_memory_gb


def calibration(folder: Path, **content: object) -> Path:
    path = folder / "gpu-check.json"
    path.write_text(json.dumps({"gpu": "a800", "date": "2026-01-31", "measured": {}} | content))
    return path


def test_a_calibration_replaces_only_what_it_measured(tmp_path: Path) -> None:
    path = calibration(tmp_path, measured={"gemm": 0.61, "waiting": 0})
    gpu = calibrated(A800, path)
    assert (gpu.gemm.value, gpu.waiting.value) == (0.61, 0.0)
    assert gpu.gemm.source == f"measured 2026-01-31: {path}"
    assert not gpu.gemm.assumed and A800.gemm.assumed
    assert gpu.attention == A800.attention


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"measured": {"gem": 0.5}}, "unknown figure 'gem'; the nearest is 'gemm'"),
        ({"measured": {"gemm": 1.2}}, "gemm=1.2 is a share"),
        ({"measured": {"gemm": 0}}, "gemm=0 is not a number"),
        ({"measured": {"gemm": "fast"}}, "gemm='fast' is not a number"),
        ({"measured": {"gemm": True}}, "gemm=True is not a number"),
        ({"measured": {"network": float("nan")}}, "network=nan is not a number"),
        ({"gpu": "h100"}, "measured on gpu=h100 and the plan is for gpu=a800"),
        ({"measured": [1]}, "needs an object `measured`"),
    ],
)
def test_a_wrong_calibration_is_refused(tmp_path: Path, content: dict[str, object], said: str) -> None:
    path = calibration(tmp_path, **content)
    with pytest.raises(InputError) as error:
        calibrated(A800, path)
    assert said in str(error.value) and str(path) in str(error.value)


def test_unknown_gpus_are_refused() -> None:
    with pytest.raises(InputError, match="gpu=v100 is not one of a800"):
        find_gpu("v100")
    assert with_figures(A800, {}, "nothing") == A800
