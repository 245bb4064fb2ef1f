"""The JSON files beside the weights: what an export writes, and what a source directory must say to fit a preset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onevision.data.image import MEAN, MERGE, PATCH, STD
from onevision.data.template import DEFAULT_SYSTEM, TURN_END, TURN_SEPARATOR, TURN_START
from onevision.data.tokenizer import Tokenizer
from onevision.errors import InputError
from onevision.files import read_record
from onevision.model.presets import (
    CHANNELS,
    PATCH_SIZE,
    SPATIAL_MERGE_SIZE,
    Architecture,
    LanguageArchitecture,
    VisionArchitecture,
)

MODEL_TYPE = "llavaonevision1_5"
MODEL_CLASS = "LLaVAOneVision1_5_ForConditionalGeneration"
CONFIGURATION_CODE = "configuration_llavaonevision1_5"
MODELING_CODE = "modeling_llavaonevision1_5"
PROCESSING_CODE = "processing_llavaonevision1_5"
PROCESSOR_CLASS = "Qwen2_5_VLProcessor"
INITIALIZER_RANGE = 0.02
BICUBIC = 3  # Pillow's number of the filter


@dataclass(frozen=True)
class TokenIds:
    """Ids that the configuration names, found in the tokenizer by name."""

    image: int
    video: int | None
    vision_start: int
    vision_end: int
    end: int
    pad: int


def token_ids(tokenizer: Tokenizer) -> TokenIds:
    """The ids of a tokenizer; `video` is None when it has no <|video_pad|>."""
    video = tokenizer.encode("<|video_pad|>")
    return TokenIds(
        image=tokenizer.image_pad,
        video=video[0] if len(video) == 1 else None,
        vision_start=tokenizer.vision_start,
        vision_end=tokenizer.vision_end,
        end=tokenizer.im_end,
        pad=tokenizer.endoftext,
    )


def model_config(architecture: Architecture, ids: TokenIds, dtype: torch.dtype) -> dict[str, Any]:
    """config.json."""
    name = str(dtype).removeprefix("torch.")
    return {
        "architectures": [MODEL_CLASS],
        "auto_map": {
            "AutoConfig": f"{CONFIGURATION_CODE}.Llavaonevision1_5Config",
            "AutoModelForCausalLM": f"{MODELING_CODE}.{MODEL_CLASS}",
        },
        "model_type": MODEL_TYPE,
        "image_token_id": ids.image,
        "video_token_id": ids.video,
        "vision_start_token_id": ids.vision_start,
        "vision_end_token_id": ids.vision_end,
        "tie_word_embeddings": False,
        "torch_dtype": name,
        "vocab_size": architecture.language.vocab_size,
        "vision_config": _vision_config(architecture),
        "text_config": _text_config(architecture.language, ids, name),
    }


def _vision_config(architecture: Architecture) -> dict[str, Any]:
    vision = architecture.vision
    return {
        "model_type": "rice_vit",
        "depth": vision.num_layers,
        "embed_dim": vision.hidden_size,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.ffn_hidden_size,
        "num_heads": vision.num_attention_heads,
        "in_channels": CHANNELS,
        "patch_size": PATCH_SIZE,
        "spatial_merge_size": SPATIAL_MERGE_SIZE,
        "temporal_patch_size": 1,
        "hidden_act": "gelu",
        "layer_norm_eps": vision.layernorm_epsilon,
        "text_hidden_size": architecture.language.hidden_size,
        "initializer_range": INITIALIZER_RANGE,
    }


def _text_config(language: LanguageArchitecture, ids: TokenIds, dtype: str) -> dict[str, Any]:
    return {
        "model_type": "LLaVAOneVision1_5_text",
        "vocab_size": language.vocab_size,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.ffn_hidden_size,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.num_query_groups,
        "head_dim": language.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": language.max_position_embeddings,
        "initializer_range": INITIALIZER_RANGE,
        "rms_norm_eps": language.rmsnorm_epsilon,
        "use_cache": True,
        "tie_word_embeddings": False,
        "rope_theta": language.rotary_base,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": language.num_layers,
        "layer_types": ["full_attention"] * language.num_layers,
        "bos_token_id": ids.pad,
        "eos_token_id": ids.end,
        "torch_dtype": dtype,
    }


def preprocessor_config(min_pixels: int, max_pixels: int) -> dict[str, Any]:
    """preprocessor_config.json: what `onevision.data.image` does, in the terms of Qwen2-VL's image processor."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": PROCESSOR_CLASS,
        "auto_map": {"AutoProcessor": f"{PROCESSING_CODE}.LlavaOnevision1_5Processor"},
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "size": {"shortest_edge": min_pixels, "longest_edge": max_pixels},
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 1,
    }


def video_preprocessor_config(min_pixels: int, max_pixels: int) -> dict[str, Any]:
    """video_preprocessor_config.json: the processor is not made without one. The model itself takes no videos."""
    config = preprocessor_config(min_pixels, max_pixels)
    del config["image_processor_type"], config["auto_map"]
    return {"video_processor_type": "Qwen2VLVideoProcessor"} | config


def generation_config(ids: TokenIds) -> dict[str, Any]:
    """generation_config.json: greedy, ends at the end of a turn."""
    return {
        "bos_token_id": ids.pad,
        "eos_token_id": [ids.end, ids.pad],
        "pad_token_id": ids.pad,
        "do_sample": False,
    }


