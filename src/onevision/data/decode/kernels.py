"""Compiled code of the native decoder: antialiased bicubic resizing and patches in one pass over the pixels.

Numba, because it needs no compiler where it is installed, uses the vector instructions of the processor that it finds
itself on, and lets other Python threads run meanwhile. It compiles at the first call on a kind of processor, for some
seconds, and keeps the result on disk.

The sums are those of Pillow 13, bit for bit: weights with 22 binary places, one side after the other in Pillow's order,
a byte between the two. A pixel is four bytes, red, green, blue and one that nobody reads, so that it can be moved as
one number. Inner loops run over neighbouring bytes with the same weight, which is what vectorises: for that, pieces of
`STRIP` rows are turned on their side before their columns are resized.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from onevision.data.image import MERGE, PATCH, PATCH_VALUES

PLACES = 22  # binary places of a weight
STRIP = 32  # rows whose columns are resized together
BLOCK = 64  # columns that are made of a piece: it stays in the first cache
TAPS = 6  # weights that are summed at once: all of them up to a shrinkage of 1.25
LANES = 4 * STRIP  # bytes of a column of a piece
AREA = PATCH * PATCH
# Places are unsigned: a signed index may count from the end, which is in the way of vectorising.
LANE, TWO, THREE, FOUR, FIVE = (np.uint64(n * LANES) for n in range(1, 6))

_compiled = njit(nogil=True, cache=True, error_model="numpy")
_helper = njit(nogil=True, cache=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


@_helper
def cubic(distance: float) -> float:
    """Weight of a sample at a distance in samples: the cubic convolution with a = -0.5."""
    x = abs(distance)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


@_helper
def plan(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """First sample (intp [target]) and weights (int32 [target, a multiple of TAPS]) that make each target sample."""
    scale = source / target
    stretch = max(scale, 1.0)  # a shrinking filter is widened: that is the antialiasing
    reach = 2.0 * stretch
    first = np.zeros(target, np.intp)
    exact = np.zeros((target, 2 * int(math.ceil(reach)) + 1))
    most = 1
    for place in range(target):
        center = (place + 0.5) * scale
        low = max(int(center - reach + 0.5), 0)
        count = min(int(center + reach + 0.5), source) - low
        total = 0.0
        for k in range(count):
            exact[place, k] = cubic((k + low - center + 0.5) * (1.0 / stretch))
            total += exact[place, k]
        for k in range(count):
            exact[place, k] /= total
        first[place] = low
        most = max(most, count)
    weights = np.zeros((target, (most + TAPS - 1) // TAPS * TAPS), np.int32)
    for place in range(target):
        for k in range(most):
            weight = exact[place, k] * (1 << PLACES)
            weights[place, k] = int(weight - 0.5) if weight < 0.0 else int(weight + 0.5)
    return first, weights


@_compiled
def rows_first(height: int, width: int, tall: int, wide: int) -> bool:
    """Whether Pillow 13 resizes height before width, as found by trying: where that leaves it much less to do."""
    return tall < height and 2 * (width - wide) < height - tall


@_helper
def blend(
    source: np.ndarray,
    starts: np.ndarray,
    weights: np.ndarray,
    place: int,
    sums: np.ndarray,
    target: np.ndarray,
    start: np.uint64,
    length: np.uint64,
) -> None:
    """target[start + i] = the byte nearest to the sum over k of weights[place, k] * source[starts[k] + i].

    Sums are of 32 bits, which hold them; without the explicit np.int32 they would be of 64, at half the speed.
    """
    half = np.int32(1 << (PLACES - 1))
    taps = weights.shape[1]
    for group in range(0, taps, TAPS):
        a, b, c = starts[group], starts[group + 1], starts[group + 2]
        d, e, f = starts[group + 3], starts[group + 4], starts[group + 5]
        u, v, w = weights[place, group], weights[place, group + 1], weights[place, group + 2]
        x, y, z = weights[place, group + 3], weights[place, group + 4], weights[place, group + 5]
        if taps == TAPS:
            for i in range(length):
                total = u * source[a + i] + v * source[b + i] + w * source[c + i]
                total += x * source[d + i] + y * source[e + i] + z * source[f + i]
                target[start + i] = min(max(np.int32(total + half) >> PLACES, 0), 255)
            return
        for i in range(length):
            total = u * source[a + i] + v * source[b + i] + w * source[c + i]
            total += x * source[d + i] + y * source[e + i] + z * source[f + i]
            sums[i] = np.int32(total + (sums[i] if group else half))
    for i in range(length):
        target[start + i] = min(max(sums[i] >> PLACES, 0), 255)


@_helper
def resize_rows(
    source: np.ndarray,
    first: np.ndarray,
    weights: np.ndarray,
    y: int,
    slots: int,
    starts: np.ndarray,
    sums: np.ndarray,
    target: np.ndarray,
    r: int,
) -> None:
    """Make row y of the target, in target[r], of source: uint32 [slots, W], source row n in slot n % slots."""
    width = source.shape[1]
    for k in range(weights.shape[1]):
        starts[k] = (first[y] + k) % slots * 4 * width
    lines, line = source.reshape(-1).view(np.uint8), target.reshape(-1).view(np.uint8)
    blend(lines, starts, weights, y, sums, line, np.uint64(4 * r * width), np.uint64(4 * width))


@_helper
def resize_columns(
    source: np.ndarray,
    row: int,
    rows: int,
    first: np.ndarray,
    weights: np.ndarray,
    strip: np.ndarray,
    turned: np.ndarray,
    starts: np.ndarray,
    sums: np.ndarray,
    target: np.ndarray,
    r: int,
) -> None:
    """Resize the columns of source[row : row + rows], uint32 [H, W], at most STRIP rows, into target[r : r + rows]."""
    half = np.int32(1 << (PLACES - 1))
    taps = weights.shape[1]
    lines, line = strip.reshape(-1).view(np.uint8), turned.reshape(-1).view(np.uint8)
    for begin in range(0, first.size, BLOCK):
        end = min(begin + BLOCK, first.size)
        low, high = int(first[begin]), min(int(first[end - 1]) + taps, source.shape[1])
        for x in range(low, high):
            for n in range(rows):
                strip[x - low, n] = source[row + n, x]
        for x in range(begin, end):
            to = np.uint64((x - begin) * LANES)
            if taps == TAPS:  # `blend` with places that are known relative to each other, which is twice as fast
                a = np.uint64((first[x] - low) * LANES)
                b, c, d, e, f = a + LANE, a + TWO, a + THREE, a + FOUR, a + FIVE
                p, q, s = weights[x, 0], weights[x, 1], weights[x, 2]
                t, u, v = weights[x, 3], weights[x, 4], weights[x, 5]
                for i in range(LANE):
                    total = p * lines[a + i] + q * lines[b + i] + s * lines[c + i]
                    total += t * lines[d + i] + u * lines[e + i] + v * lines[f + i]
                    line[to + i] = min(max(int(np.int32(total + half) >> PLACES), 0), 255)
            else:
                for k in range(taps):
                    starts[k] = (first[x] - low + k) * LANES
                blend(lines, starts, weights, x, sums, line, to, LANE)
        for n in range(rows):
            for x in range(begin, end):
                target[r + n, x] = turned[x - begin, n]


@_helper
def write_row(
    pixels: np.ndarray,
    r: int,
    y: int,
    scale: np.ndarray,
    shift: np.ndarray,
    line: np.ndarray,
    out: np.ndarray,
) -> None:
    """Normalise pixels[r], uint32 [.., W], and write it as row y of the image into its patches; line: float32 [W]."""
    wide = pixels.shape[1]
    across = wide // PATCH
    words = pixels.reshape(-1)
    pairs, target = line.view(np.uint64), out.reshape(-1).view(np.uint64)  # two values move as one number
    block_row, inside = divmod(y // PATCH, MERGE)
    start = np.uint64(r * wide)
    for channel in range(3):
        factor, offset, bits = scale[channel], shift[channel], np.uint32(8 * channel)
        for x in range(np.uint64(wide)):
            line[x] = np.float32(np.int32((words[start + x] >> bits) & np.uint32(255))) * factor + offset
        for column in range(across):
            block = block_row * (across // MERGE) + column // MERGE
            patch = (block * MERGE + inside) * MERGE + column % MERGE
            source = np.uint64(column * (PATCH // 2))
            place = np.uint64((patch * PATCH_VALUES + channel * AREA + y % PATCH * PATCH) // 2)
            for i in range(np.uint64(PATCH // 2)):
                target[place + i] = pairs[source + i]


@_compiled
def resize_patches(
    pixels: np.ndarray, rows: int, columns: int, scale: np.ndarray, shift: np.ndarray, out: np.ndarray
) -> None:
    """Resize to rows x columns patches, normalise, cut.

    Args:
        pixels: uint32 [H, W]; the bytes of a pixel are red, green, blue and anything.
        rows, columns: of patches; even.
        scale, shift: float32 [3]; a value is byte * scale + shift.
        out: float32 [rows * columns, 588], written; blocks of 2 x 2 patches, channel first.
    """
    height, width = pixels.shape
    tall, wide = rows * PATCH, columns * PATCH
    first_x, weights_x = plan(width, wide)
    first_y, weights_y = plan(height, tall)
    taps_x, taps_y = weights_x.shape[1], weights_y.shape[1]
    # Weights that are padding read what lies behind the last sample: it must exist, its value counts for nothing.
    strip = np.zeros((int(BLOCK * (width / wide)) + 2 * taps_x + 2, STRIP), np.uint32)
    turned = np.empty((BLOCK, STRIP), np.uint32)
    starts = np.empty(max(taps_x, taps_y), np.uint64)
    sums = np.empty(max(LANES, 4 * width, 4 * wide), np.int32)
    lines = np.empty((STRIP, wide), np.uint32)
    line = np.empty(wide, np.float32)
    if rows_first(height, width, tall, wide):
        between = np.empty((STRIP, width), np.uint32)
        for start in range(0, tall, STRIP):
            count = min(STRIP, tall - start)
            for r in range(count):
                resize_rows(pixels, first_y, weights_y, start + r, height, starts, sums, between, r)
            resize_columns(between, 0, count, first_x, weights_x, strip, turned, starts, sums, lines, 0)
            for r in range(count):
                write_row(lines, r, start + r, scale, shift, line, out)
        return
    slots = (taps_y + 2 * STRIP - 1) // STRIP * STRIP
    ring = np.zeros((slots, wide), np.uint32)  # rows of which only the columns are resized
    done = 0
    for y in range(tall):
        while done < min(first_y[y] + taps_y, height):
            count = min(STRIP, height - done)
            resize_columns(pixels, done, count, first_x, weights_x, strip, turned, starts, sums, ring, done % slots)
            done += count
        resize_rows(ring, first_y, weights_y, y, slots, starts, sums, lines, 0)
        write_row(lines, 0, y, scale, shift, line, out)
