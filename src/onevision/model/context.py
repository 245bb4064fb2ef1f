"""Context parallelism: ranks share the tokens of a pack.

A pack of T tokens is cut into 2C chunks of equal length and rank r of C has chunks r and 2C - 1 - r: with a causal mask
an early chunk, which sees little, goes with a late one. The cuts go through samples wherever they fall, so that nothing
has to be padded: the attention gathers keys and values of all ranks, and each piece of a sample that lies in a chunk
sees its sample from the beginning to the piece's own last token. (So does Llama 3: arXiv 2407.21783, section 3.3.2.)
What is learned, and what an image is needed for, is decided where the tokens are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onevision.model.presets import SPATIAL_MERGE_SIZE


@dataclass(frozen=True)
class Pieces:
    """The parts of segments that lie in a rank's chunks, one after the other as its tokens are; all on the host."""

    lengths: Tensor  # int64 [N], tokens of each
    key_lengths: Tensor  # int64 [N], tokens that its last one sees
    key_rows: Tensor  # int64 [sum of key_lengths], places of these among the keys of all ranks, gathered in their order


@dataclass(frozen=True)
class ImageShare:
    """The images of which a rank has tokens, and where its tokens are found among theirs; all on the host."""

    patch_rows: Tensor  # int64 [P'], rows of the pack's patches
    grid_thw: Tensor  # int64 [I', 3]
    token_rows: Tensor  # int64 [N], rows of the image tokens of these images
    slots: Tensor  # int64 [N], the rank's own tokens whose places they take


def local_rows(tokens: int, rank: int, size: int) -> Tensor:
    """Rows of a pack of `tokens` tokens that `rank` of `size` has, int64 [tokens / size], ascending."""
    chunk = tokens // (2 * size)
    starts = (rank * chunk, (2 * size - 1 - rank) * chunk)
    return torch.cat([torch.arange(start, start + chunk) for start in starts])


def pieces(cu_seqlens: Tensor, rank: int, size: int) -> Pieces:
    """The pieces of the segments cu_seqlens (int [S+1], on the host) of `rank` of `size`."""
    bounds = cu_seqlens.tolist()
    total = bounds[-1]
    chunk = total // (2 * size)
    gathered = torch.empty(total, dtype=torch.int64)  # by row of the pack: its place among the gathered rows
    gathered[torch.cat([local_rows(total, other, size) for other in range(size)])] = torch.arange(total)
    lengths, key_lengths, key_rows = [], [], []
    for begin in (rank * chunk, (2 * size - 1 - rank) * chunk):
        end = begin + chunk
        for first, last in zip(bounds, bounds[1:], strict=False):
            start, stop = max(first, begin), min(last, end)
            if start < stop:
                lengths.append(stop - start)
                key_lengths.append(stop - first)
                key_rows.append(gathered[first:stop])
    return Pieces(torch.tensor(lengths), torch.tensor(key_lengths), torch.cat(key_rows))


def image_share(grid_thw: Tensor, image_slots: Tensor, rows: Tensor) -> ImageShare:
    """What of the images of a pack the rank with its `rows` needs.

    Args:
        grid_thw: int64 [I, 3].
        image_slots: int64 [P / 4], rows of the pack in the order of the images.
        rows: int64 [N], ascending.
    """
    patches = grid_thw.prod(1)
    counts = patches // SPATIAL_MERGE_SIZE**2
    here, slots = _places(image_slots, rows)
    image = torch.repeat_interleave(torch.arange(len(grid_thw)), counts)
    needed = torch.zeros(len(grid_thw), dtype=torch.bool)
    needed[image[here]] = True
    among = torch.cumsum(torch.repeat_interleave(needed, counts), 0) - 1
    patch_rows = torch.repeat_interleave(needed, patches).nonzero().squeeze(1)
    return ImageShare(patch_rows, grid_thw[needed], among[here], slots[here])


def own_targets(target_rows: Tensor, rows: Tensor) -> Tensor:
    """Those of target_rows (int64 [N], of a pack) that are among `rows` (ascending), as places in `rows`."""
    here, places = _places(target_rows, rows)
    return places[here]


def is_own(wanted: Tensor, rows: Tensor) -> Tensor:
    """Which of `wanted` (int64 [N], rows of a pack) are among `rows` (ascending): bool [N]."""
    return _places(wanted, rows)[0]


def _places(wanted: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    places = torch.searchsorted(rows, wanted).clamp(max=len(rows) - 1)
    return rows[places] == wanted, places
