"""One row, measured in a process of its own, so that memory is fresh and a failure stays its own.

    python -m benchmarks.throughput.rows SPECIFICATION.json ROW.json

A specification is {"kind": "training", "recipes": [...], "settings": {...}}, whose recipes are tried in turn until one
fits, {"kind": "peer", "peers": [...]}, likewise, or {"kind": "calibration", "model": preset, "attention": torch or
flash_attn_4}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onevision.files import read_json, write_json
from onevision.recipe import Recipe, recipe_dict

_SHOWN = 1500  # characters of a row's line, so that many rows fit into a terminal's memory


def training_row(recipes: Sequence[Recipe], settings: dict[str, Any]) -> dict[str, Any]:
    """The specification of a training row."""
    return {"kind": "training", "recipes": [recipe_dict(recipe) for recipe in recipes], "settings": settings}


def peer_row(peers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The specification of a peer's row."""
    return {"kind": "peer", "peers": list(peers)}


def lacks(specification: dict[str, Any]) -> str:
    """What a specification needs and this machine lacks; empty if it can be measured."""
    if specification["kind"] == "training":
        return ""
    import torch

    if specification["kind"] == "calibration":
        return "" if torch.cuda.is_available() else "needs a GPU"
    from benchmarks.throughput.peers import Peer, missing

    return missing(Peer(**specification["peers"][0]))


def measured_apart(name: str, specification: dict[str, Any], folder: Path, seconds: float) -> dict[str, Any]:
    """The row of a specification from a process of its own, which may take so many seconds; a row with `failed` if it
    did not come. Prints the row as soon as it is there, and leaves row and log in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked, answer, log = (folder / f"{name}{suffix}" for suffix in (".asked.json", ".json", ".log"))
    write_json(asked, specification)
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.throughput.rows", str(asked), str(answer)]
    began = time.monotonic()
    with log.open("w") as output:
        try:
            code = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                env=os.environ | {"OMP_WAIT_POLICY": "passive"},
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    asked.unlink()
    if answer.exists():
        row = read_json(answer)
    else:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-8:]
        why = f"not done after {seconds:.0f} s" if code == -1 else f"ended with code {code}"
        row = {"what": specification["kind"], "failed": f"{why}: " + " | ".join(last)}
    row = {"name": name, "wall_seconds": round(time.monotonic() - began, 1)} | row
    write_json(answer, row)
    print(row_line(row), flush=True)
    return row


def row_line(row: dict[str, Any]) -> str:
    """The row as one line of JSON, without what is long."""
    short = {key: value for key, value in row.items() if key not in ("environment", "tried", "layout", "versions")}
    if short.get("kernels"):
        short["kernels"] = {key: value for key, value in short["kernels"].items() if key != "top"}
    text = json.dumps(_rounded(short), separators=(",", ":"))
    return f"ROW {text if len(text) <= _SHOWN else text[: _SHOWN - 3] + '...'}"


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _measure(specification: dict[str, Any]) -> dict[str, Any]:
    if specification["kind"] == "calibration":
        from benchmarks.throughput.calibrate import calibration

        return {"what": "calibration"} | calibration(specification["model"], specification["attention"])
    if specification["kind"] == "peer":
        from benchmarks.throughput.peers import Peer, measure_first_peer

        return measure_first_peer([Peer(**values) for values in specification["peers"]])
    from jobs.ranks import ready_model

    ready_model()
    from benchmarks.throughput.measure import Settings, measure_first_fitting
    from onevision.model.device import Ranks
    from onevision.recipe import recipe_from

    given = dict(specification["settings"])
    given["folder"] = Path(given["folder"]) if given.get("folder") else None
    recipes = [recipe_from(values) for values in specification["recipes"]]
    return measure_first_fitting(recipes, Ranks(), Settings(**given), print)


def main(asked: str, answer: str) -> None:
    """Measure the specification in the file `asked` and write the row to the file `answer`."""
    specification = json.loads(Path(asked).read_text(encoding="utf-8"))
    try:
        row = _measure(specification)
    except Exception as error:
        traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        row = {"what": specification["kind"], "failed": f"{type(error).__name__}: {str(error)[:400]} ({where})"}
    write_json(answer, row)


if __name__ == "__main__":
    main(*sys.argv[1:])
