"""Compiled code of the exact search: which concepts may be among the best of a query, and the scores of those.

A query has a list of its best concepts so far, by score, and a list of concepts that wait: those whose upper bound from
the first pass reaches the worst score in the list of the best. When many wait, those with the highest bounds get their
scores. That raises what the others must reach, and most of them then never need a score. Where bounds tell nothing, all
concepts are scored: slower, but right.

A score is the float32 next to a float64 sum whose order is fixed here, so that nothing but the two vectors decides it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import extending, njit, types

LANES = 32  # sums of a score that run beside each other
CHUNK = 64  # bounds that are compared at once
TAKE = 32  # waiting concepts that are scored at once, or k where that is more

# Of `frame`, float64 [3] a query: score = unit * (what the first pass gives) + offset, up to slack.
UNIT, OFFSET, SLACK = range(3)
# Of `held`, int64 [3] a query: lengths of its two lists, and how many concepts were scored.
BEST, WAITING, SCORED = range(3)

ULP = 2.0**-23  # of float32
TINY = 2.0**-147  # four times the smallest float32 number

Array = Any
_compiled = njit(nogil=True, cache=True, error_model="numpy")
_helper = njit(nogil=True, cache=True, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _value(number: Any) -> float:
    """A float32 number, or one whose float16 bits are given as uint16, in float64."""
    return float(number.view(np.float16) if number.dtype == np.uint16 else number)


@extending.overload(_value, inline="always")
def _compile_value(number: Any) -> Any:
    """The same, compiled: at float32's places the exponent of float16 is too small by 112, of subnormal numbers too."""

    def half(number: Any) -> float:
        bits = np.uint32(number)
        wide = ((bits & np.uint32(0x8000)) << np.uint32(16)) | ((bits & np.uint32(0x7FFF)) << np.uint32(13))
        return np.float64(np.uint32(wide).view(np.float32)) * 2.0**112

    def single(number: Any) -> float:
        return np.float64(number)

    return half if number == types.uint16 else single


@_helper
def _sum(left: Array, right: Array, lanes: Array) -> float:
    """Inner product of a float32 vector and a row: exact products, `LANES` sums in float64, then halves together."""
    for j in range(LANES):
        lanes[j] = 0.0
    whole = len(left) // LANES * LANES
    for i in range(0, whole, LANES):
        for j in range(LANES):
            lanes[j] += np.float64(left[i + j]) * _value(right[i + j])
    for j in range(len(left) - whole):
        lanes[j] += np.float64(left[whole + j]) * _value(right[whole + j])
    width = LANES
    while width > 1:
        width //= 2
        for j in range(width):
            lanes[j] += lanes[j + width]
    return lanes[0]


@_compiled
def lengths(vectors: Array, out: Array) -> None:
    """Length of each vector: float32 [n, D] to float64 [n]; not a number or infinite where the vector is not finite."""
    lanes = np.empty(LANES)
    for i in range(len(vectors)):
        out[i] = np.sqrt(_sum(vectors[i], vectors[i], lanes))


@_helper
def reach(worst: np.float32, frame: Array) -> np.float32:
    """What an upper bound of the first pass must reach for a score that may equal `worst` in float32."""
    exact = np.float64(worst)
    exact -= ULP * abs(exact) + TINY + frame[SLACK]
    scaled = (exact - frame[OFFSET]) / frame[UNIT]
    return np.float32(scaled - ULP * abs(scaled) - TINY)


@_helper
def _offer(concept: int, value: np.float32, best: Array, best_score: Array, count: int) -> int:
    """Put a scored concept into the list of the best where it belongs; returns the length of the list."""
    last = len(best) - 1
    if count > last:
        if value < best_score[last] or (value == best_score[last] and concept > best[last]):
            return count
    else:
        last = count
        count += 1
    while last and (value > best_score[last - 1] or (value == best_score[last - 1] and concept < best[last - 1])):
        best[last], best_score[last] = best[last - 1], best_score[last - 1]
        last -= 1
    best[last], best_score[last] = concept, value
    return count


