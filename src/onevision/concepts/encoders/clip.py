"""The CLIP encoder: concepts by the text tower, images by the image tower, of weights in the layout of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.encoders.weights import (
    choose_device,
    computing,
    folder_fingerprint,
    loading,
    need_packages,
    unit,
)
from onevision.corpus.record import Record
from onevision.data.image import decode_image
from onevision.errors import InputError
from onevision.files import read_json

MODEL_TYPES = ("clip", "metaclip_2")  # `model_type` of config.json
THREADS = 8  # that decode and scale images while a GPU computes


class ClipEncoder:
    """Embeds concepts and images. Half precision on a GPU, single precision on a CPU.

    Images are decoded as for training (EXIF orientation is ignored, transparent pixels show white) and then scaled,
    cut and normalised as the folder's preprocessor_config.json says, with Pillow.
    """

    kind = "clip"

    def __init__(self, weights: str, batch: int = 64, local_rank: int = 0) -> None:
        """`weights` is the folder of a CLIP model, such as one of MetaCLIP-H/14.

        Raises:
            InputError: it is none, or packages are not installed.
        """
        if not weights:
            raise InputError("concepts.encoder=clip needs the folder of a CLIP model: set concepts.weights")
        need_packages("concepts.encoder=clip", "transformers")
        self.folder = Path(weights)
        if not (self.folder / "config.json").is_file():
            raise InputError(f"concepts.weights={weights} is no folder of a CLIP model (it has no config.json)")
        config = read_json(self.folder / "config.json")
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind not in MODEL_TYPES:
            raise InputError(
                f"{self.folder / 'config.json'} is of a model of type {kind}, not {' or '.join(MODEL_TYPES)}: set "
                "concepts.weights to the folder of a CLIP model"
            )
        self.fingerprint = folder_fingerprint(self.kind, self.folder)
        self._batch = batch
        self._device = choose_device(local_rank)

    @property
    def dimension(self) -> int:
        """D, values of an embedding."""
        return int(self._model.config.projection_dim)

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `Encoder.texts`."""
        rows = np.zeros((len(texts), self.dimension), np.float32)
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # little padding
        limit = self._model.config.text_config.max_position_embeddings
        with computing(self._device):
            for some in batches(order, self._batch):
                inputs = self._tokenizer(
                    [texts[number] for number in some],
                    padding=True,
                    truncation=True,
                    max_length=limit,
                    return_tensors="pt",
                )
                features = self._model.get_text_features(
                    input_ids=inputs["input_ids"].to(self._device),
                    attention_mask=inputs["attention_mask"].to(self._device),
                )
                rows[some] = features.pooler_output.float().cpu().numpy()
        return unit(rows)

    def samples(self, records: Sequence[Record]) -> NDArray[np.float32]:
        """As `Encoder.samples`, of the images."""
        sums = np.zeros((len(records), self.dimension), np.float32)
        owner = np.repeat(np.arange(len(records)), [len(record.images) for record in records])
        images = chain.from_iterable(record.images for record in records)
        for some, pixels in zip(batches(owner, self._batch), self._pixels(images), strict=True):
            np.add.at(sums, some, self._images(pixels))
        return unit(sums)

    def _images(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings of unit length of scaled images [n, 3, height, width]."""
        import torch

        with computing(self._device):
            values = torch.from_numpy(pixels).to(self._device, self._model.dtype)
            return unit(self._model.get_image_features(pixel_values=values).pooler_output.float().cpu().numpy())

    def _pixels(self, images: Iterator[bytes]) -> Iterator[NDArray[np.float32]]:
        """Scaled images, a batch at a time; the next batch is made meanwhile."""
        scaled = partial(_scaled, self._processor)
        with ThreadPoolExecutor(THREADS if self._device.type == "cuda" else 1) as threads:
            ahead: list[Any] = []
            for some in batches(list(images), self._batch):
                ahead.append([threads.submit(scaled, image) for image in some])
                if len(ahead) == 2:
                    yield np.stack([done.result() for done in ahead.pop(0)])
            if ahead:
                yield np.stack([done.result() for done in ahead[0]])

    @cached_property
    def _model(self) -> Any:
        with loading(self.folder, "a CLIP model"):
            import torch
            from transformers import AutoModel

            model, found = AutoModel.from_pretrained(
                self.folder,
                dtype=torch.float16 if self._device.type == "cuda" else torch.float32,
                local_files_only=True,
                output_loading_info=True,
            )
        missing = sorted(found["missing_keys"])
        if missing:  # the library would fill them with random numbers
            raise InputError(f"{self.folder} lacks {len(missing)} weights of a CLIP model, the first is {missing[0]}")
        return model.to(self._device).eval()

    @cached_property
    def _tokenizer(self) -> Any:
        with loading(self.folder, "the tokenizer of a CLIP model"):
            from transformers import AutoTokenizer

            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @cached_property
    def _processor(self) -> Any:
        with loading(self.folder, "the image processor of a CLIP model"):
            from transformers import AutoImageProcessor

            return AutoImageProcessor.from_pretrained(self.folder, backend="pil", local_files_only=True)


def _scaled(processor: Any, image: bytes) -> NDArray[np.float32]:
    return processor(images=decode_image(image), return_tensors="np")["pixel_values"][0]


def batches(values: Any, size: int) -> list[Any]:
    """A sequence in pieces of `size`."""
    return [values[start : start + size] for start in range(0, len(values), size)]
