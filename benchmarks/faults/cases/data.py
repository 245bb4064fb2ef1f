"""Data that is damaged or goes away: a sample costs itself, an index or a shard ends the run with one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from benchmarks.faults.cases.checkpoints import remove, truncate
from benchmarks.faults.inputs import STEPS, import_and_pack
from benchmarks.faults.job import End
from benchmarks.faults.lab import Case, Place, Repair
from benchmarks.faults.moments import Call, Injection, Moment
from onevision.corpus.reader import CorpusReader
from onevision.errors import DataError, Diverged, InputError
from onevision.training.history import read_metrics

OWN = ("data.corpus={folder}/corpus", "data.packs={folder}/packs")
BAD = (InputError.exit_code, DataError.exit_code)
SHARD = "shard-000001.tar"


def to_nan(call: Call) -> None:
    """Spoil a batch: its pixels, or what a rank without pixels has instead, are no numbers."""
    patches = call.result.patches
    if not len(patches):
        raise ValueError("the batch has no image: choose another step")
    patches.fill_(torch.nan)


def lose(name: str, call: Call) -> None:
    """Remove a shard of the run's corpus."""
    (Path(call.args[0].data.corpus) / name).unlink()


def lose_open(name: str, call: Call) -> None:
    """Remove a shard that the loader has open."""
    (call.args[0].sources.sources[0].corpus.folder / name).unlink()


def cut_open(name: str, call: Call) -> None:
    """Cut a shard that the loader has open."""
    path = call.args[0].sources.sources[0].corpus.folder / name
    with path.open("r+b") as file:
        file.truncate(0)


def cases() -> list[Case]:
    """Samples, shards, indexes, and a batch that spoils the loss."""
    return [*_samples(), *_shards(), *_indexes(), *_batches()]


def _samples() -> list[Case]:
    masked = partial(Case, settings=OWN, check=_masked, curve=False, outcome="finished without the sample")
    return [
        masked("sample damaged", "an image that cannot be decoded", world=_bad_image),
        masked("sample damaged", "bits of an image in a shard", 2, world=partial(_bad_bytes, "image")),
        masked("sample damaged", "bits of a record in a shard", world=partial(_bad_bytes, "text")),
    ]


def _shards() -> list[Case]:
    start = Moment("", "onevision.training.loop:open_run", 0)
    read = Moment("", "onevision.data.loader:PackLoader._batch", number=10)
    line = f"{SHARD} is missing"
    return [
        Case("shard gone", "before the start", 2, BAD, line, settings=OWN, world=partial(_damaged, remove, SHARD)),
        Case(
            "shard gone",
            "before it is opened",
            2,
            BAD,
            f"{SHARD} at byte .* cannot be read: No such file",
            injections={0: [Injection(start, partial(lose, SHARD))]},
            settings=OWN,
            world=_copied,
        ),
        Case(
            "shard gone",
            "while it is read",
            injections={0: [Injection(read, partial(lose_open, SHARD))]},
            settings=OWN,
            world=_copied,
        ),
        Case(
            "shard cut off",
            "before the start",
            1,
            BAD,
            f"{SHARD} has .* bytes",
            settings=OWN,
            world=partial(_damaged, truncate, SHARD),
        ),
        Case(
            "shard cut off",
            "while it is read",
            1,
            BAD,
            "samples could not be used, more than data.reject_threshold",
            injections={0: [Injection(read, partial(cut_open, SHARD))]},
            settings=OWN,
            world=_copied,
        ),
    ]


def _indexes() -> list[Case]:
    found = []
    for folder, names in (("corpus", ("corpus.h5", "part-000001.h5")), ("packs", ("packs.h5", "packs-00000.h5"))):
        for name in names:
            found.append(
                Case(
                    "index cut off",
                    f"{name}, before the start",
                    1,
                    BAD,
                    f"{name}.*(run `make|says)",
                    settings=OWN,
                    world=partial(_damaged, truncate, name, folder=folder),
                )
            )
    return found


def _batches() -> list[Case]:
    fault, bad = "batch of NaN", "step 4: loss is nan"
    spoil = [Injection(Moment("", "onevision.data.staging:Staging.receive", 4, after=True), to_nan)]
    left_out = partial(Case, fault, injections={1: spoil}, curve=False, outcome="finished without the update of step 4")
    return [
        Case(
            fault,
            "train.on_divergence=stop",
            2,
            (Diverged.exit_code,),
            rf"{bad}; its \d+ samples are named in .*bad_steps.jsonl",
            injections={1: spoil},
        ),
        left_out(
            "train.on_divergence=skip",
            2,
            line=f"{bad}: its update is skipped",
            settings=("train.on_divergence=skip",),
            check=partial(_went_on, "skip"),
        ),
        left_out(
            "train.on_divergence=rewind",
            2,
            line=f"{bad}: back to .*step_00000002",
            settings=("train.on_divergence=rewind",),
            check=partial(_went_on, "left out"),
        ),
    ]


@contextmanager
def _copied(place: Place) -> Iterator[Repair]:
    """A corpus and packs that this case may damage; the repair puts back what is missing or changed."""

    def copy() -> None:
        for name in ("corpus", "packs"):
            shutil.copytree(place.inputs / name, place.folder / name, dirs_exist_ok=True)

    copy()
    yield copy


@contextmanager
def _damaged(damage: Callable[[Path], None], name: str, place: Place, folder: str = "corpus") -> Iterator[Repair]:
    with _copied(place) as repair:
        damage(place.folder / folder / name)
        yield repair


@contextmanager
def _bad_image(place: Place) -> Iterator[Repair]:
    """The source has a PNG file that breaks off in its pixels; its header is whole, so that it is imported."""
    source = place.folder / "source" / "train"
    shutil.copytree(place.inputs / "source" / "train", source)
    lines = (source / "records.jsonl").read_text(encoding="utf-8").splitlines()
    image = source / next(names[0] for line in lines if (names := json.loads(line)["images"]))
    image.write_bytes(image.read_bytes()[:-60])
    import_and_pack(place.inputs / "recipe.yaml", source, place.folder)
    yield lambda: None


@contextmanager
def _bad_bytes(what: str, place: Place) -> Iterator[Repair]:
    with _copied(place) as repair:
        reader = CorpusReader(place.folder / "corpus")
        entry = next(entry for entry in reader.entries(range(len(reader))) if entry.images)
        offset, size = entry.text if what == "text" else entry.images[0]
        reader.close()
        with (place.folder / "corpus" / entry.shard).open("r+b") as file:
            file.seek(offset + size // 2)
            byte = file.read(1)[0]
            file.seek(offset + size // 2)
            file.write(bytes([byte ^ 0x55]))
        yield repair


def _masked(place: Place, end: End) -> list[str]:
    rows = read_metrics(place.run)
    problems = [] if len(rows) == STEPS else [f"{len(rows)} rows instead of {STEPS}"]
    if not any(row["skipped"] for row in rows):
        problems.append("no sample was skipped")
    if any(row["skipped"] > 1 for row in rows):
        problems.append("more than one sample of a step was skipped")
    if not any("is not learned from" in log for log in end.logs):
        problems.append("the log does not name the sample")
    return problems


def _went_on(action: str, place: Place, end: End) -> list[str]:
    rows = read_metrics(place.run)
    bad = {row["step"]: row["action"] for row in rows if "bad" in row}
    problems = [] if bad == {4: action} else [f"bad steps: {bad}"]
    if [row["step"] for row in rows] != list(range(1, STEPS + 1)):
        problems.append(f"steps {[row['step'] for row in rows]}")
    return problems
