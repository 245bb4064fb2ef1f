from __future__ import annotations

import subprocess
import sys

import torch

LOOK = """
import sys
from jobs.ranks import ready_model
ready_model()
import torch
import onevision.training.loop
from onevision.training.determinism import set_determinism
set_determinism(False)
torch.optim.Adam([torch.zeros(1, requires_grad=True)]).zero_grad()
print("torch._dynamo" in sys.modules, torch.compile.__module__)
"""


def test_a_rank_loads_the_compiler_only_for_a_gpu() -> None:
    answer = subprocess.run([sys.executable, "-c", LOOK], check=True, capture_output=True, text=True)
    assert answer.stdout.split() == [str(torch.cuda.is_available()), "torch"]
