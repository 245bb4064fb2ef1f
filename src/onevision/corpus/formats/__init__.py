"""The importers: what a source can look like (`data.format`), cut into units and read unit by unit.

records     a folder with records.jsonl and the image files that it names
parquet     a folder of Parquet files, as <source>/{EN,CN}/part*/*.parquet: images with captions or conversations
webdataset  a folder of tar files: captions, conversations, or the released packs of captions
llava-json  JSON or JSON lines in LLaVA's layout, and the image files that they name
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

from onevision.corpus.formats import llava, parquet, records, webdataset
from onevision.corpus.formats.unit import Listing, Rejected, Unit
from onevision.corpus.record import Record
from onevision.recipe import DataRecipe

FORMATS: dict[str, ModuleType] = {
    "records": records,
    "parquet": parquet,
    "webdataset": webdataset,
    "llava-json": llava,
}


def list_units(data: DataRecipe) -> Listing:
    """Cut `data.source` into units of about `data.shard_samples` samples.

    Raises:
        InputError: the source is missing or empty, or cannot be read.
    """
    listing: Listing = FORMATS[data.format].list_units(data)
    return listing


def read_unit(data: DataRecipe, unit: Unit) -> Iterator[Record | Rejected]:
    """The records of a unit in their order, or what was wrong with them. Damage ends nothing but what is damaged.

    Raises:
        InputError: a file that was there when the source was listed is gone or cannot be opened.
    """
    found: Iterator[Record | Rejected] = FORMATS[data.format].read_unit(data, unit)
    return found
