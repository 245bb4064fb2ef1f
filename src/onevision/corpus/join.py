"""The parts of a corpus become one: duplicates are left out, `corpus.h5` shows the parts as one, rejects are listed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from onevision.corpus.index import SAMPLES, TABLES, IndexWriter
from onevision.corpus.part import number_of, part_column, part_name, shard_name, without_rows
from onevision.fingerprint import value_digest

LEDGER = "rejects.parquet"


def join_parts(
    folder: Path, known: Sequence[Mapping[str, Any]], attributes: Mapping[str, str | int], shard_folder: str = ""
) -> dict[str, Any]:
    """Make one corpus of the parts in `folder`; `known` is what `build_part` returned of each, `shard_folder` is as in
    `corpus.h5`.

    May be interrupted and done again.

    Returns:
        The summary: samples, rejected, rejects_by_reason, shards, images, text_tokens, vision_tokens,
        samples_by_category, tokens_per_category, source (digest of all that was read), fingerprint.
    """
    parts = [folder / part_name(k) for k in range(len(known))]
    drop_duplicates(parts)
    by_reason = _write_ledger(folder / LEDGER, parts)
    totals: Counter[str] = Counter()
    tables: dict[str, dict[str, int]] = {name: {} for name in TABLES}
    by_category = np.zeros((0, 2), np.int64)  # samples and tokens
    writer = IndexWriter()
    for part in parts:
        with h5py.File(part, "r") as file:
            samples = {name: file[f"samples/{name}"][()] for name in ("id_hash", "image_count", *SAMPLES)}
            numbers = {name: _global_numbers(file, name, tables[name]) for name in TABLES}
            images = {name: values[()] for name, values in file["images"].items()}
        writer.add(samples, numbers, images)
        lengths = samples["text_tokens"].astype(np.int64) + samples["vision_tokens"]
        totals.update(
            samples=len(lengths),
            images=int(samples["image_count"].sum()),
            text_tokens=int(samples["text_tokens"].sum()),
            vision_tokens=int(samples["vision_tokens"].sum()),
        )
        by_category = np.pad(by_category, ((0, len(tables["category"]) - len(by_category)), (0, 0)))
        np.add.at(by_category, numbers["category"], np.stack([np.ones_like(lengths), lengths], axis=-1))
    shards = [(shard_name(k), int(row["shard_bytes"])) for k, row in enumerate(known)]
    names = {name: list(table) for name, table in tables.items()}
    fingerprint = writer.write(folder, [part.name for part in parts], names, shards, attributes, shard_folder)
    counts = dict.fromkeys(("samples", "images", "text_tokens", "vision_tokens"), 0) | totals
    return {
        "samples": counts["samples"],
        "rejected": sum(by_reason.values()),
        "rejects_by_reason": by_reason,
        "shards": len(shards),
        "images": counts["images"],
        "text_tokens": counts["text_tokens"],
        "vision_tokens": counts["vision_tokens"],
        "samples_by_category": dict(zip(names["category"], by_category[:, 0].tolist(), strict=True)),
        "tokens_per_category": dict(zip(names["category"], by_category[:, 1].tolist(), strict=True)),
        "source": value_digest([row["source"] for row in known]),
        "fingerprint": fingerprint,
    }


def drop_duplicates(parts: Sequence[Path]) -> None:
    """Of samples with the same id in different parts keep the first; the others move to the rejects of their part.

    Their bytes stay in the shards. Holds 8 bytes a sample in memory: equal hashes are looked for first, then ids.
    """
    hashes = [part_column(part, "id_hash") for part in parts]
    ordered = np.sort(np.concatenate([*hashes, np.empty(0, np.uint64)]))
    suspects = ordered[1:][ordered[1:] == ordered[:-1]]
    del ordered
    if not len(suspects):
        return
    seen: set[bytes] = set()
    for part, values in zip(parts, hashes, strict=True):
        rows = np.flatnonzero(np.isin(values, suspects))
        if not len(rows):
            continue
        with h5py.File(part, "r") as file:
            ids = file["samples/id"][rows].tolist()
        dropped = [row for row, name in zip(rows.tolist(), ids, strict=True) if name in seen]
        seen.update(ids)
        if dropped:
            without_rows(part, np.array(dropped), "duplicate_id", "a record of an earlier unit has this id")


def _global_numbers(file: h5py.File, name: str, table: dict[str, int]) -> NDArray[np.int16]:
    """A part's numbers of a table, as numbers of the corpus' table, which takes what is new."""
    own = [value.decode() for value in file[f"tables/{name}"][()].tolist()]
    numbers = file[f"samples/{name}"][()]
    used = dict.fromkeys(numbers.tolist())  # in the order of the samples; a dropped duplicate names nothing
    found = np.zeros(len(own), np.int16)
    for number in used:
        found[number] = number_of(table, name, own[number])
    return found[numbers]


def _write_ledger(path: Path, parts: Sequence[Path]) -> dict[str, int]:
    """Write the rejects of all parts; returns how many there are of each reason."""
    schema = pa.schema([(name, pa.string()) for name in ("id", "reason", "detail", "unit")])
    by_reason: Counter[str] = Counter()
    with pq.ParquetWriter(path, schema) as writer:
        for rows in _rejects(parts):
            by_reason.update(row["reason"] for row in rows)
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return dict(sorted(by_reason.items()))


def _rejects(parts: Sequence[Path]) -> Iterator[list[dict[str, str]]]:
    for part in parts:
        with h5py.File(part, "r") as file:
            unit, lines = str(file.attrs["unit"]), file["rejects"][()].tobytes()
        if lines:
            yield [json.loads(line) | {"unit": unit} for line in lines.splitlines()]
