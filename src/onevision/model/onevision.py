"""The vision-language model: RICE-ViT, patch merger, Qwen3 on Megatron's GPTModel, for packed samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from onevision.model.adapter import PatchMerger
from onevision.model.attention import SegmentParams, segment_params, to_device
from onevision.model.configs import adapter_config, vision_config
from onevision.model.context import image_share, local_rows, own_targets
from onevision.model.loss import linear_cross_entropy
from onevision.model.presets import PATCH_VALUES, Architecture
from onevision.model.rotary import inverse_frequencies
from onevision.model.specs import TORCH, Modules, block_spec
from onevision.model.split import alone, in_shares, mark_whole
from onevision.model.vision import RiceViT


@dataclass(frozen=True)
class Part:
    """What a rank, or one of its virtual stages, has of the model."""

    first: bool = True
    last: bool = True
    layers: int = 0  # of language; 0: all
    number: int | None = None  # of the virtual stage
    split_vision: bool = False  # of the images, not of the layers of vision and adapter (`onevision.model.split`)


WHOLE = Part()


class OneVisionModel(MegatronModule):
    """Keys: vision.* (RiceViT), adapter.* (PatchMerger), language.* (GPTModel).

    With a pipeline it is one part of the model: the first one has vision, adapter and the embedding of tokens, the last
    one the head, each of them some layers of language.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: TransformerConfig,
        modules: Modules = TORCH,
        part: Part = WHOLE,
    ) -> None:
        super().__init__(config=config)
        self.architecture, self.part = architecture, part
        language = architecture.language
        if part.first:
            vision = vision_config(architecture, config, whole=part.split_vision)
            groups = alone() if part.split_vision else None
            self.vision = RiceViT(vision, architecture.vision, modules, groups)
            self.adapter = PatchMerger(adapter_config(architecture, vision), architecture, modules, groups)
            if part.split_vision:
                mark_whole(self.split_parameters())
        self.language = GPTModel(
            config,
            block_spec(modules, part.layers or language.num_layers, AttnMaskType.causal, qk_norm=True),
            vocab_size=language.vocab_size,
            max_sequence_length=language.max_position_embeddings,
            pre_process=part.first,
            post_process=part.last,
            position_embedding_type="none",  # the attention is given the angles
            scatter_embedding_sequence_parallel=False,  # image tokens come in first
            vp_stage=part.number,
        )
        # What Megatron asks of a part of a model.
        self.vp_stage, self.pre_process, self.post_process = part.number, part.first, part.last
        self.share_embeddings_and_output_weights = False
        self.inverse_frequencies = inverse_frequencies(language.head_dim, language.rotary_base)
        self.scatter = modules.scatter
        self.always_vision = False  # whether a pack without an image runs vision too, for gradients that are zero
        self.model_type = self.language.model_type

    def set_input_tensor(self, input_tensor: list[Tensor | None]) -> None:
        """The hidden states of the stage before, which Megatron's schedules hand over; none for the first."""
        self.language.set_input_tensor(input_tensor)

    def image_tokens(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        """Image tokens [P/4, H] of patches [P, 588] with grids grid_thw [I, 3]."""
        if not self.part.split_vision:
            return self._image_tokens(patches, grid_thw)
        return in_shares(
            self._image_tokens,
            self._nothing if self.always_vision and self.training else None,
            patches,
            grid_thw,
            self.config.hidden_size,
            parallel_state.get_tensor_model_parallel_group(),
        )

    def split_parameters(self) -> Iterator[torch.nn.Parameter]:
        """Those that every tensor-parallel rank has whole, for images of its own."""
        if self.part.first and self.part.split_vision:
            yield from self.vision.parameters()
            yield from self.adapter.parameters()

    def _image_tokens(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        return self.adapter(self.vision(patches, grid_thw))

    def _nothing(self, patches: Tensor) -> Tensor:
        """Zero, by way of vision and adapter: their gradients are zero, and there are some."""
        return 0 * self._image_tokens(patches.new_zeros(4, PATCH_VALUES), torch.tensor([[1, 2, 2]])).sum()

    def forward(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        patches: Tensor,
        grid_thw: Tensor,
        image_slots: Tensor,
        labels: Tensor | None = None,
        target_rows: Tensor | None = None,
        segments: SegmentParams | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Loss when `labels` is given, else logits [1, T, V]; of a part before the last one, hidden states.

        tokens, position_ids, labels: int64 [T]; cu_seqlens int32 [S+1]; patches [P, 588]; grid_thw int64 [I, 3];
        image_slots int64 [P/4], the rows of `tokens` that the image tokens take. Where cu_seqlens, grid_thw,
        image_slots and target_rows lie on the CPU, nothing waits for a GPU.

        The loss is its sum over `target_rows` (int64 [N]; all rows where it is not given), float32, and that of each of
        them, float32 [N], which has no gradient. The head is not computed for other rows; logits are those of
        `target_rows` too.

        Generation gives `segments` (`onevision.model.attention.cached_params`) in the place of cu_seqlens.

        Ranks that share the tokens of a pack are given all of them, and use their own: the losses are those of their
        targets. Patches are looked at on the first stage only, labels on the last one.
        """
        context = parallel_state.get_context_parallel_group()
        rows = None
        if context.size() > 1:
            rows = local_rows(len(tokens), context.rank(), context.size())
            on_device = to_device(rows, tokens.device)
            tokens, position_ids = tokens[on_device], position_ids[on_device]
            labels = None if labels is None else labels[on_device]
        hidden = None
        if self.part.first:
            hidden = self._embedded(tokens, patches, grid_thw, image_slots, rows)
        hidden = self.language.decoder(
            hidden_states=hidden,
            attention_mask=None,
            rotary_pos_emb=position_ids[:, None] * to_device(self.inverse_frequencies, position_ids.device),
            packed_seq_params=segments or segment_params(cu_seqlens, position_ids.device, context=context),
        )
        if not self.part.last:
            return hidden
        if labels is None:
            if target_rows is not None:
                hidden = hidden.index_select(0, to_device(target_rows, hidden.device))
            return self.language.output_layer(hidden)[0].transpose(0, 1).contiguous()
        if self.config.sequence_parallel:  # the loss gives each rank the whole gradient
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        hidden = hidden.squeeze(1)
        if target_rows is not None:
            if rows is not None:
                target_rows = own_targets(target_rows, rows)
            target_rows = to_device(target_rows, hidden.device)
            hidden, labels = hidden.index_select(0, target_rows), labels.index_select(0, target_rows)
        fused = self.config.gradient_accumulation_fusion
        return linear_cross_entropy(
            hidden,
            self.language.output_layer.weight,
            labels,
            group=parallel_state.get_tensor_model_parallel_group(),
            into_main_grad=fused,
        )

    def _embedded(
        self,
        tokens: Tensor,
        patches: Tensor,
        grid_thw: Tensor,
        image_slots: Tensor,
        rows: Tensor | None,
    ) -> Tensor:
        """Embedded tokens [T, 1, H] with the image tokens in their places; with sequence parallelism, this rank's."""
        embedded = self.language.embedding(tokens[None], None)
        token_rows = None
        if rows is not None:
            share = image_share(grid_thw, image_slots, rows)
            patches = patches.index_select(0, to_device(share.patch_rows, patches.device))
            grid_thw, image_slots, token_rows = share.grid_thw, share.slots, share.token_rows
        if not len(grid_thw) and self.always_vision and self.training:
            embedded = embedded + self._nothing(patches)
        if len(grid_thw):
            image_tokens = self.image_tokens(patches, grid_thw)
            if token_rows is not None:
                image_tokens = image_tokens.index_select(0, to_device(token_rows, image_tokens.device))
            slots = to_device(image_slots, tokens.device)
            embedded = self.scatter(embedded.squeeze(1), image_tokens.to(embedded.dtype), slots)[:, None]
        return scatter_to_sequence_parallel_region(embedded) if self.config.sequence_parallel else embedded


def freeze(model: OneVisionModel, parts: list[str]) -> None:
    """Exclude whole parts (vision, adapter, language) from training."""
    for part in parts:
        for parameter in getattr(model, part).parameters() if hasattr(model, part) else ():
            parameter.requires_grad_(False)
    if (
        "vision" in parts and model.part.first
    ):  # no gradient goes through it, so nothing is kept that could be recomputed
        model.vision.decoder.config.recompute_granularity = None
