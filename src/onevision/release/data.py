"""Manifests of the data that a chain of runs read: what each folder held, without the data itself.

    data/NAME/step.json       the record of the step that made the folder, and lineage.json where there is one
    data/NAME/manifest.json   of a corpus or a selection, from its index: licences, sources, categories, languages and
                              shards

A shard has two digests. `content` is the xxh3-128 of the 64-bit content hashes (corpus.h5) of its samples in the
corpus' order: of what they are, not of the file; it costs nothing at any size. `sha256` is that of the tar file, which
has to be read for it.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from onevision.corpus.index import CorpusIndex
from onevision.data.sources import by_source, entries_of
from onevision.errors import DataError, InputError, OneVisionError
from onevision.files import read_record
from onevision.release.chain import ChainRun, read_lineage, shown
from onevision.release.manifest import sha256_all

AUTO_BYTES = 10_000_000_000  # shards below that are hashed without being asked: half a minute
SHARDS = ("auto", "yes", "no")


@dataclass
class DataFolder:
    """A folder that a step of the data made. `used` says what read it: {folder in the bundle: the name
    among its inputs}."""

    name: str  # in the bundle, below data/
    kind: str  # corpus, selection, packs, concepts, vocabulary, heldout
    folder: Path
    fingerprint: str
    record: dict[str, Any]  # step.json
    shards: str = ""  # where they lie, if not where corpus.h5 says
    used: dict[str, str] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)  # of a corpus

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of the step."""
        summary: dict[str, Any] = self.record["summary"]
        return summary


@dataclass
class FoundData:
    """The folders, and a line for each that holds something else by now, or nothing."""

    folders: list[DataFolder] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, folder: str, fingerprint: str, used_by: str, used_as: str, shards: str = "") -> None:
        """Take a folder, if it holds what was used: `fingerprint`, or anything where that is not known ("")."""
        path = Path(folder)
        known = next((one for one in self.folders if one.folder.resolve() == path.resolve()), None)
        if known is None:
            try:
                known = _read(kind, path, shards, {one.name for one in self.folders})
            except OneVisionError as error:
                self.notes.append(f"{used_by}: its {used_as} {fingerprint} is not recorded: {error}")
                return
        if fingerprint and known.fingerprint != fingerprint:
            self.notes.append(
                f"{used_by}: its {used_as} {fingerprint} is not recorded: {shown(path)} holds {known.fingerprint} now"
            )
            return
        if known not in self.folders:
            self.folders.append(known)
        known.used[used_by] = used_as


def find_data(runs: list[ChainRun], heldout: tuple[str, str] | None) -> FoundData:
    """The data of a chain of runs; `heldout` are folder and fingerprint of the questions of an evaluation."""
    found = FoundData()
    for run in runs:
        data, inputs = run.recipe.data, read_lineage(run.folder).get("inputs", {})
        entries = entries_of(data)
        corpora = by_source("corpus", [entry.corpus for entry in entries])
        packs = by_source("packs", [entry.packs for entry in entries])
        user = f"runs/{run.name}"
        kind = "selection" if data.balanced and not data.mixture else "corpus"
        for (corpus_key, corpus), (packs_key, pack), entry in zip(corpora.items(), packs.items(), entries, strict=True):
            if corpus_key in inputs:
                found.add(kind, corpus, inputs[corpus_key], user, corpus_key, entry.shards)
            if packs_key in inputs:
                found.add("packs", pack, inputs[packs_key], user, packs_key)
        if kind == "selection" and "corpus" in inputs:
            _add_origin(found, run, data.balanced)
    if heldout is not None:
        found.add("heldout", heldout[0], heldout[1], "evaluation", "corpus")
    return found


def _add_origin(found: FoundData, run: ChainRun, balanced: str) -> None:
    """What a selection was drawn from."""
    selection = next((one for one in found.folders if one.folder == Path(balanced)), None)
    if selection is None:
        return
    inputs, concepts, user = selection.record.get("inputs", {}), run.recipe.concepts, f"data/{selection.name}"
    found.add("corpus", run.recipe.data.corpus, inputs.get("corpus", ""), user, "corpus", run.recipe.data.shards)
    found.add("concepts", concepts.index, inputs.get("concepts", ""), user, "concepts")
    index = next((one for one in found.folders if one.folder == Path(concepts.index)), None)
    if index is not None:
        vocabulary = index.record.get("inputs", {}).get("vocabulary", "")
        found.add("vocabulary", concepts.vocabulary, vocabulary, f"data/{index.name}", "vocabulary")