@_helper
def _highest(upper: Array, places: Array) -> None:
    """Write the places of the highest of `upper` to `places`: a heap with the lowest of them on top."""
    size = len(places)
    for place in range(len(upper)):
        if place < size:  # sift up
            at = place
            while at and upper[place] < upper[places[(at - 1) // 2]]:
                places[at] = places[(at - 1) // 2]
                at = (at - 1) // 2
            places[at] = place
        elif upper[place] > upper[places[0]]:  # replace the lowest, sift down
            at = 0
            while True:
                child = 2 * at + 1
                if child >= size:
                    break
                if child + 1 < size and upper[places[child + 1]] < upper[places[child]]:
                    child += 1
                if upper[places[child]] >= upper[place]:
                    break
                places[at] = places[child]
                at = child
            places[at] = place


@_helper
def _settle(
    query: Array,
    rows: Array,
    waiting: Array,
    upper: Array,
    best: Array,
    best_score: Array,
    frame: Array,
    must: np.float32,
    held: Array,
    places: Array,
    lanes: Array,
) -> np.float32:
    """Score the waiting concepts with the highest bounds, drop those out of reach; returns what is to be reached."""
    count = held[WAITING]
    taken = min(len(places), count)
    _highest(upper[:count], places[:taken])
    for place in places[:taken]:
        value = np.float32(_sum(query, rows[waiting[place]], lanes))
        held[BEST] = _offer(waiting[place], value, best, best_score, held[BEST])
        waiting[place] = -1
    held[SCORED] += taken
    if held[BEST] == len(best):
        must = max(must, reach(best_score[-1], frame))
    left = 0
    for place in range(count):
        if waiting[place] >= 0 and not upper[place] < must:
            waiting[left], upper[left] = waiting[place], upper[place]
            left += 1
    held[WAITING] = left
    return must


@_compiled
def collect(
    first: int,
    passed: Array,
    scale: Array,
    error: Array,
    length: Array,
    queries: Array,
    rows: Array,
    must: Array,
    weights: Array,
    frame: Array,
    held: Array,
    waiting: Array,
    upper: Array,
    best: Array,
    best_score: Array,
) -> None:
    """Let those concepts of a tile wait that may be among the best.

    Args:
        first: number of the tile's first concept.
        passed: int32 or float32 [n, T]: the first pass over the tile.
        scale, error, length: float32 [T]: passed * scale + weights[0] * error + weights[1] * length is the upper bound.
        queries, rows: float32 [n, D], and float32 or (bits of float16) uint16 [C, D].
        must: float32 [n]: what an upper bound must reach. weights: float32 [n, 2].
        frame, held: float64 and int64 [n, 3]; see above.
        waiting, upper: int32 and float32 [n, W]. best, best_score: int32 and float32 [n, k].
    """
    lanes = np.empty(LANES)
    places = np.empty(max(TAKE, best.shape[1]), np.int64)
    room = waiting.shape[1]
    tile = len(scale)
    for q in range(len(queries)):
        line, threshold = passed[q], must[q]
        of_error, of_length = weights[q, 0], weights[q, 1]
        for begin in range(0, tile, CHUNK):
            end = min(begin + CHUNK, tile)
            # Slices, because places that count from zero are known to be none from the end: so the loop vectorises.
            values, scales, errors, spans = line[begin:end], scale[begin:end], error[begin:end], length[begin:end]
            reached = False
            for c in range(end - begin):
                bound = np.float32(values[c]) * scales[c] + (of_error * errors[c] + of_length * spans[c])
                reached |= bound >= threshold
            if not reached:
                continue
            for c in range(end - begin):
                bound = np.float32(values[c]) * scales[c] + (of_error * errors[c] + of_length * spans[c])
                if bound < threshold:
                    continue
                if held[q, WAITING] == room:
                    while held[q, WAITING] > room // 2:
                        threshold = _settle(
                            queries[q], rows, waiting[q], upper[q], best[q], best_score[q], frame[q], threshold,
                            held[q], places, lanes,
                        )  # fmt: skip
                waiting[q, held[q, WAITING]] = first + begin + c
                upper[q, held[q, WAITING]] = bound
                held[q, WAITING] += 1
        must[q] = threshold


@_compiled
def finish(
    queries: Array,
    rows: Array,
    must: Array,
    frame: Array,
    held: Array,
    waiting: Array,
    upper: Array,
    best: Array,
    best_score: Array,
) -> None:
    """Score what still waits and is not out of reach; `best` and `best_score` are then the result. See `collect`."""
    lanes = np.empty(LANES)
    places = np.empty(max(TAKE, best.shape[1]), np.int64)
    for q in range(len(queries)):
        while held[q, WAITING]:
            must[q] = _settle(
                queries[q], rows, waiting[q], upper[q], best[q], best_score[q], frame[q], must[q], held[q], places,
                lanes,
            )  # fmt: skip


@_compiled
def rescore(queries: Array, rows: Array, found: Array, best: Array, best_score: Array) -> None:
    """The best of given concepts.

    Args:
        queries, rows: as in `collect`.
        found: int64 [n, m]: concepts of each query; negative ones are none.
        best, best_score: int32 and float32 [n, k], k <= m; written. Where fewer are found, the rest stays as it is.
    """
    lanes = np.empty(LANES)
    for q in range(len(queries)):
        count = 0
        for concept in found[q]:
            if concept >= 0:
                value = np.float32(_sum(queries[q], rows[concept], lanes))
                count = _offer(concept, value, best[q], best_score[q], count)


@_compiled
def quantise(
    vectors: Array,
    center: Array,
    signs: Array,
    block: int,
    out: Array,
    unit: Array,
    error: Array,
    length: Array,
) -> None:
    """Turn vectors - center by a fixed rotation and round them to 8 bits.

    The rotation changes signs and applies a Hadamard matrix to each block: a large coordinate is spread over its block,
    so that it does not take the places of the small ones.

    Args:
        vectors: float32 [n, D]. center: float64 [D]. signs: float64 [P], P >= D, a multiple of `block`.
        out: int8 [n, P]; unit: float32 [n]: unit * out is the rounded vector.
        error, length: float64 [n]: lengths of what rounding takes away, and of vector - center.
    """
    width = len(signs)
    turned = np.empty(width)
    root = 1.0 / np.sqrt(np.float64(block))
    for i in range(len(vectors)):
        for j in range(len(center)):
            turned[j] = (np.float64(vectors[i, j]) - center[j]) * signs[j]
        for j in range(len(center), width):
            turned[j] = 0.0
        half = 1
        while half < block:
            for begin in range(0, width, 2 * half):
                for j in range(begin, begin + half):
                    x, y = turned[j], turned[j + half]
                    turned[j], turned[j + half] = x + y, x - y
            half *= 2
        largest, whole, lost = 0.0, 0.0, 0.0
        for j in range(width):
            turned[j] *= root
            largest = max(largest, abs(turned[j]))
            whole += turned[j] * turned[j]
        unit[i] = np.float32(largest / 127.0)
        if unit[i] == 0.0:
            unit[i] = 1.0
        step = np.float64(unit[i])
        for j in range(width):
            value = min(max(np.rint(turned[j] / step), -127.0), 127.0)
            lost += (turned[j] - step * value) ** 2
            out[i, j] = np.int8(value)
        error[i], length[i] = np.sqrt(lost), np.sqrt(whole)
