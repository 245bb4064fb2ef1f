"""One process group for all tests of this package: importing torch and Megatron is what takes the time."""

from __future__ import annotations

import pytest
import torch

from onevision.model.device import Ranks, start
from tests.data.conftest import ops

__all__ = ["device", "ops"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device, started as a world of one rank."""
    torch.set_num_threads(1)
    return start(Ranks(), seed=1234)
