"""Architectures of the presets: every constant of RICE-ViT, the patch-merging adapter and Qwen3.

Source: config.json of LLaVA-OneVision-1.5 4B and 8B (Hugging Face layout), whose norm epsilons are used in training
as in export. `tiny` has the same structure at a size that two CPU cores train in minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

PATCH_SIZE = 14
SPATIAL_MERGE_SIZE = 2
CHANNELS = 3
HEAD_ROWS = 2048  # of logits that the loss holds at once: 0.6 GB of BF16
PATCH_VALUES = CHANNELS * PATCH_SIZE * PATCH_SIZE  # 588


@dataclass(frozen=True)
class VisionArchitecture:
    """RICE-ViT: pre-LN transformer with 2D rotary positions and one class token an image; biases everywhere."""

    num_layers: int = 24
    hidden_size: int = 1024
    ffn_hidden_size: int = 4096
    num_attention_heads: int = 16
    layernorm_epsilon: float = 1e-5
    rotary_base: float = 10_000.0

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class LanguageArchitecture:
    """Qwen3: RMSNorm, SwiGLU, grouped-query attention with QK-norm, 1D rotary positions, untied head, no biases."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    rotary_base: float
    max_position_embeddings: int
    rmsnorm_epsilon: float = 1e-6


@dataclass(frozen=True)
class Architecture:
    """Vision tower, adapter and language model. The adapter needs no sizes of its own:
    LayerNorm(vision) -> 4 patches side by side -> Linear -> GELU -> Linear to the language width."""

    name: str
    vision: VisionArchitecture
    language: LanguageArchitecture
    init_std: float = 0.02  # of weights that are drawn and not imported

    @property
    def merged_size(self) -> int:
        """Width of four patches side by side, which is also the adapter's inner width."""
        return self.vision.hidden_size * SPATIAL_MERGE_SIZE**2


PRESETS: dict[str, Architecture] = {
    "tiny": Architecture(
        "tiny",
        VisionArchitecture(num_layers=3, hidden_size=128, ffn_hidden_size=512, num_attention_heads=4),
        LanguageArchitecture(
            num_layers=3,
            hidden_size=128,
            ffn_hidden_size=384,
            num_attention_heads=4,
            num_query_groups=2,
            head_dim=32,
            vocab_size=1024,
            rotary_base=10_000.0,
            max_position_embeddings=4096,
        ),
        init_std=0.06,
    ),
    # For checks of parallel layouts: layers for eight stages, heads for four ranks, and sixteen ranks run on two cores.
    "mini": Architecture(
        "mini",
        VisionArchitecture(num_layers=2, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4),
        LanguageArchitecture(8, 64, 128, 8, 4, 16, 1024, 10_000.0, 4096),
        init_std=0.08,
    ),
    # For checks on one GPU that take a minute: large enough that rounding matters as in the others, no published model.
    "140m": Architecture(
        "140m",
        VisionArchitecture(num_layers=8, hidden_size=512, ffn_hidden_size=2048, num_attention_heads=8),
        LanguageArchitecture(12, 768, 2304, 6, 2, 128, 16_384, 1_000_000.0, 40_960),
    ),
    # The two of a single GPU, with the language models Qwen3-0.6B and Qwen3-1.7B (whose head is tied; here it is not).
    "0.6b": Architecture(
        "0.6b",
        VisionArchitecture(),
        LanguageArchitecture(28, 1024, 3072, 16, 8, 128, 151_936, 1_000_000.0, 40_960),
    ),
    "1.7b": Architecture(
        "1.7b",
        VisionArchitecture(),
        LanguageArchitecture(28, 2048, 6144, 16, 8, 128, 151_936, 1_000_000.0, 40_960),
    ),
    "4b": Architecture(
        "4b",
        VisionArchitecture(),
        LanguageArchitecture(36, 2560, 9728, 32, 8, 128, 151_936, 5_000_000.0, 262_144),
    ),
    "8b": Architecture(
        "8b",
        VisionArchitecture(),
        LanguageArchitecture(36, 4096, 12_288, 32, 8, 128, 151_936, 1_000_000.0, 40_960),
    ),
}
