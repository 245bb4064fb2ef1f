from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onevision.data.batch import BatchLayout, Outline, PackedBatch
from onevision.data.tokenizer import Tokenizer
from onevision.errors import DataError
from onevision.ops.assemble import Assembled, assemble
from tests.fixtures import tiny_tokenizer
from tests.ops.conftest import Place

T = 48


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def ragged(
    packs: list[list[int]], tokenizer: Tokenizer, images: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids and targets of samples of these lengths, a share of them image tokens, and the two offsets."""
    rng = np.random.default_rng(seed)
    lengths = [length for pack in packs for length in pack]
    ids = rng.integers(10, tokenizer.vocab_size, sum(lengths))
    ids[rng.random(len(ids)) < images] = tokenizer.image_pad
    target = rng.random(len(ids)) < 0.5
    samples = torch.tensor([0, *lengths]).cumsum(0)
    return torch.from_numpy(ids), torch.from_numpy(target), samples, torch.tensor([0, *map(len, packs)]).cumsum(0)


def by_layout(packs: list[list[int]], made: tuple[torch.Tensor, ...], tokenizer: Tokenizer) -> PackedBatch:
    """What the data plane makes of the same samples."""
    ids, target, samples, _ = (x.numpy() for x in made)
    patches = 4 * int((ids == tokenizer.image_pad).sum())
    outlines = [[Outline(0, 0, length, ()) for length in pack] for pack in packs]
    outlines[0][0] = Outline(0, 0, packs[0][0], ((2, patches // 2),))
    layout = BatchLayout(outlines, T, tokenizer)
    for room, first, last in zip(layout.rooms, samples[:-1], samples[1:], strict=True):
        room.ids[:], room.target[:] = ids[first:last], target[first:last]
    return layout.finish(torch.zeros(patches, 588))


def run(place: Place, made: tuple[torch.Tensor, ...], tokenizer: Tokenizer, image_tokens: int) -> Assembled:
    moved = [x.to(place.device) for x in made]
    return Assembled(*place.ops.assemble(*moved, T, tokenizer.endoftext, tokenizer.image_pad, image_tokens))


@given(
    packs=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), min_size=1, max_size=4),
    images=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_the_data_planes_batch(
    place: Place, tokenizer: Tokenizer, packs: list[list[int]], images: float, seed: int
) -> None:
    made = ragged(packs, tokenizer, images, seed)
    expected = by_layout(packs, made, tokenizer)
    found = run(place, made, tokenizer, len(expected.image_slots))
    for name in Assembled._fields[:-1]:
        value, wanted = getattr(found, name).cpu(), getattr(expected, name)
        assert value.dtype == wanted.dtype and torch.equal(value, wanted), name
    assert found.image_count.tolist() == [len(expected.image_slots)]


@pytest.mark.parametrize("packs", [[[48]], [[1] * 48, [20, 28], [47]], [[0], [0, 48, 0]], [[12, 9, 3]] * 300])
def test_full_and_many_packs(place: Place, tokenizer: Tokenizer, packs: list[list[int]]) -> None:
    made = ragged(packs, tokenizer, 0.1, 0)
    made[1][:] = True  # also the first token, which follows another sample
    expected = by_layout(packs, made, tokenizer)
    found = run(place, made, tokenizer, len(expected.image_slots))
    for name in Assembled._fields[:-1]:
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name)), name


def test_a_wrong_number_of_image_tokens_is_told(place: Place, tokenizer: Tokenizer) -> None:
    made = ragged([[20, 3], [40]], tokenizer, 0.3, 1)
    slots = by_layout([[20, 3], [40]], made, tokenizer).image_slots
    count = len(slots)
    fewer, more = run(place, made, tokenizer, count - 2), run(place, made, tokenizer, count + 2)
    assert fewer.image_count.tolist() == more.image_count.tolist() == [count]
    assert torch.equal(fewer.image_slots.cpu(), slots[:-2])
    assert torch.equal(more.image_slots.cpu(), torch.cat([slots, torch.tensor([-1, -1])]))


def test_opcheck(place: Place, tokenizer: Tokenizer) -> None:
    made = [x.to(place.device) for x in ragged([[20, 3], [40]], tokenizer, 0.3, 1)]
    torch.library.opcheck(place.ops.assemble.default, (*made, T, 0, 1, 5))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(place: Place, tokenizer: Tokenizer, backend: str) -> None:
    made = [x.to(place.device) for x in ragged([[20, 3], [40]], tokenizer, 0.3, 1)]

    def batch(ids: torch.Tensor, *rest: Any) -> Any:
        return place.ops.assemble(ids + 1, *rest, T, 0, 1, 5)

    for found, wanted in zip(torch.compile(batch, backend=backend, fullgraph=True)(*made), batch(*made), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("samples", "packs", "complaint"),
    [
        ([0, 9, 10], [0, 2, 2], "pack 1 has no sample"),
        ([0, 9, 10], [0, 1, 2], "pack 0 has too many tokens: 9 tokens for 8 places"),
        ([0, 9, 4, 10], [0, 3], "sample_offsets must ascend from 0 to 10"),
        ([0, 4, 9], [0, 2], "sample_offsets must ascend from 0 to 10"),
        ([1, 10], [0, 1], "sample_offsets must ascend from 0 to 10"),
        ([0, 4, 10], [0, 1], "pack_offsets must ascend from 0 to 2"),
        ([0, 4, 10], [], "pack_offsets must ascend from 0 to 2"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(
    native: None, samples: list[int], packs: list[int], complaint: str
) -> None:
    ids, target = torch.zeros(10, dtype=torch.int64), torch.zeros(10, dtype=torch.bool)
    offsets = torch.tensor(samples), torch.tensor(packs, dtype=torch.int64)
    with pytest.raises(DataError, match=complaint):
        assemble(ids, target, *offsets, 8, 0, 1, 0)


@pytest.mark.parametrize("packs", [[0, 2, 2], [0, 1, 2]])
def test_the_op_refuses_them_too(place: Place, packs: list[int]) -> None:
    if place.device == "cuda":
        pytest.skip("the trap ends the process's use of the GPU")
    ids, target = torch.zeros(10, dtype=torch.int64), torch.zeros(10, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="could not be run"):
        place.ops.assemble(ids, target, torch.tensor([0, 9, 10]), torch.tensor(packs), 8, 0, 1, 0)


def test_the_function_is_the_op(native: None, tokenizer: Tokenizer) -> None:
    made = ragged([[20, 3], [40]], tokenizer, 0.3, 1)
    wanted = run(Place("onevision", "cpu"), made, tokenizer, 5)
    found = assemble(*made, T, tokenizer.endoftext, tokenizer.image_pad, 5)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
