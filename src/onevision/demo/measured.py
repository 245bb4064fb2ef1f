"""Real numbers for charts and tables, from data sets that scikit-learn ships.

Only sets of the UCI Machine Learning Repository are used, which are under CC BY 4.0; the others (diabetes,
Linnerud) come without a stated licence.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from sklearn.datasets import load_breast_cancer, load_iris, load_wine

from onevision.demo.draw import Origin

LOADERS = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}
ORIGINS = {
    "iris": Origin("scikit-learn iris (UCI Iris)", "CC-BY-4.0"),
    "wine": Origin("scikit-learn wine (UCI Wine)", "CC-BY-4.0"),
    "breast cancer": Origin("scikit-learn breast cancer (UCI Breast Cancer Wisconsin)", "CC-BY-4.0"),
}
HELDOUT_EVERY = 4


@cache
def measured(name: str, heldout: bool) -> np.ndarray:
    """Rows of a data set that belong to a split, float64 [rows, features]: every fourth row is held out."""
    values = LOADERS[name]().data
    return values[(np.arange(len(values)) % HELDOUT_EVERY == HELDOUT_EVERY - 1) == heldout]
