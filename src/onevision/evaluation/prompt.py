"""What a model is asked, and how it is to answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from onevision.evaluation.sampling import GREEDY, Sampling


@dataclass(frozen=True)
class Prompt:
    """Token ids int64 [L] that end where the answer begins, and the images they speak of, in order."""

    ids: np.ndarray
    patches: Tensor  # [P, 588] of all its images
    grid_thw: np.ndarray  # int64 [I, 3]
    sampling: Sampling = GREEDY
    max_new_tokens: int = 0  # 0: as all
