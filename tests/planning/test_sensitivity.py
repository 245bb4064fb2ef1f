"""What an assumption does to a time."""

from __future__ import annotations

import pytest

from onevision.planning.hardware import GPUS
from onevision.planning.sensitivity import sensitivities
from tests.planning.common import PACKS


def test_each_is_changed_alone_by_a_fifth() -> None:
    gpu = GPUS["a800"]
    found = sensitivities(lambda one, packs: 3 / one.gemm.value + packs.sample_patches / 2200, gpu, PACKS)
    base = 3 / 0.7 + 1
    by_name = {one.name: one for one in found}
    assert [one.name for one in found[:2]] == ["gemm", "sample_patches"]
    assert by_name["gemm"].lower == pytest.approx((3 / 0.56 + 1) / base - 1)
    assert by_name["gemm"].higher == pytest.approx((3 / 0.84 + 1) / base - 1)
    assert by_name["sample_patches"].effect == pytest.approx(0.2 / base)
    assert by_name["network"].effect == 0
    assert set(by_name) == {name for name, figure in gpu.figures().items() if figure.assumed} | {"sample_patches"}
