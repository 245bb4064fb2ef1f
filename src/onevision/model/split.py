"""`parallel.split_vision`: each tensor-parallel rank has the whole vision tower and computes some of the images.

Nothing travels inside the tower; the image tokens are gathered behind the adapter. What comes after it is the same on
all these ranks, and so is the gradient that comes back: a rank takes that of its images, and the gradients of the
weights are summed over the ranks when the step's micro-batches are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from onevision.model.attention import to_device
from onevision.model.presets import SPATIAL_MERGE_SIZE


def alone() -> ProcessGroupCollection:
    """Megatron's process groups for modules that no other rank shares."""
    groups = ProcessGroupCollection.use_mpu_process_groups()
    groups.tp = parallel_state.get_expert_tensor_parallel_group()  # of one rank: `onevision.model.device.start`
    return groups


def deal_images(patches: Tensor, ranks: int) -> list[list[int]]:
    """The images (int64 [I], patches of each) of each rank: from the largest on, to the rank that has fewest patches
    so far."""
    loads = [0] * ranks
    images: list[list[int]] = [[] for _ in range(ranks)]
    sizes = patches.tolist()
    for image in torch.argsort(patches, descending=True, stable=True).tolist():
        rank = loads.index(min(loads))
        loads[rank] += sizes[image]
        images[rank].append(image)
    return [sorted(own) for own in images]


def in_shares(
    compute: Callable[[Tensor, Tensor], Tensor],
    nothing: Callable[[Tensor], Tensor] | None,
    patches: Tensor,
    grid_thw: Tensor,
    width: int,
    group: dist.ProcessGroup,
) -> Tensor:
    """Image tokens [P/4, width] of patches [P, 588] with grids grid_thw [I, 3] (on the host), of which each rank of
    `group` computes some.

    Args:
        compute: image tokens of some images.
        nothing: zero, by way of all weights, for a rank that has no image but must have gradients.
    """
    sizes = grid_thw.prod(1)
    dealt = deal_images(sizes, group.size())
    counts = sizes // SPATIAL_MERGE_SIZE**2
    most = max(int(counts[images].sum()) for images in dealt)
    own = torch.tensor(dealt[group.rank()], dtype=torch.int64)
    if len(own):
        computed = compute(patches.index_select(0, to_device(_rows(own, sizes), patches.device)), grid_thw[own])
        computed = F.pad(computed, (0, 0, 0, most - len(computed)))
    else:
        computed = patches.new_zeros(most, width)
        if nothing is not None:
            computed = computed + nothing(patches)
    gathered = gather_from_sequence_parallel_region(computed, tensor_parallel_output_grad=False, group=group)
    place = torch.empty(int(counts.sum()), dtype=torch.int64)
    for rank, images in enumerate(dealt):
        rows = _rows(torch.tensor(images, dtype=torch.int64), counts)
        place[rows] = rank * most + torch.arange(len(rows))
    return gathered.index_select(0, to_device(place, gathered.device))


def _rows(images: Tensor, lengths: Tensor) -> Tensor:
    """Rows of `images` (int64 [N]), one after the other, where image i has lengths[i] rows behind those before it."""
    starts = lengths.cumsum(0) - lengths
    parts = [torch.arange(int(starts[image]), int(starts[image] + lengths[image])) for image in images.tolist()]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def mark_whole(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Have Megatron count parameters once, which every tensor-parallel rank has."""
    for parameter in parameters:
        parameter.tensor_model_parallel = False


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum gradients over the tensor-parallel ranks, each of which computed its images."""
    group = parallel_state.get_tensor_model_parallel_group()
    for parameter in parameters:
        if parameter.requires_grad:
            dist.all_reduce(parameter.main_grad, group=group)