def _read(kind: str, folder: Path, shards: str, taken: set[str]) -> DataFolder:
    if not (folder / "step.json").exists():
        raise InputError(f"{shown(folder)} holds no finished step")
    record = read_record(folder / "step.json", summary=dict)
    fingerprint = record["summary"].get("fingerprint")
    if not isinstance(fingerprint, str):
        raise InputError(f"{folder / 'step.json'} has no fingerprint")
    base = folder.resolve().name
    name = next(own for own in (base, *(f"{base}-{number}" for number in range(2, 999))) if own not in taken)
    return DataFolder(name, kind, folder, fingerprint, record, shards)


def describe(data: DataFolder, hashed: str, known: dict[Path, str]) -> dict[str, Any]:
    """manifest.json of a corpus or a selection. `hashed` is one of `SHARDS`: whether tar files are read for their
    SHA-256; those of `known` are not read again, and it takes the others (a selection has the shards of its corpus).

    Raises:
        InputError, DataError: the index is not readable, or a shard that is to be read is not there.
    """
    index = CorpusIndex.open(data.folder, check_shards=False)
    if index.fingerprint != data.fingerprint:
        raise DataError(f"{index.path} has fingerprint {index.fingerprint}, its step.json {data.fingerprint}")
    summary = data.summary
    return {
        "kind": data.kind,
        "folder": shown(data.folder),
        "fingerprint": index.fingerprint,
        "samples": len(index),
        "images": summary["images"],
        "text_tokens": summary["text_tokens"],
        "vision_tokens": summary["vision_tokens"],
        "rejected": summary["rejected"],
        "rejects_by_reason": summary["rejects_by_reason"],
        "licences": _counted(index.license, index.licenses),
        "sources": _counted(index.source, index.sources),
        "sources_by_licence": _pairs(index),
        "categories": _counted(index.category, index.categories),
        "languages": _counted(index.language, index.languages),
        "tokenizer": index.tokenizer,
        "template": index.template,
        "min_pixels": index.min_pixels,
        "max_pixels": index.max_pixels,
        "shard_folder": data.shards or shown(index.shard_path),
        "shards": _shards(index, data.shards, hashed, known),
    }


def _counted(numbers: NDArray[np.int16], names: tuple[str, ...]) -> dict[str, int]:
    counts = np.bincount(numbers, minlength=len(names)).tolist()
    return dict(sorted(zip(names, counts, strict=True), key=lambda item: (-item[1], item[0])))


def _pairs(index: CorpusIndex) -> dict[str, dict[str, int]]:
    """Samples of each source under each licence, the most frequent first."""
    both = index.license.astype(np.int64) * len(index.sources) + index.source
    values, counts = np.unique(both, return_counts=True)
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for value, count in sorted(zip(values.tolist(), counts.tolist(), strict=True), key=lambda item: -item[1]):
        licence, source = divmod(value, len(index.sources))
        found[index.licenses[licence]][index.sources[source]] = count
    return dict(found)


def _shards(index: CorpusIndex, elsewhere: str, hashed: str, known: dict[Path, str]) -> list[dict[str, Any]]:
    states = [xxhash.xxh3_128() for _ in index.shards]
    samples = np.zeros(len(index.shards), np.int64)
    for shard, content in zip(index.shard.pieces, index.content_hash.pieces, strict=True):
        for number in np.unique(shard).tolist():  # a part has the samples of one shard
            own = content[shard == number]
            states[number].update(own.astype("<u8").tobytes())
            samples[number] += len(own)
    sizes = {name: int(size) for name, size in zip(index.shards, index.shard_bytes, strict=True)}
    folder = Path(elsewhere) if elsewhere else index.shard_path
    local = "://" not in elsewhere
    if hashed == "yes" and not local:
        raise InputError(f"shards=yes reads tar files on this disk, and those of {index.path} lie at {elsewhere}")
    if local and (hashed == "yes" or (hashed == "auto" and sum(sizes.values()) <= AUTO_BYTES)):
        new = {name: size for name, size in sizes.items() if (folder / name).resolve() not in known}
        for name, digest in (sha256_all(folder, new, "shards") if new else {}).items():
            if isinstance(digest, OSError):
                raise DataError(f"{folder / name} cannot be read: {digest.strerror or digest}; shards=no leaves it out")
            known[(folder / name).resolve()] = digest
    rows = []
    for number, (name, size) in enumerate(sizes.items()):
        found = known.get((folder / name).resolve()) if local and hashed != "no" else None
        rows.append(
            {"name": name, "bytes": size, "samples": int(samples[number]), "content": states[number].hexdigest()}
            | ({"sha256": found} if found else {})
        )
    return rows
