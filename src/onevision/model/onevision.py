"""The vision-language model: RICE-ViT, patch merger, Qwen3 on Megatron's GPTModel, for packed samples."""

from __future__ import annotations

from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from onevision.model.adapter import PatchMerger
from onevision.model.attention import segment_params
from onevision.model.configs import adapter_config, vision_config
from onevision.model.presets import Architecture
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
            position_embedding_type="rope",
            rotary_base=language.rotary_base,
            share_embeddings_and_output_weights=False,
        )
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
        image_tokens: Tensor | None = None,
    ) -> Tensor:
        """Per-token loss [1, T] when `labels` is given, else logits [1, T, V].

        tokens, position_ids, labels: int64 [T]; cu_seqlens int32 [S+1]; patches [P, 588]; grid_thw int64 [I, 3];
        image_slots int64 [P/4], the rows of `tokens` that the image tokens take. `image_tokens` [P/4, H] may be
        given instead of being computed from the patches (generation asks for the same images many times).
        """
        embedded = self.language.embedding(tokens[None], position_ids[None])  # [T, 1, H]
        if image_tokens is None and len(grid_thw):
            image_tokens = self.image_tokens(patches, grid_thw)
        if image_tokens is not None:
            embedded = embedded.index_copy(0, image_slots, image_tokens[:, None].to(embedded.dtype))
        return self.language(
            input_ids=tokens[None],
            position_ids=position_ids[None],
            attention_mask=None,
            decoder_input=embedded,
            labels=None if labels is None else labels[None],
            packed_seq_params=segment_params(cu_seqlens),
        )


def freeze(model: OneVisionModel, parts: list[str]) -> None:
    """Exclude whole parts (vision, adapter, language) from training."""
    for part in parts:
        for parameter in getattr(model, part).parameters():
            parameter.requires_grad_(False)
