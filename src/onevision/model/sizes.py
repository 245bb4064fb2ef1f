"""How many parameters the parts of a model have. Needs no torch."""

from __future__ import annotations

from onevision.model.presets import PATCH_VALUES, Architecture


def query_key_widths(architecture: Architecture) -> tuple[int, int]:
    """q and k: the widths of all query heads and of all key heads of a language layer."""
    language = architecture.language
    return language.num_attention_heads * language.head_dim, language.num_query_groups * language.head_dim


def parameters(architecture: Architecture) -> dict[str, int]:
    """Parameters of embedding, head, vision, adapter, one language layer and the last norm.

    language layer: norms 2H + 2d, qkv H*(q + 2k), projection q*H, SwiGLU 3*H*F. Vision layer: norms 4h, qkv 3h*h + 3h,
    projection h*h + h, MLP 2*h*f + f + h. Adapter, with m = 4h: 2h + m*m + m + m*H + H.
    """
    vision, language, merged = architecture.vision, architecture.language, architecture.merged_size
    h, f, hidden = vision.hidden_size, vision.ffn_hidden_size, language.hidden_size
    q, k = query_key_widths(architecture)
    vision_layer = 4 * h + (3 * h * h + 3 * h) + (h * h + h) + (2 * h * f + f + h)
    # Patch embedding, class token, its angles, the first norm.
    begin = PATCH_VALUES * h + h + vision.head_dim // 2 + 2 * h
    products = hidden * (q + 2 * k) + q * hidden + 3 * hidden * language.ffn_hidden_size
    return {
        "vision": begin + vision.num_layers * vision_layer,
        "adapter": 2 * h + merged * merged + merged + merged * hidden + hidden,
        "embedding": language.vocab_size * hidden,
        "layer": 2 * hidden + 2 * language.head_dim + products,
        "norm": hidden,
        "head": language.vocab_size * hidden,
    }
