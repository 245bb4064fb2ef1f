"""Configuration of LLaVA-OneVision-1.5 for transformers: RICE-ViT with a patch merger, and Qwen3."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig, Qwen3Config


class RiceConfig(PretrainedConfig):
    """The vision tower, and the patch merger that leads to `text_hidden_size`."""

    model_type = "rice_vit"
    base_config_key = "vision_config"

    def __init__(
        self,
        depth: int = 24,
        embed_dim: int = 1024,
        hidden_size: int = 1024,
        intermediate_size: int = 4096,
        num_heads: int = 16,
        in_channels: int = 3,
        patch_size: int = 14,
        spatial_merge_size: int = 2,
        temporal_patch_size: int = 1,
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-5,
        rope_theta: float = 10_000.0,
        text_hidden_size: int = 4096,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if hidden_act != "gelu" or temporal_patch_size != 1:
            raise ValueError(
                f"hidden_act={hidden_act}, temporal_patch_size={temporal_patch_size}: RICE-ViT has gelu and 1"
            )
        self.depth = depth
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_heads = num_heads
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        self.temporal_patch_size = temporal_patch_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.rope_theta = rope_theta
        self.text_hidden_size = text_hidden_size
        self.initializer_range = initializer_range


class LLaVAOneVision1_5_TextConfig(Qwen3Config):
    """The language model: Qwen3's configuration under the published name."""

    model_type = "LLaVAOneVision1_5_text"
    base_config_key = "text_config"


class Llavaonevision1_5Config(PretrainedConfig):
    """The whole model."""

    model_type = "llavaonevision1_5"
    sub_configs = {"vision_config": RiceConfig, "text_config": LLaVAOneVision1_5_TextConfig}
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        text_config: dict[str, Any] | Qwen3Config | None = None,
        vision_config: dict[str, Any] | RiceConfig | None = None,
        image_token_id: int = 151655,
        video_token_id: int | None = 151656,
        vision_start_token_id: int = 151652,
        vision_end_token_id: int = 151653,
        vocab_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Before the base class, which hands its settings (attention, dtype) on to both.
        self.vision_config = (
            vision_config if isinstance(vision_config, RiceConfig) else RiceConfig(**vision_config or {})
        )
        self.text_config = (
            text_config if isinstance(text_config, Qwen3Config) else LLaVAOneVision1_5_TextConfig(**text_config or {})
        )
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id
        self.vision_start_token_id = vision_start_token_id
        self.vision_end_token_id = vision_end_token_id
        self.vocab_size = self.text_config.vocab_size if vocab_size is None else vocab_size
        kwargs.setdefault("tie_word_embeddings", bool(getattr(self.text_config, "tie_word_embeddings", False)))
        super().__init__(**kwargs)


__all__ = ["LLaVAOneVision1_5_TextConfig", "Llavaonevision1_5Config", "RiceConfig"]
