"""The search by its definition: all scores in float64, in the order of summation that the search promises."""

from __future__ import annotations

import numpy as np

LANES = 32
KINDS = (
    "normal", "unit", "whole numbers", "few different", "equal", "zeros", "huge coordinate", "tiny", "mixed lengths",
    "far from zero", "smallest numbers",
)  # fmt: skip


def vectors(kind: str, rows: int, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [rows, dimension] of a kind that is easy or hard for bounds."""
    found = rng.standard_normal((rows, dimension))
    if kind == "unit":
        found /= np.linalg.norm(found, axis=1, keepdims=True)
    elif kind == "whole numbers":
        found = np.rint(found)
    elif kind == "few different":
        found = found[rng.integers(min(rows, 3), size=rows)]
    elif kind == "equal":
        found[:] = found[0]
    elif kind == "zeros":
        found[rng.random(rows) < 0.8] = 0
    elif kind == "huge coordinate":
        found[:, rng.integers(dimension)] *= 1e5
    elif kind == "tiny":
        found *= 1e-20
    elif kind == "mixed lengths":
        found *= 10.0 ** rng.uniform(-20, 15, (rows, 1))
    elif kind == "far from zero":
        found += 1e4
    elif kind == "smallest numbers":
        found *= 1e-44
    return found.astype(np.float32)


def brute_force(queries: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Concepts and scores, by score descending, ties by lower number."""
    width = -(-rows.shape[1] // LANES) * LANES
    wide = [np.pad(part.astype(np.float64), ((0, 0), (0, width - rows.shape[1]))) for part in (queries, rows)]
    lanes = np.zeros((len(queries), len(rows), LANES))
    for begin in range(0, width, LANES):
        lanes += wide[0][:, None, begin : begin + LANES] * wide[1][None, :, begin : begin + LANES]
    while lanes.shape[2] > 1:
        half = lanes.shape[2] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    score = lanes[..., 0].astype(np.float32)
    order = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return order.astype(np.int32), np.take_along_axis(score, order, axis=1)
