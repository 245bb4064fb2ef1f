"""The loader with patches made on the device: the batches of the host's, and on a GPU there before their step."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from onevision.data.batch import MOVED, PackedBatch
from onevision.data.loader import PackLoader
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import InputError
from onevision.recipe import DataRecipe
from onevision.training.inputs import open_sources
from tests.data.test_loader import assert_same, build, damage, rows
from tests.fixtures import sample_record

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
STEPS = 5
pytestmark = pytest.mark.usefixtures("ops")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRecipe:
    """Samples with none to three images; one image ends early, and a record and an image are not what was written."""
    records = [sample_record(i, images=i % 4, turns=1 + i % 3) for i in range(36)]
    one = records[6].images
    records[6] = replace(records[6], images=(one[0], one[1][: len(one[1]) // 2]))
    data = build(tmp_path_factory.mktemp("device"), records)
    damage(data, 3, "json")
    damage(data, 10, "image")
    return data


def loader_of(data: DataRecipe, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> PackLoader:
    options = {"seed": 3, "global_batch_size": 4, "micro_batch_size": 2}
    return PackLoader(open_sources(data), load_tokenizer(data.tokenizer), data, device=device, dtype=dtype, **options)


def at_host(steps: Iterator[list[PackedBatch]]) -> list[list[PackedBatch]]:
    return [[batch.to(CPU) for batch in batches] for batches in steps]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_host(
    data: DataRecipe, workers: int, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [loader_of(data).batches(step) for step in range(STEPS)]
    assert sum(batch.skipped for batches in expected for batch in batches) >= 3
    ours = replace(data, resize="device", workers=workers)
    with caplog.at_level(logging.WARNING):
        found = at_host(loader_of(ours, torch.device(device)).iterate(0, STEPS))
    for batches, wanted in zip(found, expected, strict=True):
        assert_same(batches, wanted)
    notes = {note for batches in expected for batch in batches for note in batch.notes}
    assert {entry.getMessage() for entry in caplog.records if entry.name == "onevision.data.loader"} == notes
    later = at_host(loader_of(ours, torch.device(device)).iterate(3, STEPS))  # as a run that goes on
    assert [rows(batches) for batches in later] == [rows(batches) for batches in expected[3:]]
    for batches, wanted in zip(later, expected[3:], strict=True):
        assert_same(batches, wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_patches_are_rounded_as_the_model_rounds_them(data: DataRecipe, device: str) -> None:
    ours = loader_of(replace(data, resize="device"), torch.device(device), torch.bfloat16)
    for found, wanted in zip(ours.batches(0), loader_of(data).batches(0), strict=True):
        assert found.patches.dtype == torch.bfloat16
        assert torch.equal(found.patches.cpu(), wanted.patches.bfloat16())


@pytest.mark.gpu
@pytest.mark.parametrize("resize", ["host", "device"])
def test_batches_are_on_the_gpu_while_it_computes(data: DataRecipe, resize: str) -> None:
    """The memory of a batch is not given away while a step uses it, however long that takes."""
    device = torch.device("cuda", torch.cuda.current_device())
    expected = [loader_of(data).batches(step) for step in range(STEPS)]
    loader = loader_of(replace(data, resize=resize, workers=2), device)
    kept = []
    for batches in loader.iterate(0, STEPS):
        torch.cuda._sleep(50_000_000)  # the step's kernels come late
        for batch in batches:
            assert {name for name, value in vars(batch).items() if torch.is_tensor(value) and value.is_cuda} == {*MOVED}
            kept.append({name: getattr(batch, name).clone() for name in MOVED})
        del batch, batches
    wanted = [batch for batches in expected for batch in batches]
    for found, batch in zip(kept, wanted, strict=True):
        for name in MOVED:
            assert torch.equal(found[name].cpu(), getattr(batch, name)), name


def test_dali_mixed_without_a_gpu_is_one_line(data: DataRecipe) -> None:
    with pytest.raises(InputError) as caught:
        loader_of(replace(data, decoder="dali_mixed", resize="device"))
    assert str(caught.value) == "data.decoder=dali_mixed needs a GPU: use data.decoder=native, which needs none"
