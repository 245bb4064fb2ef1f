"""RICE-ViT on Megatron's TransformerBlock: packed images of any size, 2D rotary positions, one class token an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.common.vision_module.vision_module import VisionModule
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from onevision.model.attention import segment_params, to_device
from onevision.model.configs import row_multiple
from onevision.model.presets import PATCH_VALUES, SPATIAL_MERGE_SIZE, VisionArchitecture
from onevision.model.rotary import inverse_frequencies
from onevision.model.specs import Modules, block_spec


def patch_positions(grid_thw: Tensor) -> Tensor:
    """Row and column of every patch in merge-block order: int64 [P, 2] for grid_thw int64 [I, 3].

    The order is the processor's: 2x2 blocks row by row, inside a block row by row.
    """
    merge = SPATIAL_MERGE_SIZE
    positions = []
    for frames, height, width in grid_thw.tolist():
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack([rows, columns], -1)
        blocks = grid.view(height // merge, merge, width // merge, merge, 2).transpose(1, 2)
        positions.append(blocks.reshape(-1, 2).repeat(frames, 1))
    return torch.cat(positions).to(grid_thw.device)


def pad_rows(x: Tensor, rows: int) -> Tensor:
    """x [N, ...] with `rows` rows of zeros behind it."""
    return torch.cat([x, x.new_zeros(rows, *x.shape[1:])])


def _weight(config: TransformerConfig, *shape: int) -> torch.nn.Parameter:
    """A weight of `config.params_dtype`, drawn if weights are: in FP32, as in Megatron's layers, and so with the same
    values in every precision. What PyTorch draws in BF16 is something else, and not the same in each release."""
    values = torch.empty(*shape)
    if config.perform_initialization:
        config.init_method(values)
    return torch.nn.Parameter(values.to(config.params_dtype))


class RiceViT(VisionModule):
    """The vision tower. Keys: patch_embed, class_embedding, class_pos_emb, pre_layernorm, decoder.layers.*"""

    def __init__(
        self,
        config: TransformerConfig,
        architecture: VisionArchitecture,
        modules: Modules,
        groups: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        width, head_dim = architecture.hidden_size, architecture.head_dim
        # A 14x14 convolution with stride 14 is a linear layer on flattened patches.
        self.patch_embed = torch.nn.Linear(PATCH_VALUES, width, bias=False)
        self.patch_embed.weight = _weight(config, width, PATCH_VALUES)
        self.class_embedding = _weight(config, width)
        # The rotary angles of the class token, which has no place in the grid.
        self.class_pos_emb = _weight(config, 1, head_dim // 2)
        self.pre_layernorm = build_module(
            modules.norm, config=config, hidden_size=width, eps=architecture.layernorm_epsilon
        )
        self.decoder = TransformerBlock(
            config,
            block_spec(modules, architecture.num_layers, AttnMaskType.no_mask, groups=groups),
            post_layer_norm=False,
            pg_collection=groups,
        )
        self.row_multiple = row_multiple(config)
        self.tensor_group = groups.tp if groups is not None else parallel_state.get_tensor_model_parallel_group()
        # Angles for rows, then for columns, half of head_dim / 2 each.
        self.inverse_frequencies = inverse_frequencies(head_dim // 2, architecture.rotary_base)

    def forward(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        """Features of every patch, [P, hidden], of patches [P, 588] whose images have the grids grid_thw [I, 3].

        Where grid_thw lies on a GPU, this waits for it.
        """
        grids, device = grid_thw.cpu(), patches.device
        segments = grids.prod(1)  # one attention segment an image
        total, images = int(segments.sum()), len(segments)
        # Row j of the sequence with class tokens is row source[j] of [patches; class token].
        bounds = F.pad((segments + 1).cumsum(0), (1, 0))
        is_patch = torch.ones(total + images, dtype=torch.bool)
        class_rows = bounds[:-1]
        is_patch[class_rows] = False
        rows = is_patch.nonzero().squeeze(1)
        places = torch.full((total + images,), total)
        places[rows] = torch.arange(total)
        source, patch_rows = to_device(places, device), to_device(rows, device)

        embedded = self.patch_embed(patches)
        hidden = torch.cat([embedded, self.class_embedding[None].to(embedded.dtype)]).index_select(0, source)
        hidden = self.pre_layernorm(hidden)

        positions = to_device(patch_positions(grids), device)
        angles = (positions[..., None] * to_device(self.inverse_frequencies, device)).flatten(1)  # [P, head_dim / 2]
        # Each tensor-parallel rank turns heads of its own: the gradient of these angles is summed over them.
        learned = copy_to_tensor_model_parallel_region(self.class_pos_emb.float(), group=self.tensor_group)
        angles = torch.cat([angles, learned]).index_select(0, source)

        # FP8 wants a multiple of rows: a last segment of zeros, which no image sees and whose rows nobody reads. It is
        # work that is not counted, and where a tensor has one scale, it has its share in it as every image has.
        padding = -len(source) % self.row_multiple
        if padding:
            hidden, angles = pad_rows(hidden, padding), pad_rows(angles, padding)
            bounds = torch.cat([bounds, bounds[-1:] + padding])

        hidden = self.decoder(
            hidden_states=hidden[:, None],
            attention_mask=None,
            rotary_pos_emb=angles,
            packed_seq_params=segment_params(bounds.to(torch.int32), device, class_rows),
        )
        return hidden.squeeze(1).index_select(0, patch_rows)
