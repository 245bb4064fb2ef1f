"""Copies of the training state on storage of the node itself (/dev/shm, an NVMe disk), for a fast restart.

Every rank writes what it holds, as it holds it: no rank waits for a shared file system, and a start that follows on the
same nodes goes on from `checkpoint.local_interval` steps ago at most. A copy fits one layout, the one that wrote it. It
is no checkpoint: it is lost with its node, and gone when the run is finished.

    checkpoint.local/run.json                        whose copies these are
    checkpoint.local/rank_00003/step_00000040.pt     the state, by torch.save; read with weights_only
    checkpoint.local/rank_00003/step_00000040.json   step, start, layout, size and digest: with it the copy is whole

`start` is of the process that wrote it: copies of one step and of one start belong together.
"""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from onevision.errors import InputError, StorageError
from onevision.files import full_disk, read_json, storage_errors, write_json
from onevision.fingerprint import file_digest
from onevision.recipe import Recipe
from onevision.training.agreement import all_ranks
from onevision.training.local_state import layout
from onevision.training.run import run_id

KEEP = 2
OWNER = "run.json"
Copy = tuple[int, str]  # step, start


class LocalCopies:
    """This rank's copies. All ranks make the same calls in the same order."""

    def __init__(self, recipe: Recipe, run: Path) -> None:
        """Open the folder that the recipe names, for the run in `run`.

        Raises:
            InputError: the folder holds the copies of another run, or is another user's.
        """
        self.folder = Path(recipe.checkpoint.local).absolute()
        self.layout = layout(recipe)
        self._own = self.folder / f"rank_{dist.get_rank():05d}"
        self._start = all_ranks(secrets.token_hex(8))[0]
        problems = [text for text in all_ranks(self._claim(run)) if text]
        if problems:
            raise InputError(problems[0])

    def newest(self, after: int) -> Path | None:
        """This rank's part of the newest copy that all ranks have whole, of a step later than `after`: the step of the
        newest checkpoint. Rank 0 says why one that is newer is not used. What is of no use is removed."""
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
        self._remove_but(set() if chosen is None else {chosen[0]})
        return None if chosen is None else mine[chosen]

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write this rank's state after `step`; the newest two are kept.

        Raises:
            StorageError: there is no room on some rank's node.
        """
        path = self._own / f"step_{step:08d}.pt"
        problems = [text for text in all_ranks(self._write(path, step, state)) if text]
        if problems:
            raise StorageError(problems[0])
        for old in sorted(self._own.glob("step_*.json"))[:-KEEP]:
            old.unlink()
            old.with_suffix(".pt").unlink()

    def forget(self) -> None:
        """Steps that were done are done again, another way: what there is belongs to a future that does not come."""
        self._start = all_ranks(secrets.token_hex(8))[0]
        self._remove_but(set())

    def remove(self) -> None:
        """The run is finished: remove what is of this rank, and the folder when it was the last."""
        shutil.rmtree(self._own, ignore_errors=True)
        with suppress(OSError):
            if [path.name for path in self.folder.iterdir()] == [OWNER]:
                (self.folder / OWNER).unlink()
                self.folder.rmdir()

    def _claim(self, run: Path) -> str:
        """Make the folder this run's; what keeps it from being so."""
        number = run_id(run)
        try:
            self._own.mkdir(parents=True, exist_ok=True, mode=0o700)
            owner = self.folder / OWNER
            if self.folder.stat().st_uid != os.getuid():
                return f"checkpoint.local={self.folder} belongs to another user: choose another folder"
            mine = self._own / OWNER
            write_json(mine, {"run": str(run.absolute()), "id": number})
            with suppress(FileExistsError):
                os.link(mine, owner)  # whole, and only one can be first
            mine.unlink()
            known = read_json(owner)
        except OSError as error:
            return f"checkpoint.local={self.folder} cannot be used: {error.strerror}; choose another folder"
        if known.get("id") == number:
            return ""
        return (
            f"checkpoint.local={self.folder} holds local copies of run {known.get('run')}: choose another folder, or "
            "remove it if they are not needed"
        )

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
                if about["layout"] != self.layout:
                    reason = f"that of step {step} is of another layout or version: {about['layout']}"
                elif not path.exists() or path.stat().st_size != about["bytes"]:
                    reason = f"{path} is missing or has another size than it was written with"
                else:
                    found[step, start] = path
            except (InputError, KeyError, TypeError, ValueError, AttributeError):
                reason = f"{record} is damaged"
        return found, reason

    def _write(self, path: Path, step: int, state: dict[str, Any]) -> str:
        temporary = path.with_name(f".{path.name}.tmp")
        needed, free = _bytes(state), shutil.disk_usage(self._own).free
        try:
            with storage_errors(path):
                if needed > free:
                    raise StorageError(f"{needed / 1e6:,.0f} MB are needed and {free / 1e6:,.0f} MB are free")
                with temporary.open("wb") as file:
                    torch.save(state, file)
                digest = file_digest(temporary)
                temporary.replace(path)
                about = {"step": step, "start": self._start, "layout": self.layout}
                about |= {"bytes": path.stat().st_size, "digest": digest}
                write_json(path.with_suffix(".json"), about)
        except (OSError, RuntimeError, StorageError) as error:  # torch answers a failed write with a RuntimeError
            temporary.unlink(missing_ok=True)
            full = full_disk(error)
            reason = full.strerror if full is not None else str(error).splitlines()[0]
            return (
                f"local copy {path} could not be written: {reason}; checkpoints are untouched: make room, or set "
                "checkpoint.local to another folder, or to nothing"
            )
        return ""

    def _remove_but(self, steps: set[int]) -> None:
        keep = {f"step_{step:08d}{suffix}" for step in steps for suffix in (".pt", ".json")}
        for path in self._own.iterdir():
            if path.name not in keep:
                path.unlink()


def _damage(path: Path) -> str:
    """What is wrong with the content of a copy; empty if it is what was written."""
    about = read_json(path.with_suffix(".json"))
    return "" if file_digest(path) == about["digest"] else f"{path} was altered: its digest is not that of its record"


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
