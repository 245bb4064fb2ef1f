"""LLaVA-OneVision-1.5 for transformers 4.5x and 5.x: RICE-ViT, patch merger and Qwen3, with images of any size.

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Written from the architecture. Where released code has shown differences between training and use, this is what training
does: one class token an image, which is taken out again at the place where it stands, whatever the number of images;
one attention segment an image; the epsilon of the configuration in every norm of the vision tower and of the merger.
The language model is transformers' own Qwen3 with its caches and attention implementations. Videos are not supported.

Shapes: B prompts of L tokens, I images with P patches in all, N = P + I rows with class tokens, D the width of the
vision tower, H that of the language model.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel, Qwen3Model
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_llavaonevision1_5 import Llavaonevision1_5Config, RiceConfig


def patch_positions(grid_thw: list[list[int]], merge: int) -> Tensor:
    """Row and column of every patch, int64 [P, 2], in the processor's order: blocks of merge x merge patches row by
    row, inside a block row by row."""
    positions = []
    for frames, height, width in grid_thw:
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack([rows, columns], -1).view(height // merge, merge, width // merge, merge, 2)
        positions.append(grid.transpose(1, 2).reshape(-1, 2).repeat(frames, 1))
    return torch.cat(positions)


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x [N, heads, d] with each pair (x[j], x[j + d/2]) turned by the angle of its row and j; computed in float32."""
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1).to(x.dtype)


class RicePatchEmbed(nn.Module):
    """A convolution whose stride is its size: a linear layer on patches, flattened as (channel, row, column)."""

    def __init__(self, config: RiceConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, size, stride=size, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1))


class RiceAttention(nn.Module):
    """Full attention inside each image."""

    def __init__(self, config: RiceConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, lengths: list[int], cosine: Tensor, sine: Tensor) -> Tensor:
        query, key, value = self.qkv(hidden).view(len(hidden), 3, self.num_heads, -1).unbind(1)
        query, key = rotated(query, cosine, sine), rotated(key, cosine, sine)
        mixed = [
            F.scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in image))[0].transpose(0, 1)
            for image in zip(query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
        ]
        return self.proj(torch.cat(mixed).flatten(1))


class RiceMlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, config: RiceConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden)))


class RiceBlock(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, config: RiceConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = RiceAttention(config)
        self.mlp = RiceMlp(config)

    def forward(self, hidden: Tensor, lengths: list[int], cosine: Tensor, sine: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden), lengths, cosine, sine)
        return hidden + self.mlp(self.norm2(hidden))


class RicePatchMerger(nn.Module):
    """LayerNorm, the patches of a block side by side, Linear, GELU, Linear to the language model's width."""

    def __init__(self, config: RiceConfig) -> None:
        super().__init__()
        merged = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(nn.Linear(merged, merged), nn.GELU(), nn.Linear(merged, config.text_hidden_size))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.mlp(self.ln_q(hidden).reshape(-1, self.mlp[0].in_features))


