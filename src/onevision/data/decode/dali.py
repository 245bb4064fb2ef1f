"""NVIDIA DALI: decodes and resizes JPEG on the CPU, or on a GPU ("mixed": the GPU takes over within the decoding).

DALI ends a whole batch at one corrupt image, accepts truncated ones, and reads CMYK, transparency and 16 bits in a way
of its own. So only JPEG files that libjpeg-turbo reads to the end without a complaint go to DALI, the others to Pillow.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg

from onevision.data.decode.kernels import rows_first
from onevision.data.decode.pillow import PillowDecoder, cut
from onevision.data.image import PATCH, ImageError, image_size, open_image
from onevision.errors import DataError, InputError

BATCH = 32  # images at once


class DaliDecoder:
    """See `onevision.data.decode.ImageDecoder`. Each thread that uses it has a pipeline of its own."""

    def __init__(self, mixed: bool) -> None:
        """With mixed on the current CUDA device.

        Raises:
            InputError: DALI is not installed, or there is no GPU for mixed.
        """
        try:
            from nvidia.dali import pipeline_def
        except ImportError as error:
            name = "dali_mixed" if mixed else "dali"
            raise InputError(
                f"data.decoder={name} needs the package nvidia-dali-cuda130, which cannot be imported ({error}): "
                "install onevision[dali], or use data.decoder=native"
            ) from None
        self._device = _current_gpu() if mixed else None
        self._resized = pipeline_def(_resized)
        self._pillow = PillowDecoder()
        self._local = threading.local()

    def patches(
        self, images: Sequence[bytes], grids: Sequence[tuple[int, int]], out: np.ndarray
    ) -> list[ImageError | None]:
        ends = np.cumsum([rows * columns for rows, columns in grids], dtype=np.int64).tolist()
        parts = [out[end - rows * columns : end] for end, (rows, columns) in zip(ends, grids, strict=True)]
        errors: list[ImageError | None] = [None] * len(images)
        clean = [n for n, data in enumerate(images) if _clean_jpeg(data)]
        for n in set(range(len(images))).difference(clean):
            (errors[n],) = self._pillow.patches([images[n]], [grids[n]], parts[n])
        for start in range(0, len(clean), BATCH):
            batch = clean[start : start + BATCH]
            pixels = self._run([images[n] for n in batch], [grids[n] for n in batch])
            for n, resized in zip(batch, pixels, strict=True):
                cut(resized, parts[n])
        return errors

    def _run(self, images: list[bytes], grids: list[tuple[int, int]]) -> list[np.ndarray]:
        """uint8 [H, W, 3] of each image."""
        if not hasattr(self._local, "pipeline"):
            self._local.pipeline = self._resized(
                mixed=self._device is not None,
                batch_size=BATCH,
                num_threads=1,
                device_id=self._device,
                prefetch_queue_depth=1,
                exec_async=False,
                exec_pipelined=False,
            )
            self._local.pipeline.build()
        pipeline = self._local.pipeline
        between = []
        for data, (rows, columns) in zip(images, grids, strict=True):
            width, height = image_size(data)
            tall, wide = rows * PATCH, columns * PATCH
            between.append((tall, width) if rows_first(height, width, tall, wide) else (height, wide))
        try:
            pipeline.feed_input("encoded", [np.frombuffer(data, np.uint8) for data in images])
            pipeline.feed_input("between", [np.array(size, np.float32) for size in between])
            pipeline.feed_input("size", [np.array(grid, np.float32) * PATCH for grid in grids])
            (batch,) = pipeline.run()
            return [np.array(image) for image in (batch if self._device is None else batch.as_cpu())]
        except RuntimeError as error:
            del self._local.pipeline  # it does not work again
            line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
            raise DataError(
                f"DALI fails on a batch of {len(images)} images that libjpeg-turbo decodes ({line}): "
                "use data.decoder=native"
            ) from None


def _resized(mixed: bool) -> Any:
    from nvidia.dali import fn, types

    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    between = fn.external_source(name="between", dtype=types.FLOAT, ndim=1)
    size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
    pixels = fn.decoders.image(
        encoded,
        device="mixed" if mixed else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,  # DALI would turn the image as EXIF says
        jpeg_fancy_upsampling=True,  # as libjpeg-turbo does
    )
    # One side at a time, because Pillow rounds to bytes in between: at once a little too much differs by more than one.
    pixels = fn.resize(pixels, size=between, interp_type=types.INTERP_CUBIC, antialias=True)
    return fn.resize(pixels, size=size, interp_type=types.INTERP_CUBIC, antialias=True)


def _clean_jpeg(data: bytes) -> bool:
    """Whether DALI decodes the pixels that Pillow decodes: JPEG, grey or in colour, without damage."""
    try:
        image = open_image(data)
    except ImageError:
        return False
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return False
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_factor=8, strict=True)  # reads all of it, computes little
    except ValueError:
        return False
    return True


def _current_gpu() -> int:
    import torch

    if not torch.cuda.is_available():
        raise InputError("data.decoder=dali_mixed needs a GPU: use data.decoder=native, or dali for the CPU")
    return torch.cuda.current_device()
