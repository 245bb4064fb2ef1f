"""What ranks that share the tokens of a pack have of it: together all of it, each piece with all that it sees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from onevision.model.attention import grouped, segment_params
from onevision.model.context import image_share, is_own, local_rows, own_targets, pieces

SIZES = (1, 2, 3, 4)


@pytest.mark.parametrize("size", SIZES)
def test_ranks_have_every_token_once_and_early_ones_with_late_ones(size: int) -> None:
    shares = [local_rows(24, rank, size) for rank in range(size)]
    assert torch.equal(torch.cat(shares).sort().values, torch.arange(24))
    assert {int(rows.sum()) for rows in shares} == {24 * 23 // 2 // size}  # as many tokens to see, in one long sample
    assert all(torch.equal(rows, rows.sort().values) for rows in shares)


@settings(max_examples=60)
@given(data=st.data(), size=st.sampled_from(SIZES))
def test_pieces_compute_what_the_whole_does(data: st.DataObject, size: int) -> None:
    total = 2 * size * data.draw(st.integers(1, 6))
    cuts = data.draw(st.sets(st.integers(1, total - 1), max_size=5)) if total > 1 else set()
    bounds = torch.tensor([0, *sorted(cuts), total], dtype=torch.int32)
    random = torch.Generator().manual_seed(total)
    query, key, value = (torch.randn(total, heads, 4, generator=random) for heads in (4, 2, 2))
    cpu = torch.device("cpu")
    expected = grouped(query, key, value, segment_params(bounds, cpu), True, 0.5)
    gathered = torch.cat([local_rows(total, rank, size) for rank in range(size)])
    for rank in range(size):
        rows, own = local_rows(total, rank, size), pieces(bounds.long(), rank, size)
        assert own.lengths.sum() == len(rows) and (own.key_lengths >= own.lengths).all()
        params = segment_params(torch.cat([torch.zeros(1, dtype=torch.int64), own.lengths.cumsum(0)]), cpu)
        params.key_lengths = own.key_lengths
        keys, values = (x[gathered][own.key_rows] for x in (key, value))
        found = grouped(query[rows], keys, values, params, True, 0.5)
        torch.testing.assert_close(found, expected[rows], rtol=1e-5, atol=1e-6)


@settings(max_examples=60)
@given(data=st.data(), size=st.sampled_from(SIZES[1:]))
def test_image_tokens_come_from_images_that_a_rank_needs(data: st.DataObject, size: int) -> None:
    grids = data.draw(st.lists(st.tuples(st.just(1), st.sampled_from((2, 4)), st.sampled_from((2, 6))), max_size=5))
    grid_thw = torch.tensor(grids, dtype=torch.int64).reshape(-1, 3)
    count = int(grid_thw.prod(1).sum()) // 4
    total = 2 * size * (count + data.draw(st.integers(1, 4)))
    slots = torch.tensor(sorted(data.draw(st.permutations(range(total)))[:count]), dtype=torch.int64)
    patches = torch.arange(4 * count)
    features = patches.view(-1, 4)[:, 0]  # an image token is known by its first patch
    seen: list[Tensor] = []
    for rank in range(size):
        rows = local_rows(total, rank, size)
        share = image_share(grid_thw, slots, rows)
        assert int(share.grid_thw.prod(1).sum()) == len(share.patch_rows)
        own = patches[share.patch_rows].view(-1, 4)[:, 0][share.token_rows]
        pack = torch.full((total,), -1).index_copy(0, slots, features)
        local = torch.full((len(rows),), -1).index_copy(0, share.slots, own)
        assert torch.equal(local, pack[rows])
        needed = set(share.patch_rows.tolist())
        for image in torch.split(patches, grid_thw.prod(1).tolist()) if count else ():
            held = set(image.tolist()) & needed
            assert held in (set(), set(image.tolist()))
            assert bool(held) == bool(set(image.tolist()) & set(own.tolist()))
        seen.append(rows[own_targets(slots, rows)])
        assert torch.equal(is_own(slots, rows), torch.isin(slots, rows))
    assert torch.equal(torch.cat(seen).sort().values, slots)
