"""Encoders that embed concepts and samples in one space (`concepts.encoder` of the recipe).

    text   a sentence encoder: concepts and captions
    clip   a CLIP model: concepts by its text tower, images by its image tower

Both read their weights from a folder and never ask a hub. Embeddings are of unit length, so that an inner product is a
cosine; a sample with nothing to embed (no image, an empty caption) gets zeros, which match no concept.

A row of what is returned depends on the whole list that was passed, by rounding: texts are padded to the longest of
their batch, and a matrix product sums in an order that depends on its size. Whoever wants results that can be made
again passes lists that depend on the data alone, such as the samples of one part of a corpus, never on the number of
ranks or on where an earlier run ended. On a CPU an encoder computes with one thread, whatever the machine has, for the
same reason: more cores are used by more ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onevision.corpus.record import Record
from onevision.errors import InputError
from onevision.ranks import ALONE, Ranks
from onevision.recipe import ConceptRecipe


class Encoder(Protocol):
    """What embeds. The weights are loaded when they are first needed; the fingerprint is there from the start."""

    kind: str  # text, clip
    fingerprint: str  # of the kind and of the files of the weights folder

    @property
    def dimension(self) -> int:
        """D, values of an embedding."""
        ...

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts: float32 [n, D], rows of unit length. What is longer than the encoder reads is cut."""
        ...

    def samples(self, records: Sequence[Record]) -> NDArray[np.float32]:
        """Embed samples: float32 [n, D], rows of unit length, or of zeros where there is nothing to embed.

        `text` embeds the caption, `clip` each image, of whose embeddings the mean is taken.

        Raises:
            ImageError: an image cannot be decoded.
        """
        ...


def load_encoder(concepts: ConceptRecipe, ranks: Ranks = ALONE) -> Encoder:
    """The encoder of a recipe; every rank of a node takes the next GPU, where there are any. All ranks call it.

    Raises:
        InputError: no such encoder, its packages are not installed, or `concepts.weights` is no folder of its weights.
    """
    if concepts.encoder == "text":
        from onevision.concepts.encoders.text import TextEncoder

        return TextEncoder(concepts.weights, concepts.encoder_batch, ranks.local_rank())
    if concepts.encoder == "clip":
        from onevision.concepts.encoders.clip import ClipEncoder

        return ClipEncoder(concepts.weights, concepts.encoder_batch, ranks.local_rank())
    raise InputError(f"concepts.encoder={concepts.encoder}: it is one of text, clip")
