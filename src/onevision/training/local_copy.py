"""Copies of the training state on storage of the node itself (/dev/shm, an NVMe disk), for a fast restart.

Every rank writes what it holds, as it holds it: no rank waits for a shared file system, and a start that follows on the
same nodes goes on from `checkpoint.local_interval` steps ago at most. A copy fits one layout, the one that wrote it. It
is no checkpoint: it is lost with its node, and gone when the run is finished.

    checkpoint.local/run.json                        whose copies these are
    checkpoint.local/rank_00003/run.json             the same, with the claim of the newest start with that rank here
    checkpoint.local/rank_00003/step_00000040.pt     the state, by torch.save; read with weights_only
    checkpoint.local/rank_00003/step_00000040.json   step, start, layout, size and digest: with it the copy is whole

`start` names the first of the starts that computed the steps up to the copy without going back between. The run folder
has it too (local_copies.json): a start that goes on from a checkpoint writes a new one before it computes the steps
behind it again, so that copies of a history that is no longer the run's are not used, on whatever node they wait.
"""

from __future__ import annotations

import os
import platform
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from onevision.errors import InputError, OneVisionError, StorageError
from onevision.files import full_disk, read_json, read_record, storage_errors, write_json
from onevision.fingerprint import file_digest
from onevision.recipe import Recipe
from onevision.training.agreement import agreed, all_ranks, everyone, of_first_rank
from onevision.training.local_state import layout
from onevision.training.run import run_id

KEEP = 2
OWNER = "run.json"
HISTORY = "local_copies.json"
Copy = tuple[int, str]  # step, start


def discard(recipe: Recipe, run: Path) -> None:
    """The run is finished: remove its copies on this node, if there are any. Raises nothing: they are of no use, and
    the folder may be another run's by now."""
    folder = _folder(recipe)
    with suppress(OneVisionError, OSError):
        (run / HISTORY).unlink(missing_ok=True)
        if read_record(folder / OWNER, id=str)["id"] == _number(run):
            shutil.rmtree(folder, ignore_errors=True)


def let_go(run: Path) -> None:
    """A start without local copies, on rank 0: those of earlier starts are of no use from now on."""
    (run / HISTORY).unlink(missing_ok=True)


