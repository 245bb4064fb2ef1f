"""NVIDIA DALI: decodes and resizes JPEG on the CPU (`dali`), or decodes it on a GPU, where pixels stay (`dali_mixed`).

DALI ends a whole batch at one corrupt image, accepts truncated ones, and reads CMYK, transparency and 16 bits in a way
of its own. So only JPEG files, grey or in colour, go to DALI, the others to Pillow. `dali` first reads each to the end
with libjpeg-turbo, and one that it complains of goes to Pillow too. On a GPU this would be most of the work, so
`dali_mixed` looks only whether the file ends as it should, and reads the files of a batch when DALI has refused it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import simplejpeg
import torch

from onevision.data.decode.each import check_pixels, patch_parts
from onevision.data.decode.kernels import rows_first
from onevision.data.decode.pillow import PillowDecoder, cut
from onevision.data.image import PATCH, PATCH_VALUES, ImageError, decode_image, image_size, open_image
from onevision.errors import DataError, InputError

BATCH = 32  # images at once
END = b"\xff\xd9"  # of a JPEG file


class DaliDecoder:
    """See `onevision.data.decode.ImageDecoder`. Each thread that uses it has a pipeline of its own."""

    def __init__(self) -> None:
        """
        Raises:
            InputError: DALI is not installed.
        """
        self._resized = _Pipelines("dali", _resized, exec_async=False, exec_pipelined=False)
        self._pillow = PillowDecoder()

    def patches(
        self, images: Sequence[bytes], grids: Sequence[tuple[int, int]], out: np.ndarray
    ) -> list[ImageError | None]:
        parts = [part.reshape(-1, PATCH_VALUES) for part in patch_parts(grids, out)]
        errors: list[ImageError | None] = [None] * len(images)
        clean = [n for n, data in enumerate(images) if _clean_jpeg(data)]
        for n in set(range(len(images))).difference(clean):
            (errors[n],) = self._pillow.patches([images[n]], [grids[n]], parts[n])
        for start in range(0, len(clean), BATCH):
            batch = clean[start : start + BATCH]
            for n, resized in zip(batch, self._run([images[n] for n in batch], [grids[n] for n in batch]), strict=True):
                cut(resized, parts[n])
        return errors

    def _run(self, images: list[bytes], grids: list[tuple[int, int]]) -> list[np.ndarray]:
        """uint8 [H, W, 3] of each image."""
        between = []
        for data, (rows, columns) in zip(images, grids, strict=True):
            width, height = image_size(data)
            tall, wide = rows * PATCH, columns * PATCH
            between.append((tall, width) if rows_first(height, width, tall, wide) else (height, wide))
        try:
            batch = self._resized.run(
                encoded=[np.frombuffer(data, np.uint8) for data in images],
                between=[np.array(size, np.float32) for size in between],
                size=[np.array(grid, np.float32) * PATCH for grid in grids],
            )
            return [np.array(image) for image in batch]
        except RuntimeError as error:
            raise _refused(len(images), error) from None


class DaliMixedDecoder:
    """See `onevision.data.decode.PixelDecoder`. Each thread that uses it has a pipeline of its own, and works on the
    CUDA stream that is current there.
    """

    def __init__(self, device: torch.device, hw_decoder_load: float) -> None:
        """
        Args:
            device: where the pixels are written; the CPU, too, where DALI decodes just so.
            hw_decoder_load: share of the images that the GPU's JPEG hardware decodes; the GPU's cores do the rest.

        Raises:
            InputError: DALI is not installed.
        """
        self.device = device
        on_gpu = device.type == "cuda"
        # Its outputs live as long as the tensors on them do, in this execution model only.
        number = torch.cuda.current_device() if on_gpu and device.index is None else device.index
        settings = {"exec_dynamic": True, "device_id": number if on_gpu else None}
        load = {"hw_decoder_load": hw_decoder_load} if on_gpu else {}
        self._decoded = _Pipelines("dali_mixed", lambda: _decoded("mixed" if on_gpu else "cpu", **load), **settings)

    def pixels(
        self, images: Sequence[bytes], sizes: Sequence[tuple[int, int]], out: torch.Tensor
    ) -> list[ImageError | None]:
        ends = np.cumsum([3 * height * width for height, width in sizes], dtype=np.int64).tolist()
        parts = [out[end - 3 * h * w : end].view(h, w, 3) for end, (h, w) in zip(ends, sizes, strict=True)]
        errors: list[ImageError | None] = [None] * len(images)
        for_dali = []
        for n, data in enumerate(images):
            if _whole_jpeg(data, sizes[n]):
                for_dali.append(n)
            else:
                errors[n] = _upload(data, parts[n])
        for start in range(0, len(for_dali), BATCH):
            batch = for_dali[start : start + BATCH]
            try:
                self._decode([images[n] for n in batch], [parts[n] for n in batch])
            except RuntimeError:
                clean = [n for n in batch if _clean_jpeg(images[n])]
                for n in set(batch).difference(clean):
                    errors[n] = _upload(images[n], parts[n])
                try:
                    self._decode([images[n] for n in clean], [parts[n] for n in clean])
                except RuntimeError as error:
                    raise _refused(len(clean), error) from None
        return errors

    def _decode(self, images: list[bytes], parts: list[torch.Tensor]) -> None:
        if not images:
            return
        # DALI has a stream of its own: `run` returns when the pixels are there. The copies are on the current stream.
        batch = self._decoded.run(encoded=[np.frombuffer(data, np.uint8) for data in images])
        for n, part in enumerate(parts):
            part.copy_(torch.from_dlpack(batch[n]))
        if self.device.type == "cuda":
            # DALI may write into its memory again as soon as nothing here refers to it.
            torch.cuda.current_stream(self.device).synchronize()


class _Pipelines:
    """A pipeline of DALI for every thread that runs it."""

    def __init__(self, decoder: str, graph: Callable[[], Any], **settings: Any) -> None:
        """`graph` says what is computed; DALI is imported only now.

        Raises:
            InputError: it is not installed.
        """
        try:
            from nvidia.dali import pipeline_def
        except ImportError as error:
            raise InputError(
                f"data.decoder={decoder} needs the package nvidia-dali-cuda130, which cannot be imported ({error}): "
                "install onevision[dali], or use data.decoder=native"
            ) from None
        fixed = {"batch_size": BATCH, "num_threads": 1, "device_id": None, "prefetch_queue_depth": 1}
        self._make = pipeline_def(graph, **(fixed | settings))
        self._local = threading.local()

    def run(self, **inputs: list[np.ndarray]) -> Any:
        """The tensor list that comes out.

        Raises:
            RuntimeError: DALI refuses the batch.
        """
        if not hasattr(self._local, "pipeline"):
            self._local.pipeline = self._make()
            self._local.pipeline.build()
        try:
            for name, values in inputs.items():
                self._local.pipeline.feed_input(name, values)
            (batch,) = self._local.pipeline.run()
            return batch
        except RuntimeError:
            del self._local.pipeline  # it does not work again
            raise


def _decoded(device: str, **settings: Any) -> Any:
    from nvidia.dali import fn, types

    return fn.decoders.image(
        fn.external_source(name="encoded", dtype=types.UINT8, ndim=1),
        device=device,
        output_type=types.RGB,
        adjust_orientation=False,  # DALI would turn the image as EXIF says
        jpeg_fancy_upsampling=True,  # as libjpeg-turbo does
        **settings,
    )


def _resized() -> Any:
    from nvidia.dali import fn, types

    between = fn.external_source(name="between", dtype=types.FLOAT, ndim=1)
    size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
    # One side at a time, because Pillow rounds to bytes in between: at once a little too much differs by more than one.
    pixels = fn.resize(_decoded("cpu"), size=between, interp_type=types.INTERP_CUBIC, antialias=True)
    return fn.resize(pixels, size=size, interp_type=types.INTERP_CUBIC, antialias=True)


def _refused(images: int, error: RuntimeError) -> DataError:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return DataError(
        f"DALI fails on a batch of {images} images that libjpeg-turbo decodes ({line}): use data.decoder=native"
    )


def _upload(data: bytes, part: torch.Tensor) -> ImageError | None:
    """Decode by Pillow into part, uint8 [H, W, 3] on any device; zeros where that fails."""
    try:
        pixels = np.array(decode_image(data))
        check_pixels(pixels.shape, tuple(part.shape))
    except ImageError as error:
        part.zero_()
        return error
    part.copy_(torch.from_numpy(pixels))
    return None


def _whole_jpeg(data: bytes, size: tuple[int, int]) -> bool:
    """Whether this is a JPEG that DALI reads as Pillow does, as far as its begin and its end tell."""
    try:
        image = open_image(data)
    except ImageError:
        return False
    wanted = (image.height, image.width) == size and image.format == "JPEG" and image.mode in ("RGB", "L")
    return wanted and data.endswith(END)


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
