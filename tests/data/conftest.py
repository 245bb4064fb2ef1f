"""What tests of the device path need."""

from __future__ import annotations

import shutil

import pytest

from onevision.ops.library import here, load


@pytest.fixture(scope="session")
def ops() -> None:
    """The ops of cuda/ for this machine, as `make cuda` builds them, loaded."""
    for compiler in ("g++", "nvcc") if here().architectures else ("g++",):
        if shutil.which(compiler) is None:
            pytest.skip(f"{compiler} is not installed")
    here().build()
    load()
