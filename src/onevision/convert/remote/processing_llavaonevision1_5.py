"""The processor of LLaVA-OneVision-1.5 for images and text, where there is no torchvision.

    AutoProcessor.from_pretrained(folder, trust_remote_code=True)

Without `trust_remote_code` the folder's processor is transformers' Qwen2_5_VLProcessor, which does the same, also takes
videos, and is not made without torchvision.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import transformers
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

IMAGE = "<|image_pad|>"
# What the tokenizer is asked; all other settings are the image processor's.
TOKENIZING = frozenset(
    ("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of", "add_special_tokens")
    + ("return_attention_mask", "return_special_tokens_mask", "return_offsets_mapping")
)


def opaque(images: Any) -> Any:
    """Pictures, nested in lists or not, with white behind what is transparent, as in training. transformers does so
    since some 5.x; before, the colours that a transparent pixel hides are shown. Grey of 16 bits counts by its upper 8,
    as in training too; Pillow takes all above 255 for white."""
    if isinstance(images, (list, tuple)):
        return [opaque(image) for image in images]
    if not isinstance(images, Image.Image):
        return images
    if images.mode.startswith("I;16"):
        images = _eight_bits(images)
    if "A" not in images.getbands() and images.info.get("transparency") is None:
        return images
    layer = images.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    values, clear = np.asarray(image), image.info.get("transparency")
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    if clear is not None:
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


class LlavaOnevision1_5Processor(ProcessorMixin):
    """An image processor of Qwen2-VL's and a tokenizer."""

    if int(transformers.__version__.split(".")[0]) < 5:  # later versions read the names below
        attributes = ["image_processor", "tokenizer"]
        image_processor_class = "AutoImageProcessor"
        tokenizer_class = "AutoTokenizer"

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token = IMAGE
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """input_ids and attention_mask of `text`, in which each image pad is repeated once a token of its image, and
        pixel_values [P, 588] and image_grid_thw [I, 3] of `images`, in the order of the image pads.

        Raises:
            ValueError: videos or audio, or another number of images than of image pads.
        """
        if videos or audio:
            raise ValueError("this processor takes images and text")
        settings: dict[str, Any] = {}
        for group in ("common_kwargs", "text_kwargs", "images_kwargs"):
            settings |= kwargs.pop(group, {})
        settings |= kwargs
        return_tensors = settings.pop("return_tensors", return_tensors)
        of_text = {key: settings.pop(key) for key in list(settings) if key in TOKENIZING}
        texts = [text] if isinstance(text, str) else list(text or ())
        found: dict[str, Any] = {}
        counts: list[int] = []
        if images is not None and not (isinstance(images, (list, tuple)) and len(images) == 0):
            found = dict(self.image_processor(images=opaque(images), return_tensors="np", **settings))
            merged = self.image_processor.merge_size**2
            counts = [int(grid.prod()) // merged for grid in found["image_grid_thw"]]
        if not texts:
            return BatchFeature(found, tensor_type=return_tensors)
        pads = sum(each.count(IMAGE) for each in texts)
        if pads != len(counts):
            raise ValueError(f"the text has {pads} times {IMAGE}, there are {len(counts)} images")
        each_count = iter(counts)
        repeated = [re.sub(re.escape(IMAGE), lambda _: IMAGE * next(each_count), each) for each in texts]
        return BatchFeature(
            {**self.tokenizer(repeated, return_token_type_ids=False, **of_text), **found}, tensor_type=return_tensors
        )

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]


__all__ = ["LlavaOnevision1_5Processor"]