class RiceViT(nn.Module):
    """Vision tower and merger."""

    def __init__(self, config: RiceConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = RicePatchEmbed(config)
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        # The rotary angles of the class token, which has no place in the grid.
        self.class_pos_emb = nn.Parameter(torch.empty(1, config.hidden_size // config.num_heads // 2))
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList([RiceBlock(config) for _ in range(config.depth)])
        self.merger = RicePatchMerger(config)

    def forward(self, patches: Tensor, grid_thw: Tensor) -> Tensor:
        """Image tokens [P / merge**2, H] of patches [P, channels * size**2] of images with grid_thw int64 [I, 3]."""
        grids, device = grid_thw.tolist(), patches.device
        counts = [frames * height * width for frames, height, width in grids]
        if sum(counts) != len(patches):
            raise ValueError(f"image_grid_thw is of {sum(counts)} patches, pixel_values has {len(patches)}")
        angles = self._angles(grids, device)
        hidden = self.patch_embed(patches)
        # Each image behind a class token of its own.
        token, learned = self.class_embedding[None].to(hidden.dtype), self.class_pos_emb.float()
        hidden = torch.cat([part for image in hidden.split(counts) for part in (token, image)])
        angles = torch.cat([part for image in angles.split(counts) for part in (learned, image)])
        lengths = [count + 1 for count in counts]

        hidden = self.pre_layernorm(hidden)
        cosine, sine = angles.cos()[:, None], angles.sin()[:, None]
        for block in self.blocks:
            hidden = block(hidden, lengths, cosine, sine)
        return self.merger(torch.cat([image[1:] for image in hidden.split(lengths)]))

    def _angles(self, grids: list[list[int]], device: torch.device) -> Tensor:
        """Rotary angles of the patches, float32 [P, d / 2]: the first half from the row, the second from the column.

        Frequencies are computed here and kept nowhere: what is no parameter does not survive loading on the meta
        device in every version of transformers.
        """
        dimensions = self.config.hidden_size // self.config.num_heads // 2
        exponents = torch.arange(0, dimensions, 2, dtype=torch.float32, device="cpu") / dimensions
        frequencies = (1.0 / self.config.rope_theta**exponents).to(device)
        positions = patch_positions(grids, self.config.spatial_merge_size).to(device)
        return (positions[..., None] * frequencies).flatten(1)


class LLaVAOneVision1_5_ForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Vision tower, language model and its head; keys `visual.*`, `model.*` and `lm_head.weight`."""

    config_class = Llavaonevision1_5Config
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Qwen3DecoderLayer", "RiceBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True  # the name before 4.54
    _supports_cache_class = True  # asked for before 4.54
    # Used where the configuration ties the head to the embedding. Versions 4.x take the keys alone.
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Llavaonevision1_5Config) -> None:
        super().__init__(config)
        self.visual = RiceViT(config.vision_config)
        self.model = Qwen3Model(config.text_config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RiceViT):
            nn.init.normal_(module.class_embedding, std=self.config.vision_config.initializer_range)
            nn.init.normal_(module.class_pos_emb, std=self.config.vision_config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Image tokens [P / merge**2, H] of all images, in order."""
        return self.visual(pixel_values, image_grid_thw)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [B, L, vocabulary], and the loss where `labels` [B, L] are given (shifted here, -100 left out).

        input_ids [B, L], padded on any side where attention_mask [B, L] is 0; pixel_values [P, channels * size**2] and
        image_grid_thw int64 [I, 3] of the images of all prompts, in the order in which they stand there.
        `mm_token_type_ids` is what newer processors say of the same positions; it is not needed.
        """
        return_dict = kwargs.pop("return_dict", None)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            inputs_embeds = self._with_images(input_ids, inputs_embeds, pixel_values, image_grid_thw)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            # A padded prompt begins at 0, as it does without padding.
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        outputs = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, rows])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.text_config.vocab_size, **kwargs)
        result = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
        return result.to_tuple() if return_dict is False else result

    def _with_images(
        self, input_ids: Tensor | None, embeds: Tensor, pixel_values: Tensor, image_grid_thw: Tensor | None
    ) -> Tensor:
        """embeds [B, L, H] with the image tokens in the places of the image pads."""
        if input_ids is None or image_grid_thw is None:
            raise ValueError("pixel_values need input_ids, which say where images stand, and image_grid_thw")
        features = self.get_image_features(pixel_values, image_grid_thw)
        places = input_ids == self.config.image_token_id
        if int(places.sum()) != len(features):
            raise ValueError(f"input_ids have {int(places.sum())} image tokens, the images have {len(features)}")
        return embeds.masked_scatter(places[..., None], features.to(embeds.device, embeds.dtype))

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As in the base class; images are looked at once, then they are in the cache.

        A cache may be that of a conversation whose next turn brings images: what is new then is more than a token.
        """
        inputs = super().prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, **kwargs)
        cached = past_key_values is not None and past_key_values.get_seq_length() > 0
        new = inputs.get("input_ids")
        if cached and (new is None or new.shape[1] == 1 or not bool((new == self.config.image_token_id).any())):
            inputs["pixel_values"] = None
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """As in the base class; the patches of a prompt are repeated as a whole."""
        patches, grids = model_kwargs.pop("pixel_values", None), model_kwargs.pop("image_grid_thw", None)
        if patches is not None and input_ids is not None and expand_size > 1:
            merged = self.config.vision_config.spatial_merge_size**2
            tokens = (input_ids == self.config.image_token_id).sum(1)
            image_ends, prompt_ends = (grids.prod(1) // merged).cumsum(0), tokens.cumsum(0)
            images = torch.bincount(torch.searchsorted(prompt_ends, image_ends), minlength=len(input_ids))
            patches = _repeated(patches, (tokens * merged).tolist(), expand_size)
            grids = _repeated(grids, images.tolist(), expand_size)
        ids, expanded = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if patches is not None:
            expanded |= {"pixel_values": patches, "image_grid_thw": grids}
        return ids, expanded


def _repeated(rows: Tensor, counts: list[int], times: int) -> Tensor:
    """The rows of every prompt, `counts` many, one prompt after the other, each `times` times."""
    return torch.cat([part for part in rows.split(counts) for _ in range(times)])


__all__ = ["LLaVAOneVision1_5_ForConditionalGeneration", "RiceViT"]
