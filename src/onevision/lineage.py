"""What a result was made from: the fingerprints of its inputs, and the lineage of what those were made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onevision.files import read_json, write_json
from onevision.fingerprint import value_digest


def write_lineage(folder: Path, inputs: Mapping[str, Any], parents: Mapping[str, str]) -> None:
    """Write lineage.json into `folder`: fingerprints of what was read, and the lineage of what that was made from.

    `parents` maps a name to the folder that made it; their own lineage.json or step.json is taken in, down to the
    source's images. Of one that is gone it stays what an earlier lineage.json in `folder` says, for the same input.
    """
    former = read_json(folder / "lineage.json") if (folder / "lineage.json").exists() else {}
    lineage: dict[str, Any] = {"inputs": dict(inputs), "made_from": {}}
    for name, parent in parents.items():
        for file in ("lineage.json", "step.json"):
            path = Path(parent) / file
            if path.exists():
                lineage["made_from"][name] = {"folder": str(parent), file: read_json(path)}
                break
        else:
            known = former.get("made_from", {}).get(name)
            if known and former["inputs"].get(name) == inputs.get(name):
                lineage["made_from"][name] = known
    lineage["fingerprint"] = value_digest(lineage)
    write_json(folder / "lineage.json", lineage)
