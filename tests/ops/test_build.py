from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onevision.errors import DataError, InputError
from onevision.ops import build, check
from onevision.ops.build import CHECKED, Library

NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


@NVCC
def test_kernels_compile_for_both_gpus_and_spill_nothing(folder: Path) -> None:
    found = check.compile_all(folder)
    assert {kernel.architecture for kernel in found} == {"80", "90"}
    names = [{kernel.name for kernel in found if kernel.architecture == arch} for arch in CHECKED]
    assert names[0] == names[1] and "rotary_kernel<bf16, 8>" in names[0]
    assert len(found) == 2 * len(names[0])
    assert all(0 < kernel.registers <= 255 for kernel in found)
    assert not any(kernel.spill_stores or kernel.spill_loads for kernel in found)


@NVCC
def test_the_library_for_gpus_loads_anywhere_and_registers_kernels_for_all_devices(folder: Path) -> None:
    path = Library(CHECKED).build(folder)
    code = f"""
import torch
torch.ops.load_library({str(path)!r})
has = torch._C._dispatch_has_kernel_for_dispatch_key
ops = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("onevision::")]
print(*(f"{{op}} {{has(op, 'CUDA')}} {{has(op, 'CPU')}}" for op in ops), sep="\\n")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not ended.returncode, ended.stderr
    registered = [line.split() for line in ended.stdout.splitlines()]
    assert "onevision::rotary" in [op for op, *_ in registered]
    assert all(kernels == ["True", "True"] for _, *kernels in registered)


def test_every_kernel_is_its_twin_on_ragged_extremes(libraries: ctypes.CDLL, folder: Path) -> None:
    compared = list(check.compare_all(folder))
    assert len(compared) == len({(one.op, one.case) for one in compared}) > 5


def test_a_kernel_that_is_off_is_told(
    libraries: ctypes.CDLL, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(ops: object) -> list[torch.Tensor]:
        return [torch.tensor([1.0, 2.0 + 1e-4 * (ops is torch.ops.onevision)])]

    monkeypatch.setattr(check, "extremes", lambda: iter([("rotary", "a case", wrong)]))
    with pytest.raises(DataError, match=r"rotary, a case: the kernel is off its twin by 5.0e-05"):
        list(check.compare_all(folder))


@pytest.mark.parametrize("library", [Library(), Library(emulated=True), Library(CHECKED)])
def test_without_a_compiler_one_line_says_so(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^g\+\+ is not on PATH, .*: apt-get install g\+\+$"):
        library.build(tmp_path)
    (tmp_path / "g++").symlink_to(sys.executable)
    if library.architectures:
        with pytest.raises(InputError, match=r"^nvcc is not on PATH, .*: install CUDA 13.0"):
            library.build(tmp_path)


def test_a_library_that_was_not_built_is_not_loaded(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from onevision.ops.library import load
load(folder=Path({str(tmp_path)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "InputError" in ended.stderr.splitlines()[-1] and ended.stderr.endswith(".so is not there: make cuda\n")


def test_another_source_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Library().path()
    shutil.copytree(build.SOURCES, tmp_path / "cuda", ignore=shutil.ignore_patterns("build"))
    monkeypatch.setattr(build, "SOURCES", tmp_path / "cuda")
    assert Library().path() == before
    with (tmp_path / "cuda" / "kernels.h").open("a") as header:
        header.write("// changed\n")
    assert Library().path() != before


def test_the_first_complaint_of_a_compiler_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(build.SOURCES, tmp_path / "cuda", ignore=shutil.ignore_patterns("build"))
    (tmp_path / "cuda" / "binding.cpp").write_text("int answer() {}\n")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "cuda")
    with pytest.raises(InputError, match=r"^g\+\+ failed: .*binding.cpp:1:15: error: no return statement"):
        Library().build(tmp_path / "built")
    assert not list((tmp_path / "built").iterdir())
