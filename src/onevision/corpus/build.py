"""The corpus step: a records folder into tar shards, `corpus.h5` and a ledger of what was rejected."""

from __future__ import annotations

import json
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from onevision.corpus.index import FILE, FORMAT_VERSION, IMAGES, SAMPLES, TABLES, CorpusIndex, write_index
from onevision.corpus.reader import content_hash
from onevision.corpus.record import Record, Reject, record_fields
from onevision.corpus.shards import ShardWriter
from onevision.corpus.source import Rejected, read_records, source_digest
from onevision.data.image import MERGE, ImageError, ImageHeader, decode_image, image_header, patch_grid
from onevision.data.template import TEMPLATE_FINGERPRINT, text_token_count
from onevision.data.tokenizer import Tokenizer, load_tokenizer
from onevision.errors import DataError, InputError
from onevision.progress import Progress
from onevision.recipe import DataRecipe
from onevision.steps import StepResult, forget, run_step

LEDGER = "rejects.parquet"
MAX_NAMES = 32_767  # categories, languages, sources, licenses: their numbers are 16-bit


def build_corpus(
    data: DataRecipe, output: str | Path, rank: int = 0, world_size: int = 1, report: Callable[[str], None] = print
) -> StepResult:
    """Import `data.source` into the corpus folder `output`; nothing is done when it already holds the same.

    Samples keep the order of their lines and image files their bytes. Lengths come from the image headers and the
    tokenizer. `report` gets one line about the result.

    Raises:
        InputError: the source or the tokenizer is missing, or more than one rank was asked for.
        DataError: more records than `data.reject_threshold` allows were rejected, or none is left.
        StorageError: the disk is full.
    """
    output = Path(output)
    if (rank, world_size) != (0, 1):
        raise InputError(f"the corpus step runs as one process, not as rank {rank} of {world_size}")
    tokenizer = load_tokenizer(data.tokenizer)
    digest, records = source_digest(data.source)
    inputs = {
        "source": digest,
        "tokenizer": tokenizer.fingerprint,
        "template": TEMPLATE_FINGERPRINT,
        "min_pixels": data.min_pixels,
        "max_pixels": data.max_pixels,
        "shard_samples": data.shard_samples,
        "verify_images": data.verify_images,
        "reject_threshold": data.reject_threshold,
        "format_version": FORMAT_VERSION,
    }
    _forget_damaged(output, report)
    result = run_step("corpus", output, inputs, lambda folder: _build(data, tokenizer, records, folder, output))
    _kept_ledger(output).unlink(missing_ok=True)
    summary = result.summary
    report(
        f"corpus {output}: {summary['samples']:,} samples in {summary['shards']} shards, "
        f"{summary['text_tokens'] + summary['vision_tokens']:,} tokens, "
        f"{summary['rejected']} rejected{_reasons(summary['rejects_by_reason'], ': ')}"
        + (" (unchanged)" if result.skipped else "")
    )
    return result


class _Columns:
    """The columns of `corpus.h5` as they grow."""

    def __init__(self) -> None:
        self.ids: list[bytes] = []
        self.samples = {name: array("Q" if name == "content_hash" else "q") for name in SAMPLES}
        self.image_start = array("q", [0])
        self.images = {name: array("q") for name in IMAGES}
        self.tables: dict[str, dict[str, int]] = {name: {} for name in TABLES}

    def number(self, table: str, value: str) -> int:
        """The number of a name in its table, which it enters when it is new."""
        names = self.tables[table]
        if value not in names and len(names) == MAX_NAMES:
            raise DataError(f"the records name more than {MAX_NAMES:,} different values of {table!r}")
        return names.setdefault(value, len(names))

    def add(
        self,
        record: Record,
        text: bytes,
        headers: list[ImageHeader],
        tokens: tuple[int, int],
        shard: int,
        offsets: list[int],
    ) -> None:
        """Append a sample; `tokens` are its text and vision tokens, `offsets` those of its JSON and its images."""
        row = {
            "shard": shard,
            "json_offset": offsets[0],
            "json_size": len(text),
            "text_tokens": tokens[0],
            "vision_tokens": tokens[1],
            "content_hash": content_hash(text, record.images),
        }
        row |= {table: self.number(table, getattr(record, table)) for table in TABLES}
        self.ids.append(record.id.encode())
        for name, value in row.items():
            self.samples[name].append(value)
        for header, image, offset in zip(headers, record.images, offsets[1:], strict=True):
            place = {"offset": offset, "size": len(image), "width": header.width, "height": header.height}
            for name, value in place.items():
                self.images[name].append(value)
        self.image_start.append(len(self.images["offset"]))


