"""Files of variables for communication."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.nccl import read_nccl
from onevision.errors import InputError


def test_values_and_reasons(tmp_path: Path) -> None:
    path = tmp_path / "x.env"
    path.write_text("# head\n\nNCCL_IB_HCA==mlx5_0,mlx5_1:1  # a = b\n  OMP_NUM_THREADS=1 # why\n# NCCL_NET=IB  # x\n")
    assert read_nccl(path) == {"NCCL_IB_HCA": "=mlx5_0,mlx5_1:1", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("NCCL_NET=IB", "line 2: NCCL_NET has no reason; write it behind the value: NCCL_NET=IB  # why"),
        ("NCCL_NET=IB  #", "is not of the form NAME=value  # reason"),
        ("NCCL_NET IB  # why", "is not of the form NAME=value  # reason"),
        ("export NCCL_NET=IB  # why", "is not of the form NAME=value  # reason"),
        ("NCCL_NET=  # why", "is not of the form NAME=value  # reason"),
        ("LD_PRELOAD=/x.so  # why", "line 2: LD_PRELOAD does not begin with one of NCCL_, GLOO_, UCX_, OMP_, CUDA_"),
        ("NCCL_DEBUG=INFO  # why", "line 2: NCCL_DEBUG stands there twice"),
    ],
)
def test_a_wrong_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "x.env"
    path.write_text(f"NCCL_DEBUG=WARN  # why\n{line}\n")
    with pytest.raises(InputError) as error:
        read_nccl(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_nccl(tmp_path / "none.env")
    with pytest.raises(InputError, match="cannot be read"):
        read_nccl(tmp_path)
