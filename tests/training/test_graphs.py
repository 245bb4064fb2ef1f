"""A run with `performance.cuda_graphs` has every loss of the run without, bit for bit, also where it goes on from a
checkpoint. On a CPU a tape stands for a CUDA graph (`tests/model/tape.py`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onevision.errors import InputError
from onevision.recipe import Recipe
from onevision.training import loop, optimizer, stepper
from onevision.training.history import read_metrics
from onevision.training.loop import train
from tests.model.tape import tape_record
from tests.training.test_transformer_engine import cut

MakeRecipe = Callable[..., Recipe]
SETTINGS: dict[str, Any] = {"global_batch_size": 2, "steps": 4, "checkpoint": {"interval": 2}}
GRAPHS = {"cuda_graphs": True, "overlap_grad_reduce": True, "bucket_size": 20_000}


def rows(recipe: Recipe) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_metrics(recipe.output)]


def check(make_recipe: MakeRecipe, folder: Path, **settings: Any) -> None:
    """Train without graphs and with them, and with them once more from the checkpoint half way."""
    performance = GRAPHS | {"cuda_graphs": False}
    plain = make_recipe("plain", performance=performance, **settings)
    graphs = make_recipe("graphs", performance=GRAPHS, **settings)
    train(plain), train(graphs)
    assert len(rows(plain)) == SETTINGS["steps"]
    assert rows(graphs) == rows(plain)
    again = cut(graphs, folder / "again", 2)
    train(again)
    assert rows(again) == rows(plain)


def test_graphs_change_no_loss(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []

    def record(compute: Any) -> Any:
        recorded.append(1)
        return tape_record(compute)

    monkeypatch.setattr(stepper, "cuda_record", lambda device: record)
    monkeypatch.setattr(loop, "machine_problems", lambda *_: [])  # that there is no GPU
    check(make_recipe, tmp_path, **SETTINGS)
    assert len(recorded) == 2 * 2 * 4  # in two runs, forward and backward, what is around the attention of three layers


def test_recordings_have_nodes_of_autograd_of_their_own(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of data parallelism belong to the stream of training: no CUDA graph can be recorded with one of them."""
    held: list[Any] = []
    found: dict[Any, bool] = {}  # nodes that take a gradient out of autograd: whether they were there before

    def data_parallel(*args: Any, **kwargs: Any) -> Any:
        wrapped = optimizer.data_parallel(*args, **kwargs)
        held.extend(wrapped.grad_accs)
        for node in held:
            node.metadata["before"] = True
        return wrapped

    def record(compute: Any) -> Any:
        results, start = tape_record(compute)
        waiting = [result.grad_fn for result in results]
        while waiting:
            if (node := waiting.pop()) is not None:
                waiting += [below for below, _ in node.next_functions]
                if hasattr(node, "variable"):
                    found[node] = "before" in node.metadata
        return results, start

    monkeypatch.setattr(stepper, "data_parallel", data_parallel)
    monkeypatch.setattr(stepper, "cuda_record", lambda device: record)
    monkeypatch.setattr(loop, "machine_problems", lambda *_: [])
    train(make_recipe(performance=GRAPHS, **SETTINGS))
    assert len(found) > 24 and not any(found.values())  # the weights of three layers, and what comes into the pieces


@pytest.mark.gpu
@pytest.mark.usefixtures("ops")
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_on_a_gpu(make_recipe: MakeRecipe, tmp_path: Path, recompute: str) -> None:
    model = {"preset": "tiny", "backend": "torch", "recompute": recompute, "recompute_modules": ["activation"]}
    check(make_recipe, tmp_path, model=model, precision="bf16", deterministic=True, **SETTINGS)


def test_where_there_is_no_gpu(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="performance.cuda_graphs=true needs a GPU, and there is none here"):
        train(make_recipe(performance={"cuda_graphs": True}))