def _build(data: DataRecipe, tokenizer: Tokenizer, records: int, folder: Path, output: Path) -> dict[str, Any]:
    columns = _Columns()
    rejects: list[Rejected] = []
    seen: set[str] = set()
    with Progress("corpus", total=records) as progress, ShardWriter(folder, data.shard_samples) as shards:
        for item in read_records(data.source):
            if isinstance(item, Record):
                try:
                    _import(item, data, tokenizer, seen, columns, shards)
                except Reject as error:
                    item = Rejected(item.id, error.reason, error.detail)
            if isinstance(item, Rejected):
                rejects.append(item)
            progress.advance(1, f"{len(rejects)} rejected")
    _write_ledger(folder / LEDGER, rejects)
    by_reason = dict(sorted(Counter(reject.reason for reject in rejects).items()))
    _check_share(data, len(columns.ids), by_reason, folder / LEDGER, _kept_ledger(output))
    fingerprint = write_index(
        folder / FILE,
        columns.ids,
        columns.samples,
        columns.image_start,
        columns.images,
        {name: list(names) for name, names in columns.tables.items()},
        list(zip(shards.names, shards.sizes, strict=True)),
        {
            "tokenizer": tokenizer.fingerprint,
            "template": TEMPLATE_FINGERPRINT,
            "min_pixels": data.min_pixels,
            "max_pixels": data.max_pixels,
        },
    )
    return _summary(columns, by_reason, len(shards.names), fingerprint)


def _import(
    record: Record, data: DataRecipe, tokenizer: Tokenizer, seen: set[str], columns: _Columns, shards: ShardWriter
) -> None:
    if record.id in seen:
        raise Reject("duplicate_id", "an earlier record has this id")
    headers, vision_tokens = _measure(record.images, data)
    seen.add(record.id)
    text = json.dumps(record_fields(record), ensure_ascii=False, separators=(",", ":")).encode()
    names = [f"{k}.{header.suffix}" for k, header in enumerate(headers)]
    places = shards.add({"json": text, **dict(zip(names, record.images, strict=True))})
    offsets = [places[name] for name in ("json", *names)]
    tokens = (text_token_count(record, tokenizer), vision_tokens)
    columns.add(record, text, headers, tokens, len(shards.names) - 1, offsets)


def _measure(images: Iterable[bytes], data: DataRecipe) -> tuple[list[ImageHeader], int]:
    """Headers of the images, and their vision tokens."""
    headers = []
    vision_tokens = 0
    for k, image in enumerate(images):
        try:
            header = image_header(image)
            rows, patch_columns = patch_grid(header.width, header.height, data.min_pixels, data.max_pixels)
            if data.verify_images:
                decode_image(image)
        except ImageError as error:
            raise Reject(error.reason, f"image {k}: {error.detail}") from None
        headers.append(header)
        vision_tokens += rows * patch_columns // MERGE**2
    return headers, vision_tokens


def _write_ledger(path: Path, rejects: list[Rejected]) -> None:
    columns = {name: [getattr(reject, name) for reject in rejects] for name in ("id", "reason", "detail")}
    pq.write_table(pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns])), path)


def _kept_ledger(output: Path) -> Path:
    """Where the ledger of a failed step is kept."""
    return output.with_name(f"{output.name}.{LEDGER}")


def _check_share(data: DataRecipe, samples: int, by_reason: dict[str, int], ledger: Path, kept: Path) -> None:
    rejected = sum(by_reason.values())
    total = samples + rejected
    if samples and rejected <= data.reject_threshold * total:
        return
    if not total:
        raise DataError(f"{data.source} holds no records")
    shutil.copyfile(ledger, kept)
    raise DataError(
        f"{data.source}: {rejected} of {total} records rejected ({rejected / total:.1%}, data.reject_threshold="
        f"{data.reject_threshold}){_reasons(by_reason, ': ')}; each one is listed in {kept}"
    )


def _reasons(by_reason: dict[str, int], before: str) -> str:
    return before + ", ".join(f"{count} {reason}" for reason, count in by_reason.items()) if by_reason else ""


def _summary(columns: _Columns, by_reason: dict[str, int], shards: int, fingerprint: str) -> dict[str, Any]:
    categories = list(columns.tables["category"])
    samples_by_category = dict.fromkeys(categories, 0)
    tokens_per_category = dict.fromkeys(categories, 0)
    text, vision = columns.samples["text_tokens"], columns.samples["vision_tokens"]
    for number, text_tokens, vision_tokens in zip(columns.samples["category"], text, vision, strict=True):
        samples_by_category[categories[number]] += 1
        tokens_per_category[categories[number]] += text_tokens + vision_tokens
    return {
        "samples": len(columns.ids),
        "rejected": sum(by_reason.values()),
        "rejects_by_reason": by_reason,
        "shards": shards,
        "images": len(columns.images["offset"]),
        "text_tokens": sum(text),
        "vision_tokens": sum(vision),
        "samples_by_category": samples_by_category,
        "tokens_per_category": tokens_per_category,
        "fingerprint": fingerprint,
    }


def _forget_damaged(output: Path, report: Callable[[str], None]) -> None:
    """Make the step run again when its output no longer is what it wrote."""
    if not (output / "step.json").exists():
        return
    try:
        CorpusIndex.open(output)
    except (DataError, InputError) as error:
        report(f"the corpus is built again: {error}")
        forget(output)
