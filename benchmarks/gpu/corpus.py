"""What the parity runs learn from: the demo's drawings, imported and packed as any corpus is.

    python -m benchmarks.gpu.corpus SCRATCH [PRESET SEQUENCE_LENGTH SHARE]

makes it ahead, beside the folder SCRATCH of a section, where `corpus_of` finds it: it takes the CPU alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from onevision.corpus.build import build_corpus
from onevision.demo.source import build_source
from onevision.demo.tokenizer import build_tokenizer
from onevision.files import write_json
from onevision.model.presets import PRESETS
from onevision.packing.build import build_packs
from onevision.recipe import recipe_from

# Records of each category: so many that 200 packs of 2,048 tokens see each two or three times. Photographs are left
# out: they depend on what the installed scikit-image ships.
RECORDS = {"digits": 1300, "charts": 300, "tables": 150, "ocr": 350, "counting": 300, "text": 300}
SEED = 0
USUAL = ("140m", 2048, 1.0)  # preset, sequence length, share of the records


def corpus_of(scratch: Path, preset: str, sequence_length: int, share: float) -> dict[str, Any]:
    """As `make_corpus`, or that one if it was made ahead."""
    ready = _ahead(scratch, preset, sequence_length, share) / "data.json"
    if ready.exists():
        values: dict[str, Any] = json.loads(ready.read_text(encoding="utf-8"))
        return values
    return make_corpus(scratch, preset, sequence_length, share)


def make_ahead(scratch: Path, preset: str, sequence_length: int, share: float) -> None:
    """Make the corpus for another section."""
    folder = _ahead(scratch, preset, sequence_length, share)
    write_json(folder / "data.json", make_corpus(folder, preset, sequence_length, share))


def _ahead(scratch: Path, preset: str, sequence_length: int, share: float) -> Path:
    return scratch.absolute().parent / f"corpus-{preset}-{sequence_length}-{share:g}"


def make_corpus(folder: Path, preset: str, sequence_length: int, share: float = 1.0) -> dict[str, Any]:
    """Draw, import and pack the corpus below `folder`; the section `data` of a recipe that reads it."""
    values: dict[str, Any] = {
        "source": str(folder / "source" / "train"),
        "corpus": str(folder / "corpus"),
        "packs": str(folder / "packs"),
        "tokenizer": str(folder / "tokenizer"),
        "sequence_length": sequence_length,
        "max_pixels": 50_176,
        "shard_samples": 1000,
    }
    data = recipe_from({"data": values}).data
    records = {category: max(1, round(share * count)) for category, count in RECORDS.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        build_source(folder / "source", SEED, records, heldout={})
        vocabulary = min(PRESETS[preset].language.vocab_size, 2048)
        build_tokenizer(Path(data.source), Path(data.tokenizer), vocab_size=vocabulary)
        build_corpus(data, Path(data.corpus))
        build_packs(data, Path(data.packs))
    return values


if __name__ == "__main__":
    given = sys.argv[2:]
    make_ahead(Path(sys.argv[1]), *((given[0], int(given[1]), float(given[2])) if given else USUAL))
