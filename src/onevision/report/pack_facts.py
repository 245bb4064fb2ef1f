"""What there is to say about packs, read from their folder and that of their corpus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onevision.corpus.build import LEDGER
from onevision.errors import InputError
from onevision.files import read_json
from onevision.packing.build import OVERLONG
from onevision.packing.index import AGAIN, PackIndex
from onevision.recipe import Recipe
from onevision.report.dealing import Dealing, measure_dealings

BATCHES = (64, 128, 256, 512)  # global batch sizes for which dealing is measured, beside the recipe's own


@dataclass(frozen=True)
class PackFacts:
    """The records (step.json) of the pack step, and of the corpus step where it is there; `notes` are one line each."""

    folder: Path
    corpus_folder: Path
    packs: dict[str, Any]
    corpus: dict[str, Any] | None
    dealings: list[Dealing]
    global_batch_size: int  # the recipe's
    notes: list[str]

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of the packs."""
        return self.packs["summary"]

    @property
    def sequence_length(self) -> int:
        """Tokens that a pack has room for."""
        return self.summary["bounds"]["sequence_length"]

    @property
    def ledgers(self) -> dict[str, Path]:
        """Where each sample that was left out is listed."""
        return {"rejected": self.corpus_folder / LEDGER, "overlong": self.folder / OVERLONG}


def read_pack_facts(recipe: Recipe) -> PackFacts:
    """Read the packs `data.packs`, and what their corpus (`data.balanced`, else `data.corpus`) says of its rejects.

    Raises:
        InputError: there are no packs, or they were made by an older version.
        DataError: the pack index is damaged.
    """
    folder, corpus_folder = Path(recipe.data.packs), Path(recipe.data.balanced or recipe.data.corpus)
    index = PackIndex.open(folder)
    packs = read_json(folder / "step.json")
    if "bounds" not in packs.get("summary", {}):
        raise InputError(f"{folder / 'step.json'} is of an older version, it has no bounds: {AGAIN}")
    notes: list[str] = []
    batch = recipe.train.global_batch_size
    return PackFacts(
        folder,
        corpus_folder,
        packs,
        _corpus_record(corpus_folder, index, notes),
        measure_dealings(index, (batch, *BATCHES)),
        batch,
        notes,
    )


def _corpus_record(folder: Path, index: PackIndex, notes: list[str]) -> dict[str, Any] | None:
    """The record of the corpus, or None with a note."""
    if not (folder / "step.json").exists():
        notes.append(f"corpus: missing, {folder} holds no finished step; what it rejected is not known")
        return None
    record: dict[str, Any] = read_json(folder / "step.json")
    made = record["summary"]["fingerprint"]
    if made != index.corpus:
        notes.append(f"corpus: {folder} holds another one ({made[:12]}) than was packed ({index.corpus[:12]}): {AGAIN}")
    return record