def tokenizer_config(tokenizer: Tokenizer, max_length: int) -> dict[str, Any]:
    """tokenizer_config.json for a folder that has only tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.decode([tokenizer.im_end]),
        "pad_token": tokenizer.decode([tokenizer.endoftext]),
        "model_max_length": max_length,
        "model_input_names": ["input_ids", "attention_mask"],  # versions 4.x add token types, which no model here takes
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }


def chat_template() -> str:
    """The template of `onevision.data.template` in Jinja; an image is one image pad, which the processor multiplies."""

    def literal(text: str) -> str:
        return "{{- '" + text.replace("\n", "\\n") + "' -}}"

    before, after = TURN_START.split("{role}")
    role = "{{- '" + before + "' + message.role + '" + after.replace("\n", "\\n") + "' -}}"
    system = TURN_START.format(role="system") + DEFAULT_SYSTEM + TURN_END + TURN_SEPARATOR
    return "\n".join(
        [
            "{%- if messages[0].role != 'system' -%}",
            literal(system),
            "{%- endif -%}",
            "{%- for message in messages -%}",
            role,
            "{%- if message.content is string -%}",
            "{{- message.content -}}",
            "{%- else -%}",
            "{%- for part in message.content -%}",
            "{%- if part.type == 'text' -%}",
            "{{- part.text -}}",
            "{%- else -%}",
            literal("<|vision_start|><|image_pad|><|vision_end|>"),
            "{%- endif -%}",
            "{%- endfor -%}",
            "{%- endif -%}",
            literal(TURN_END + TURN_SEPARATOR),
            "{%- endfor -%}",
            "{%- if add_generation_prompt -%}",
            literal(TURN_START.format(role="assistant")),
            "{%- endif -%}",
        ]
    )


def check_qwen3(folder: Path, language: LanguageArchitecture) -> bool:
    """Compare config.json of a Qwen3 directory with a preset; returns whether its output head is its embedding.

    `max_position_embeddings` is not compared: the weights do not depend on it.

    Raises:
        InputError: naming every field that differs.
    """
    config = read_record(folder / "config.json")
    expected = {"model_type": "qwen3", "rope_type": "default", **language_fields(language)}
    _check(folder, _with_rope(folder, config), expected)
    return bool(config.get("tie_word_embeddings", False))


def check_rice(folder: Path, vision: VisionArchitecture) -> None:
    """Compare config.json of a RICE-ViT directory with a preset.

    Raises:
        InputError: naming every field that differs.
    """
    config = read_record(folder / "config.json")
    config = _section(folder, config, "vision_config") if "vision_config" in config else config
    rope = _section(folder, config, "rope_parameters")
    found = {"num_channels": CHANNELS, **config, "rope_theta": rope.get("rope_theta", vision.rotary_base)}
    expected = {
        "num_hidden_layers": vision.num_layers,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.ffn_hidden_size,
        "num_attention_heads": vision.num_attention_heads,
        "patch_size": PATCH_SIZE,
        "num_channels": CHANNELS,
        "hidden_act": "gelu",
        "layer_norm_eps": vision.layernorm_epsilon,
        "rope_theta": vision.rotary_base,
    }
    _check(folder, found, expected)


def check_exported(folder: Path, architecture: Architecture) -> bool:
    """Compare config.json of a LLaVA-OneVision-1.5 directory with a preset; returns whether its output head is its
    embedding, which the whole model's setting decides where there is one, as in transformers.

    Raises:
        InputError: naming every field that differs.
    """
    config = read_record(folder / "config.json")
    _check(folder, config, {"model_type": MODEL_TYPE})
    text = _section(folder, config, "text_config")
    expected = {"rope_type": "default", **language_fields(architecture.language)}
    _check(folder, _with_rope(folder, text), expected, "text_config.")
    vision = _vision_config(architecture)
    del vision["initializer_range"]
    _check(folder, _section(folder, config, "vision_config"), vision, "vision_config.")
    return bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))


def language_fields(language: LanguageArchitecture) -> dict[str, Any]:
    """The sizes of a language model in the names of Hugging Face's Qwen3 configuration."""
    return {
        "num_hidden_layers": language.num_layers,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.ffn_hidden_size,
        "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.num_query_groups,
        "head_dim": language.head_dim,
        "vocab_size": language.vocab_size,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": language.rmsnorm_epsilon,
        "rope_theta": language.rotary_base,
    }


def _with_rope(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with `rope_theta` and `rope_type` where transformers 4 has the first; 5 has both in a section."""
    rope = _section(folder, config, "rope_parameters") | _section(folder, config, "rope_scaling")
    theta, kind = config.get("rope_theta", rope.get("rope_theta")), rope.get("rope_type", rope.get("type", "default"))
    return {**config, "rope_theta": theta, "rope_type": kind}


def _section(folder: Path, config: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a configuration; empty where there is none, or null.

    Raises:
        InputError: it is no object.
    """
    section = config.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise InputError(f"{folder / 'config.json'}: {name} is {type(section).__name__}, not an object")
    return section


def _check(folder: Path, found: dict[str, Any], expected: dict[str, Any], prefix: str = "") -> None:
    different = [
        f"{prefix}{name}={found.get(name)} instead of {value}"
        for name, value in expected.items()
        if found.get(name) != value
    ]
    if different:
        raise InputError(f"{folder / 'config.json'} is not of the preset's model: " + ", ".join(different))
