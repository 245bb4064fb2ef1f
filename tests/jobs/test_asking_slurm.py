"""What Slurm's commands and make's targets are given, without a cluster."""

from __future__ import annotations

import subprocess

import pytest

from jobs.slurm import Slurm


def test_what_a_person_set_for_commands_typed_by_hand_does_not_filter_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("SQUEUE_STATES", "SINFO_PARTITION", "SACCT_FORMAT", "SCANCEL_INTERACTIVE", "SBATCH_ACCOUNT")
    for name in names:
        monkeypatch.setenv(name, "1")
    assert not set(names) & set(Slurm().environment())


@pytest.mark.parametrize("run", ["mine", "mine/", "runs/mine/"])
def test_a_slash_behind_a_run_is_not_its_name(run: str) -> None:
    command = ["make", "--dry-run", "--no-print-directory", "--old-file=.venv/.ready", "stage1", "MODEL=tiny"]
    text = subprocess.run([*command, f"RUN={run}"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert "name=mine output=runs/mine" in text
