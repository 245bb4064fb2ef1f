from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from onevision.data.buffers import Buffers


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_used_again_when_nothing_refers_to_it() -> None:
    buffers = Buffers(10, 4)
    first, second = buffers.take(3), buffers.take(10)
    assert first.shape == (3, 4) and second.shape == (10, 4) and first.dtype == np.float32
    assert not np.shares_memory(first, second)
    place = address(first)
    tensor = torch.from_numpy(first)
    part = tensor[1:]
    del first, tensor
    assert address(buffers.take(2)) != place, "a view of a tensor on it is left"
    del part
    assert address(buffers.take(2)) == place
    rest = second[5:][1:]
    place = address(second)
    del second
    held = [buffers.take(1) for _ in range(3)]
    assert all(address(array) != place for array in held) and rest.shape == (4, 4)


def test_threads_never_share_an_array() -> None:
    buffers = Buffers(50, 4)

    def use(number: int) -> bool:
        array = buffers.take(1 + number % 50)
        array[:] = number
        return bool((array == number).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(4000)))
    assert len(buffers._buffers) <= 8


def test_more_rows_than_the_others_have_are_an_array_of_their_own() -> None:
    buffers = Buffers(10, 4)
    assert buffers.take(11).shape == (11, 4)
    assert buffers.take(10).shape == (10, 4)
