"""The vision-language model: RICE-ViT, patch merger, Qwen3 on Megatron's GPTModel, for packed samples."""

from __future__ import annotations

import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from onevision.model.adapter import PatchMerger
from onevision.model.attention import segment_params, to_device
from onevision.model.configs import adapter_config, vision_config
from onevision.model.loss import linear_cross_entropy
from onevision.model.presets import PATCH_VALUES, Architecture
from onevision.model.rotary import inverse_frequencies
from onevision.model.specs import TORCH, Modules, block_spec
from onevision.model.vision import RiceViT


class OneVisionModel(MegatronModule):
    """Keys: vision.* (RiceViT), adapter.* (PatchMerger), language.* (GPTModel)."""

    def __init__(
        self,
        architecture: Architecture,
        config: TransformerConfig,
        modules: Modules = TORCH,
    ) -> None:
        super().__init__(config=config)
        self.architecture = architecture
        vision = vision_config(architecture, config)
        language = architecture.language
        self.vision = RiceViT(vision, architecture.vision, modules)
        self.adapter = PatchMerger(adapter_config(architecture, vision), architecture, modules)
        self.language = GPTModel(
            config,
            block_spec(modules, language.num_layers, AttnMaskType.causal, qk_norm=True),
            vocab_size=language.vocab_size,
            max_sequence_length=language.max_position_embeddings,
            position_embedding_type="none",  # the attention is given the angles
            share_embeddings_and_output_weights=False,
        )
        self.inverse_frequencies = inverse_frequencies(language.head_dim, language.rotary_base)
        self.scatter = modules.scatter
        self.always_vision = False  # whether a pack without an image runs vision too, for gradients that are zero
        self.model_type = self.language.model_type

    def set_input_tensor(self, input_tensor: list[Tensor | None]) -> None:
        """Pipeline hand-over; the whole model stands on one stage, so there is never one."""
        self.language.set_input_tensor(input_tensor)

    def image_tokens(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        """Image tokens [P/4, H] of patches [P, 588] with grids grid_thw [I, 3]."""
        return self.adapter(self.vision(patches, grid_thw))

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
        image_tokens: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Loss when `labels` is given, else logits [1, T, V].

        tokens, position_ids, labels: int64 [T]; cu_seqlens int32 [S+1]; patches [P, 588]; grid_thw int64 [I, 3];
        image_slots int64 [P/4], the rows of `tokens` that the image tokens take. Where cu_seqlens, grid_thw and
        target_rows lie on the CPU, nothing waits for a GPU. `image_tokens` [P/4, H] may be given instead of being
        computed from the patches (generation asks for the same images many times).

        The loss is its sum over `target_rows` (int64 [N]; all rows where it is not given), float32, and that of each of
        them, float32 [N], which has no gradient. The head is not computed for other rows.
        """
        embedded = self.language.embedding(tokens[None], None)  # [T, 1, H]
        if image_tokens is None and len(grid_thw):
            image_tokens = self.image_tokens(patches, grid_thw)
        if image_tokens is None and self.always_vision and self.training:
            nothing = self.image_tokens(patches.new_zeros(4, PATCH_VALUES), torch.tensor([[1, 2, 2]]))
            embedded = embedded + 0 * nothing.sum()
        if image_tokens is not None:
            embedded = self.scatter(embedded.squeeze(1), image_tokens.to(embedded.dtype), image_slots)[:, None]
        hidden = self.language.decoder(
            hidden_states=embedded,
            attention_mask=None,
            rotary_pos_emb=position_ids[:, None] * to_device(self.inverse_frequencies, position_ids.device),
            packed_seq_params=segment_params(cu_seqlens, tokens.device),
        )
        if labels is None:
            return self.language.output_layer(hidden)[0].transpose(0, 1).contiguous()
        hidden = hidden.squeeze(1)
        if target_rows is not None:
            target_rows = to_device(target_rows, hidden.device)
            hidden, labels = hidden.index_select(0, target_rows), labels.index_select(0, target_rows)
        fused = self.config.gradient_accumulation_fusion
        return linear_cross_entropy(hidden, self.language.output_layer.weight, labels, into_main_grad=fused)


def freeze(model: OneVisionModel, parts: list[str]) -> None:
    """Exclude whole parts (vision, adapter, language) from training."""
    for part in parts:
        for parameter in getattr(model, part).parameters():
            parameter.requires_grad_(False)
    if "vision" in parts:  # no gradient goes through it, so nothing is kept that could be recomputed
        model.vision.decoder.config.recompute_granularity = None
