"""Tensors on disk: what the libraries read and write, one tensor in memory, and one line for what is broken."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core import dist_checkpointing
from safetensors.torch import load_file, save_file
from torch import Tensor

from onevision.convert.tensors import (
    INDEX_FILE,
    MegatronTensors,
    SafetensorsFolder,
    TensorInfo,
    check_shapes,
    require_space,
    shards_of,
    write_megatron,
    write_safetensors,
)
from onevision.errors import DataError, InputError, StorageError
from onevision.model.device import runtime_context
from onevision.training.checkpoint import CONTENT, load_model
from tests.model.common import checkpoint_tensors, random_model

SHAPES = {"a": (3, 5), "b": (7,), "c.weight": (1, 2, 3), "d": (4, 4)}


def tensors(dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    return {name: torch.randn(shape).to(dtype) for name, shape in SHAPES.items()}


def info(values: dict[str, Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in values.items()}


class Alive:
    """Counts the tensors that were handed out and are still held by somebody."""

    def __init__(self) -> None:
        self.references: list[weakref.ref[Tensor]] = []
        self.most = 0

    def hand_out(self, tensor: Tensor) -> Tensor:
        self.references.append(weakref.ref(tensor))
        self.most = max(self.most, sum(reference() is not None for reference in self.references))
        return tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_safetensors_is_what_the_library_reads(tmp_path: Path, dtype: torch.dtype) -> None:
    values = tensors(dtype)
    write_safetensors(tmp_path / "model.safetensors", info(values), iter(values.values()))
    loaded = load_file(tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    assert folder.info == info(values)
    for name, value in values.items():
        assert torch.equal(loaded[name], value) and loaded[name].dtype == dtype
        assert torch.equal(folder.read(name), value)


def test_safetensors_is_written_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive = Alive()

    def made() -> Iterator[Tensor]:
        for shape in SHAPES.values():
            yield alive.hand_out(torch.zeros(shape))

    names = {name: TensorInfo(shape, torch.float32) for name, shape in SHAPES.items()}
    write_safetensors(tmp_path / "model.safetensors", names, made())
    assert len(alive.references) == 4 and alive.most <= 2  # the one before is let go when the next one is there


def test_a_column_of_a_larger_tensor_is_written_as_its_values(tmp_path: Path) -> None:
    column = torch.arange(12.0).view(4, 3)[:, 1]
    write_safetensors(tmp_path / "model.safetensors", {"x": TensorInfo((4,), torch.float32)}, iter([column]))
    assert load_file(tmp_path / "model.safetensors")["x"].tolist() == [1, 4, 7, 10]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 100))
def test_shards_hold_everything_once_within_the_limit(sizes: list[int], limit: int) -> None:
    shards = shards_of(sizes, limit)
    assert [number for shard in shards for number in shard] == list(range(len(sizes)))
    assert all(sum(sizes[number] for number in shard) <= limit for shard in shards if len(shard) > 1)
    for shard, following in zip(shards, shards[1:], strict=False):
        assert sum(sizes[number] for number in shard) + sizes[following[0]] > limit


def test_broken_folders_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither model.safetensors.index.json nor model.safetensors"):
        SafetensorsFolder(tmp_path)
    save_file(tensors(), tmp_path / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "z": "model-00002-of-00002.safetensors"}
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(InputError, match="model-00002-of-00002.safetensors does not exist"):
        SafetensorsFolder(tmp_path)
    whole = (tmp_path / "model-00001-of-00002.safetensors").read_bytes()
    for size in (len(whole) - 10, 40, 0):
        (tmp_path / "model-00002-of-00002.safetensors").write_bytes(whole[:size])
        with pytest.raises(DataError, match="model-00002-of-00002.safetensors is not a complete") as error:
            SafetensorsFolder(tmp_path)
        assert "\n" not in str(error.value)
    (tmp_path / INDEX_FILE).write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        SafetensorsFolder(tmp_path)
    for files in ("[1]", "{}", '{"a": 3}', '{"a": "/"}'):
        (tmp_path / INDEX_FILE).write_text(f'{{"weight_map": {files}}}')
        with pytest.raises(InputError, match=f"{INDEX_FILE} was altered: "):
            SafetensorsFolder(tmp_path)
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "folder"}}))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder does not exist"):
        SafetensorsFolder(tmp_path)


def test_integers_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.arange(3)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="tensor x is I64, not one of F32, F16, BF16"):
        SafetensorsFolder(tmp_path)


def test_shapes_that_do_not_fit_are_named() -> None:
    found = {"a": TensorInfo((2, 3), torch.float32), "b": TensorInfo((1,), torch.float32)}
    check_shapes(Path("x"), {"a": (2, 3)}, found)
    with pytest.raises(InputError, match=r"^x does not fit the preset: tensor a has shape \[2, 3\] instead of .*2\]$"):
        check_shapes(Path("x"), {"a": (3, 2), "b": (1,)}, found)
    with pytest.raises(InputError, match=r"tensor c \[5\] is missing \(and 1 more of 3\)"):
        check_shapes(Path("x"), {"a": (2, 3), "c": (5,), "b": (2,)}, found)


def test_space_is_asked_for_before_writing(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(StorageError, match="MB are free: make room and run again"):
        require_space(tmp_path, 1 << 62)


def test_reads_what_megatron_saved(device: torch.device, tmp_path: Path) -> None:
    model = random_model()
    with runtime_context(device):
        dist_checkpointing.save({"model": model.sharded_state_dict(metadata=CONTENT)}, str(tmp_path))
    store = MegatronTensors(tmp_path)
    expected = checkpoint_tensors(model)
    assert store.info == info(expected)
    for key, tensor in expected.items():
        assert torch.equal(store.read(key), tensor)


def test_megatron_loads_what_was_written(device: torch.device, tmp_path: Path) -> None:
    source = checkpoint_tensors(random_model(seed=1))
    alive = Alive()
    write_megatron(tmp_path, info(source), lambda key: alive.hand_out(source[key].clone()))
    assert len(alive.references) == len(source) and alive.most <= 2
    model = random_model(seed=2)
    assert not torch.equal(model.vision.class_embedding, source["vision.class_embedding"])
    with runtime_context(device):
        load_model(tmp_path, {"architecture": asdict(model.architecture)}, model)
    for key, tensor in checkpoint_tensors(model).items():
        assert torch.equal(tensor, source[key]), key