class LocalCopies:
    """This rank's copies. All ranks make the same calls in the same order; what fails on one is raised on all."""

    def __init__(self, recipe: Recipe, run: Path) -> None:
        """Open the folder that the recipe names, for the run in `run`, and remove from it what is of ranks that are not
        on this node any more.

        Raises:
            InputError: the folder holds the copies of another run, is another user's, or cannot be made.
            StorageError: there is no room.
        """
        self.folder = _folder(recipe)
        self.layout = layout(recipe)
        self._history = run / HISTORY
        self._own = self.folder / f"rank_{dist.get_rank():05d}"
        self._start = ""  # until `newest` has decided
        number = agreed(lambda: _number(run))  # file systems may show an older run.json to others than rank 0
        claim = of_first_rank(secrets.token_hex(8))
        everyone(lambda: self._claim({"run": str(run.absolute()), "id": number, "claim": claim}))
        self._sweep(claim)

    def newest(self, after: int) -> Path | None:
        """This rank's part of the newest copy that all ranks have whole, of a step later than `after`, the step of the
        newest checkpoint, and of the run's history. Rank 0 says why one that is newer is not used. What is of no use is
        removed. To be called once, before anything is computed or written.

        Raises:
            StorageError: a disk is full, or a copy cannot be removed.
        """
        self._start = of_first_rank(self._written_start())
        mine, reason = self._whole(after)
        found = all_ranks((set(mine), reason))
        common = set.intersection(*(copies for copies, _ in found))
        reasons = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(found) if text]
        chosen = None
        for copy in sorted(common, reverse=True):
            wrong = [text for text in all_ranks(_damage(mine[copy])) if text]
            if not wrong:
                chosen = copy
                break
            reasons += wrong
        if chosen is None and not reasons and any(copies for copies, _ in found):
            reasons = [_difference([copies for copies, _ in found])]
        if reasons and dist.get_rank() == 0:
            instead = f"those of step {chosen[0]}" if chosen else f"the checkpoint of step {after}" if after else "none"
            print(f"local copies in {self.folder}: {reasons[0]}; {instead} used", flush=True)
        if chosen is None:
            self.forget()
            return None
        everyone(lambda: self._remove_but(chosen[0]))
        return mine[chosen]

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write this rank's state after `step`; the newest two are kept. There are never more: all ranks have the one
        before, as its `save` ended well, when they remove the one before that and write this one.

        Raises:
            StorageError: there is no room on some rank's node.
        """
        everyone(lambda: self._write(step, state))

    def forget(self) -> None:
        """Steps that were done are done again, maybe another way: what there is belongs to a future that does not come.
        To be called before anything of that future is dropped from the run folder.

        Raises:
            StorageError: a disk is full, or a copy cannot be removed.
        """
        start = secrets.token_hex(8)
        first = dist.get_rank() == 0
        agreed(lambda: write_json(self._history, {"start": start}) if first else None)
        self._start = of_first_rank(start)
        everyone(lambda: self._remove_but(None))

    def _claim(self, record: dict[str, str]) -> None:
        """Make the folder this run's, and this rank's part of it this start's.

        Raises:
            InputError, StorageError: what keeps it from being so.
        """
        owner = self.folder / OWNER
        mine = self.folder / f".{self._own.name}.{record['claim']}"
        where = f"checkpoint.local={self.folder} on {platform.node()}"
        try:
            with storage_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                if self.folder.stat().st_uid != os.getuid():
                    raise InputError(f"{where} belongs to another user: choose another folder")
                try:
                    write_json(mine, record)
                    with suppress(FileExistsError):
                        os.link(mine, owner)  # whole, and only one can be first
                    known = read_record(owner, run=str, id=str)
                    if known["id"] != record["id"]:
                        raise InputError(
                            f"{where} holds local copies of run {known['run']}: choose another folder, or remove it if "
                            "they are not needed"
                        )
                    self._own.mkdir(exist_ok=True, mode=0o700)
                    mine.replace(self._own / OWNER)
                finally:
                    mine.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{where} cannot be used: {error.strerror}; choose another folder") from None

    def _sweep(self, claim: str) -> None:
        """Remove the copies of ranks that this start has not here: of a start with more ranks, or with others here."""
        for folder in self.folder.glob("rank_*"):
            try:
                known = read_record(folder / OWNER).get("claim")
            except InputError:  # a part that this start has claimed is readable
                known = None
            if known != claim:
                shutil.rmtree(folder, ignore_errors=True)  # others of this node do the same

    def _written_start(self) -> str:
        """The start that copies must be of; empty where there is none, or it is not known: none is of it then."""
        try:
            return str(read_record(self._history, start=str)["start"])
        except InputError:
            return ""

    def _whole(self, after: int) -> tuple[dict[Copy, Path], str]:
        """Copies by step and start that seem whole, and what is wrong with the newest that is of no use."""
        found, reason = {}, ""
        for record in sorted(self._own.glob("step_*.json")):
            try:
                about = read_json(record)
                step, start = int(about["step"]), str(about["start"])
                path = record.with_suffix(".pt")
                if step <= after:
                    continue
                if start != self._start:
                    reason = f"that of step {step} is of steps that were done again since"
                elif about["layout"] != self.layout:
                    reason = f"that of step {step} is of another layout or version: {about['layout']}"
                elif not path.exists() or path.stat().st_size != about["bytes"]:
                    reason = f"{path} is missing or has another size than it was written with"
                else:
                    found[step, start] = path
            except (InputError, OSError, KeyError, TypeError, ValueError, AttributeError):
                reason = f"{record} is damaged"
        return found, reason

    def _write(self, step: int, state: dict[str, Any]) -> None:
        path = self._own / f"step_{step:08d}.pt"
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with storage_errors(path):
                for old in sorted(self._own.glob("step_*.json"))[: 1 - KEEP]:
                    old.unlink(missing_ok=True)
                    old.with_suffix(".pt").unlink(missing_ok=True)
                needed, free = _bytes(state), shutil.disk_usage(self._own).free
                if needed > free:
                    raise StorageError(f"{needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free")
                with temporary.open("wb") as file:
                    torch.save(state, file)
                digest = file_digest(temporary)
                temporary.replace(path)
                about = {"step": step, "start": self._start, "layout": self.layout}
                about |= {"bytes": path.stat().st_size, "digest": digest}
                write_json(path.with_suffix(".json"), about)
        except (OSError, RuntimeError, OneVisionError) as error:  # torch answers a failed write with a RuntimeError
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            full = full_disk(error)
            reason = full.strerror if full is not None else str(error).splitlines()[0]
            raise StorageError(
                f"local copy {path} could not be written: {reason}; checkpoints are untouched: make room, or set "
                "checkpoint.local to another folder, or to nothing"
            ) from None

    def _remove_but(self, step: int | None) -> None:
        keep = {OWNER} | {f"step_{step:08d}{suffix}" for suffix in (".pt", ".json") if step is not None}
        try:
            for path in self._own.iterdir():
                if path.name not in keep:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{error.filename} of local copies cannot be removed: {error.strerror}; remove it, or set "
                "checkpoint.local to another folder, or to nothing"
            ) from None


def _folder(recipe: Recipe) -> Path:
    return Path(recipe.checkpoint.local).absolute()


def _number(run: Path) -> str:
    """What tells the run from others, those that were in its folder before included."""
    return run_id(run) or str(run.absolute())


def _damage(path: Path) -> str:
    """What is wrong with the content of a copy; empty if it is what was written."""
    try:
        written = read_record(path.with_suffix(".json"), digest=str)["digest"]
        altered = file_digest(path) != written
    except (OneVisionError, OSError) as error:
        return f"{path} cannot be read: {error}"
    return f"{path} was altered: its digest is not that of its record" if altered else ""


def _difference(found: list[set[Copy]]) -> str:
    """Which copies the ranks have, when none of the same step and start is common to all."""
    steps = [", ".join(str(step) for step, _ in sorted(copies)) or "none" for copies in found]
    shown = "; ".join(f"rank {rank}: {text}" for rank, text in list(enumerate(steps))[:8])
    return f"the ranks have none of the same step and start ({shown})"


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0
