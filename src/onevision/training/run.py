"""The run folder: recipe, environment, lineage, lock, and the key that says whether it is the same run."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from onevision.errors import InputError
from onevision.files import read_json, storage_errors, write_json
from onevision.fingerprint import value_digest
from onevision.recipe import Recipe, recipe_dict, save_recipe

# What may change between two starts of the same run, because it changes no result.
FREE_KEYS = (
    "name",
    "output",
    "checkpoint",
    "evaluation",
    "train.log_interval",
    "train.threads",
    "train.peak_tflops",
    "data.workers",
)
PACKAGES = ("torch", "megatron-core", "numpy", "h5py", "tokenizers", "pillow", "transformer-engine")


def deciding_values(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe that decide a result, as a flat mapping of dotted keys."""
    flat: dict[str, Any] = {}

    def walk(node: dict[str, Any], prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in FREE_KEYS:
                continue
            if isinstance(value, dict):
                walk(value, f"{key}.")
            else:
                flat[key] = value

    walk(recipe_dict(recipe), "")
    return flat


def open_run(recipe: Recipe, inputs: dict[str, str]) -> Path:
    """Create or reopen the run folder of a recipe; `inputs` names the fingerprints of what the run reads.

    Raises:
        InputError: the folder belongs to a run with other settings or inputs, which are named.
    """
    if not recipe.output:
        raise InputError("output is empty: name the run folder with output=runs/NAME")
    run = Path(recipe.output)
    identity = {"values": deciding_values(recipe), "inputs": inputs}
    with storage_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        record = run / "run.json"
        if record.exists():
            before = read_json(record)
            changed = [
                f"{key}={after.get(key)!r} (was {earlier.get(key)!r})"
                for part in ("values", "inputs")
                for earlier, after in [(before[part], identity[part])]
                for key in sorted({*earlier, *after})
                if earlier.get(key) != after.get(key)
            ]
            if changed:
                raise InputError(
                    f"{run} holds a run made with other settings: {', '.join(changed)}; "
                    "choose another output, or remove the folder to start over"
                )
        else:
            write_json(record, identity)
        save_recipe(recipe, run / "recipe.yaml")
    return run


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Keep two processes from training in one folder.

    It is a record lock, which forked helpers do not inherit: it ends with this process, however that ends.

    Raises:
        InputError: another process holds it.
    """
    with (run / ".lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise InputError(f"{run} is being written by process {holder}: wait for it or stop it") from None
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def write_environment(run: Path, device: torch.device, world_size: int, threads: int, peak: tuple[float, str]) -> None:
    """Write environment.json: versions, commit and hardware."""
    write_json(run / "environment.json", environment(device, world_size, threads, peak))


def environment(device: torch.device, world_size: int, threads: int, peak: tuple[float, str]) -> dict[str, Any]:
    """Versions, commit and hardware of this process."""
    return {
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "world_size": world_size,
        "threads": threads,
        "peak_tflops": round(peak[0] / 1e12, 3),
        "peak_source": peak[1],
    }


def write_lineage(run: Path, inputs: dict[str, str], parents: dict[str, str]) -> None:
    """Write lineage.json: the fingerprints of what the run read, and the lineage of what those were made from.

    `parents` maps a name to the folder that made it; their own lineage.json or step.json is taken in, down to the
    source's images.
    """
    lineage: dict[str, Any] = {"inputs": inputs, "made_from": {}}
    for name, folder in parents.items():
        for file in ("lineage.json", "step.json"):
            path = Path(folder) / file
            if path.exists():
                lineage["made_from"][name] = {"folder": str(folder), file: read_json(path)}
                break
    lineage["fingerprint"] = value_digest(lineage)
    write_json(run / "lineage.json", lineage)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).parent
    answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
