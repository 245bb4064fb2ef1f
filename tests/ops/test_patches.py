from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from onevision.data.decode.kernels import resize_patches, rows_first
from onevision.data.decode.pillow import cut
from onevision.data.image import SCALE, SHIFT
from onevision.ops import patches as ours
from tests.ops.conftest import Place

Sized = tuple[int, int, int, int]  # height, width, rows, columns
RAGGED: list[Sized] = [
    (28, 28, 2, 2),  # one token, as it is
    (8, 9, 2, 2),  # up
    (300, 30, 4, 2),  # height first
    (30, 300, 2, 4),
    (400, 400, 2, 2),  # far down
    (97, 150, 6, 10),
    (1, 1, 2, 2),
    (500, 40, 4, 4),
]


def made(sizes: list[Sized], seed: int = 0) -> list[np.ndarray]:
    """Images of random noise: the sums reach their limits, and beyond."""
    rng = np.random.default_rng(seed)
    return [rng.choice([0, 255, 128], (height, width, 3)).astype(np.uint8) for height, width, _, _ in sizes]


def flat(images: list[np.ndarray], device: str) -> Tensor:
    return torch.from_numpy(np.concatenate([image.reshape(-1) for image in images])).to(device)


def by_pillow(images: list[np.ndarray], sizes: list[Sized]) -> Tensor:
    parts = []
    for image, (_, _, rows, columns) in zip(images, sizes, strict=True):
        resized = Image.fromarray(image).resize((14 * columns, 14 * rows), Image.Resampling.BICUBIC)
        parts.append(np.empty((rows * columns, 588), np.float32))
        cut(np.asarray(resized), parts[-1])
    return torch.from_numpy(np.concatenate(parts))


def arguments(images: list[np.ndarray], sizes: list[Sized], dtype: torch.dtype, device: str) -> tuple[Any, ...]:
    count = sum(rows * columns for _, _, rows, columns in sizes)
    constants = torch.from_numpy(SCALE), torch.from_numpy(SHIFT)
    return flat(images, device), torch.tensor(sizes), *constants, count, dtype


def test_it_is_pillow_and_the_data_plane(place: Place) -> None:
    assert {rows_first(h, w, 14 * r, 14 * c) for h, w, r, c in RAGGED} == {True, False}
    images = made(RAGGED)
    expected = by_pillow(images, RAGGED)
    found = place.ops.resize_patches(*arguments(images, RAGGED, torch.float32, place.device)).cpu()
    # Bytes are equal: a step of a byte is 0.0146, and the rest is the rounding of one product and one sum.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    first = 0
    for image, (height, width, rows, columns) in zip(images, RAGGED, strict=True):
        words = np.dstack([image, np.zeros((height, width, 1), np.uint8)]).view(np.uint32)[:, :, 0].copy()
        native = np.empty((rows * columns, 588), np.float32)
        resize_patches(words, rows, columns, SCALE, SHIFT, native)
        np.testing.assert_allclose(found[first : first + rows * columns].numpy(), native, rtol=0, atol=1e-6)
        first += rows * columns
    rounded = place.ops.resize_patches(*arguments(images, RAGGED, torch.bfloat16, place.device)).cpu()
    assert rounded.dtype == torch.bfloat16 and torch.equal(rounded, found.bfloat16())


SIDES = st.integers(1, 120)
GRID = st.integers(1, 3).map(lambda blocks: 2 * blocks)


@given(sizes=st.lists(st.tuples(SIDES, SIDES, GRID, GRID), min_size=1, max_size=3), seed=st.integers(0, 2**32))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sizes(place: Place, sizes: list[Sized], seed: int) -> None:
    images = made(sizes, seed)
    found = place.ops.resize_patches(*arguments(images, sizes, torch.float32, place.device)).cpu()
    torch.testing.assert_close(found, by_pillow(images, sizes), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "size", "grid"), [("astronaut", (160, 200), (12, 8)), ("coffee", (90, 60), (6, 10))])
def test_photographs(place: Place, name: str, size: tuple[int, int], grid: tuple[int, int]) -> None:
    photographs = pytest.importorskip("tests.data.decode.cases", reason="scikit-image is not installed").PHOTOGRAPHS
    image = np.asarray(Image.open(photographs[name]).convert("RGB").resize(size))
    sizes = [(*image.shape[:2], *grid)]
    found = place.ops.resize_patches(*arguments([image], sizes, torch.float32, place.device)).cpu()
    torch.testing.assert_close(found, by_pillow([image], sizes), rtol=0, atol=1e-6)
    assert found.std() > 0.2


def test_without_images(place: Place) -> None:
    pixels, sizes = torch.zeros(0, dtype=torch.uint8, device=place.device), torch.zeros(0, 4, dtype=torch.int64)
    constants = torch.from_numpy(SCALE), torch.from_numpy(SHIFT)
    assert place.ops.resize_patches(pixels, sizes, *constants, 0, torch.float32).shape == (0, 588)


def test_opcheck(place: Place) -> None:
    given = arguments(made(RAGGED[:2]), RAGGED[:2], torch.bfloat16, place.device)
    torch.library.opcheck(place.ops.resize_patches.default, given)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled(place: Place, backend: str) -> None:
    pixels, *rest = arguments(made(RAGGED[:2]), RAGGED[:2], torch.float32, place.device)

    def features(pixels: Tensor) -> Tensor:
        return 2 * place.ops.resize_patches(255 - pixels, *rest)

    assert torch.equal(torch.compile(features, backend=backend, fullgraph=True)(pixels), features(pixels))


@pytest.mark.parametrize(
    ("position", "value", "complaint"),
    [
        (0, torch.zeros(9, dtype=torch.uint8), "pixels has 9 bytes, the images of sizes have 2352"),
        (0, torch.zeros(2352), "pixels has the wrong dtype"),
        (1, torch.tensor([[28, 28, 2]]), r"sizes must be \[I, 4\]"),
        (1, torch.tensor([[28, 28, 2, 3]]), "an even number of rows and columns"),
        (1, torch.tensor([[0, 28, 2, 2]]), "an image has pixels"),
        (2, torch.ones(2), "scale must have 3 values"),
        (4, 5, "the images of sizes have 4 patches, not 5"),
        (5, torch.float16, "dtype must be float32 or bfloat16"),
    ],
)
def test_what_cannot_work_is_refused(place: Place, position: int, value: Any, complaint: str) -> None:
    given = list(arguments(made(RAGGED[:1]), RAGGED[:1], torch.float32, place.device))
    given[position] = value.to(place.device) if position == 0 else value
    with pytest.raises(RuntimeError, match=complaint):
        place.ops.resize_patches(*given)


def test_the_function_is_the_op(native: None) -> None:
    images = made(RAGGED)
    found = ours.resize_patches(flat(images, "cpu"), torch.tensor(RAGGED), torch.float32)
    torch.testing.assert_close(found, by_pillow(images, RAGGED), rtol=0, atol=1e-6)
    assert ours.resize_patches(flat(images, "cpu"), torch.tensor(RAGGED)).dtype == torch.bfloat16
