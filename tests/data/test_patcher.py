"""Patches that a device makes of decoded pixels are those of the host, bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from onevision.data.image import ImageError, image_size, patch_grid
from onevision.data.patcher import image_patcher
from onevision.errors import InputError
from onevision.ops import library
from onevision.recipe import DataRecipe
from tests.data.decode.cases import photograph, variants

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
Files = tuple[list[bytes], list[tuple[int, int]], list[tuple[int, int]]]  # with sizes and grids
pytestmark = pytest.mark.usefixtures("ops")


def files(limits: tuple[int, int] = (784, 60_000), *, broken: bool = True) -> Files:
    """Images of every kind and size; where they are broken, two of them cannot be decoded and one has another size."""
    images = list(variants().values())
    images += [photograph("china", (640, 480)), photograph("chelsea", (30, 900)), photograph("coffee", (1200, 40))]
    sizes = [image_size(image) for image in images]
    if broken:
        images[3], images[-1] = images[3][: len(images[3]) // 2], b""
        sizes[5] = (sizes[5][0] + 1, sizes[5][1])
    return images, sizes, [patch_grid(*size, *limits) for size in sizes]


def made(data: DataRecipe, device: torch.device, dtype: torch.dtype, given: Files) -> torch.Tensor:
    patches, errors = image_patcher(data, device, dtype).make(*given)
    assert all(error is None for error in errors)
    return patches


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("decoder", ["native", "pillow"])
def test_device_and_host_make_the_same_patches(decoder: str, device: str) -> None:
    given = files(broken=False)
    host = made(DataRecipe(decoder=decoder), CPU, torch.float32, given)
    assert host.dtype == torch.float32 and host.device.type == "cpu"
    for dtype in (torch.float32, torch.bfloat16):
        found = made(DataRecipe(decoder=decoder, resize="device"), torch.device(device), dtype, given)
        assert found.device.type == device and found.dtype == dtype
        assert torch.equal(found.cpu(), host.to(dtype))  # as the model rounds what it is given


@pytest.mark.gpu
def test_patches_of_the_host_are_in_pinned_memory_for_a_gpu() -> None:
    given = files(broken=False)
    found = made(DataRecipe(), torch.device("cuda"), torch.bfloat16, given)
    assert found.is_pinned() and torch.equal(found, made(DataRecipe(), CPU, torch.float32, given))


@pytest.mark.parametrize("device", DEVICES)
def test_bad_images_are_refused_alike(device: str) -> None:
    images, sizes, grids = files()
    refused = []
    for resize, place in (("host", CPU), ("device", torch.device(device))):
        patches, errors = image_patcher(DataRecipe(resize=resize), place, torch.float32).make(images, sizes, grids)
        refused.append([n for n, error in enumerate(errors) if error is not None])
        assert all(isinstance(error, ImageError) for error in errors if error is not None)
        parts = patches.split([rows * columns for rows, columns in grids])
        assert [n for n, part in enumerate(parts) if not part.any()] == refused[-1]
    # An image of another size than the index says cannot be placed among the others' pixels; resizing could do it.
    assert refused == [[3, len(images) - 1], [3, 5, len(images) - 1]]


@pytest.mark.parametrize("device", DEVICES)
def test_no_images(device: str) -> None:
    patches, errors = image_patcher(DataRecipe(resize="device"), torch.device(device), torch.bfloat16).make([], [], [])
    assert patches.shape == (0, 588) and patches.dtype == torch.bfloat16 and errors == []


@pytest.mark.parametrize("device", DEVICES)
def test_threads_may_share_a_patcher(device: str) -> None:
    given = files(broken=False)
    parts = [tuple(column[n : n + 3] for column in given) for n in range(0, len(given[0]) - 2, 3)] * 3
    data = DataRecipe(resize="device")
    expected = [made(data, torch.device(device), torch.float32, part).cpu() for part in parts]
    patcher = image_patcher(data, torch.device(device), torch.float32)
    with ThreadPoolExecutor(4) as pool:
        for (found, _), wanted in zip(pool.map(lambda part: patcher.make(*part), parts), expected, strict=True):
            assert torch.equal(found.cpu(), wanted)


def test_ops_that_are_not_built_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    unbuilt = library.Library(("75",))  # a GPU that nobody builds for here
    monkeypatch.setattr(library, "here", lambda: unbuilt)
    monkeypatch.setattr(library.Library, "namespace", property(lambda self: "onevision_unbuilt"))
    with pytest.raises(InputError, match=r"onevision_unbuilt-sm-75-\w+\.so is not there: make cuda") as raised:
        image_patcher(DataRecipe(resize="device"), CPU, torch.float32)
    assert "\n" not in str(raised.value)
