"""Memory and bandwidth of export and import of a large model, beside a copy of the same bytes on the same disk.

Each runs in a process of its own, whose peak memory is the system's count of it (VmHWM: interpreter and libraries
included, page cache not), on files that are not in the page cache. The copy reads and writes blocks of 8 MiB and syncs
every file, as export and import do; it is made right before, since a disk that others use too is not the same all day.
What must be in memory at once is a group of tensors that make up one: query, key and value, or gate and up; the largest
one is the embedding, or the head.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.export.loaders import small_tokenizer
from benchmarks.results import Row
from onevision.convert.mapping import tensor_groups
from onevision.convert.tensors import TensorInfo, require_space, write_megatron
from onevision.model.presets import Architecture
from onevision.training.checkpoint_files import commit, step_folder

BLOCK = 8 << 20
MEMORY, BANDWIDTH = 1.5, 0.8  # goals: of the largest group; of the copy


def rows(root: Path, architecture: Architecture) -> list[Row]:
    """Peak memory and bandwidth of an export and of an import."""
    tokenizer = small_tokenizer(root)
    sizes = [TensorInfo(group.shape, torch.bfloat16).nbytes for group in tensor_groups(architecture)]
    require_space(root, 2 * sum(sizes) + max(sizes))
    run, exported, again = root / "run", root / "exported", root / "again"
    print(f"writing a checkpoint of {sum(sizes) / 1e9:.1f} GB …", flush=True)
    weights(run, architecture)
    found = _measured("export", [run, exported, tokenizer], step_folder(run, 0), exported, sizes)
    shutil.rmtree(run)
    found += _measured("import", [exported, again, architecture.name], exported, again, sizes)
    return found


def weights(run: Path, architecture: Architecture) -> None:
    """A stage-0 run folder of BF16 weights, random in blocks of 64 MB."""
    block = torch.randn(1 << 25).to(torch.bfloat16)
    info = {group.key: TensorInfo(group.shape, torch.bfloat16) for group in tensor_groups(architecture)}

    def read(key: str) -> torch.Tensor:
        tensor = torch.empty(info[key].shape, dtype=torch.bfloat16)
        for part in tensor.view(-1).split(len(block)):
            part.copy_(block[: len(part)])
        return tensor

    temporary = step_folder(run, 0).with_name(".step_00000000.tmp")
    temporary.mkdir(parents=True)
    commit(temporary, run, 0, architecture, keep=1, digests=write_megatron(temporary, info, read))


def _measured(what: str, arguments: list[Any], source: Path, target: Path, sizes: list[int]) -> list[Row]:
    """The two rows of an export or import that reads `source` and writes `target`."""
    copy = target.with_name("copy")
    _forget_cache(source)
    seconds = timed(lambda: copy_files(source, copy))
    shutil.rmtree(copy)
    _forget_cache(source)
    command = [sys.executable, "-m", "benchmarks.export.alone", what, *map(str, arguments)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told = json.loads(ended.stdout.strip().splitlines()[-1])
    total, largest = sum(sizes), max(sizes)
    return [
        Row(
            what,
            f"peak memory, {total / 1e9:.1f} GB of weights",
            told["peak_bytes"] / 1e9,
            "GB",
            "largest group of tensors",
            largest / 1e9,
            f"< {MEMORY} of it",
            told["peak_bytes"] < MEMORY * largest,
        ),
        Row(
            what,
            "bandwidth, cold cache, synced",
            total / 1e6 / told["seconds"],
            "MB/s",
            "a copy of the same files",
            total / 1e6 / seconds,
            f">= {BANDWIDTH:.0%} of it",
            told["seconds"] * BANDWIDTH <= seconds,
        ),
    ]


def copy_files(source: Path, target: Path) -> None:
    """Copy the files of a folder block by block, each synced."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        with path.open("rb") as reader, (target / path.name).open("wb") as writer:
            while block := reader.read(BLOCK):
                writer.write(block)
            writer.flush()
            os.fsync(writer.fileno())


def _forget_cache(folder: Path) -> None:
    """Have the files of a folder leave the page cache."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.monotonic()
    call()
    return time.monotonic() - start
