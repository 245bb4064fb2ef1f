"""What the balance step says of its selection: how many concepts it covers, how evenly, and how many are rare in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RARE = 100  # samples; a concept with fewer is rare


def coverage(count: NDArray[np.int64], before: NDArray[np.int64]) -> dict[str, Any]:
    """How the concepts are covered by samples of which `count` i8 [C] have each.

    covered: concepts that a sample has. entropy_bits: of the distribution of all matches over concepts; log2 of covered
    if all were equally frequent. rare: of the concepts that `before` covers, those that fewer than `RARE` samples have,
    none included; rare_share: their share. So before, after and a random draw are told of the same concepts.
    """
    known = before > 0
    rare = int(np.count_nonzero(known & (count < RARE)))
    total = int(count.sum())
    share = count[count > 0] / max(total, 1)
    return {
        "covered": int(np.count_nonzero(count)),
        "matches": total,
        "entropy_bits": float(-(share * np.log2(share)).sum()),
        "rare": rare,
        "rare_share": rare / max(1, int(np.count_nonzero(known))),
    }
