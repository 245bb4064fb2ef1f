"""Nothing from data is unpickled: who unpickles what is a list that is kept by hand."""

from __future__ import annotations

import ast
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

ROOT = Path(__file__).parents[2]
# Modules that read pickles or run what they read, and where these come from.
ALLOWED = {
    "jobs/call.py": "a call that this process has made itself, for Slurm's side of submitit",
    "jobs/harness.py": "what a run's first rank writes to its own child, through a pipe",
    "jobs/here.py": "what the job's own processes leave in its log folder",
    "jobs/shared.py": "what the step's own ranks leave in a temporary folder of this user",
    "jobs/task.py": "a call that this process has made itself",
    "src/onevision/convert/tensors.py": "a tensor of a verified checkpoint, with weights_only=True",
    "src/onevision/convert/consumer.py": "the modelling code beside the weights of an export that was just made",
    "src/onevision/evaluation/harness/tasks.py": "lmms-eval's own task files, by a SafeLoader without functions",
    "src/onevision/training/local_state.py": "a node's own copy of the training state, with weights_only=True",
}
READERS = {"loads", "load", "Unpickler", "pickle_load", "read_pickle"}
MODULES = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch"}


def calls(tree: ast.AST) -> list[str]:
    """What a module calls that unpickles, or runs text as code."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            module, name = node.func.value.id, node.func.attr
            if module in MODULES and name in READERS:
                found.append(f"{module}.{name}")
            if module == "yaml" and name.startswith(("load", "unsafe", "full")):
                found.append(f"yaml.{name}")
        elif isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "pickle_load"):
            found.append(node.func.id)
        found += [
            word.arg
            for word in node.keywords
            if word.arg in ("allow_pickle", "trust_remote_code") and not is_false(word.value)
        ]
        found += [f"weights_only={ast.unparse(word.value)}" for word in node.keywords if word.arg == "weights_only"]
    return found


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_the_modules_that_unpickle_are_known() -> None:
    found = {}
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        if names := calls(ast.parse(path.read_text())):
            found[path.relative_to(ROOT).as_posix()] = names
    assert set(found) == set(ALLOWED), found
    for name in ("convert/tensors.py", "training/local_state.py"):
        assert found[f"src/onevision/{name}"] == ["torch.load", "weights_only=True"]


class Bomb:
    """Unpickled it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_the_libraries_do_not_by_themselves(tmp_path: Path) -> None:
    """NumPy's files, and Arrow's types that were pickles once."""
    marker = tmp_path / "exploded"
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(marker)], object), allow_pickle=True)
    buffer.seek(0)
    with pytest.raises(ValueError, match="allow_pickle"):
        np.load(buffer)
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Bomb(marker)),
    }
    schema = pa.schema([pa.field("x", pa.binary(), metadata=metadata)])
    pa.ipc.read_schema(pa.py_buffer(schema.serialize()))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists(), "the bomb works"
