"""A step replaces its own former output and nothing else."""

from __future__ import annotations

import fcntl
import signal
from pathlib import Path
from typing import Any

import pytest

from onevision.errors import Busy, InputError
from onevision.files import one_at_a_time, write_json
from onevision.steps import run_parts, run_step
from tests.forks import forked, wait_for


def build(folder: Path) -> dict[str, int]:
    (folder / "made").touch()
    return {"made": 1}


def test_a_step_replaces_its_own_output(tmp_path: Path) -> None:
    folder = tmp_path / "output"
    folder.mkdir()  # an empty folder may be there
    assert not run_step("test", folder, {"seed": 1}, build).skipped
    assert run_step("test", folder, {"seed": 1}, build).skipped
    assert not run_step("test", folder, {"seed": 2}, build).skipped
    assert sorted(path.name for path in folder.iterdir()) == ["made", "step.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


@pytest.mark.parametrize("parts", [0, 2])
def test_a_step_writes_where_a_link_leads(tmp_path: Path, parts: int) -> None:
    disk, link = tmp_path / "disk", tmp_path / "home/out"
    disk.mkdir()
    link.parent.mkdir()
    link.symlink_to("../disk/out")  # nothing is there yet

    def build(folder: Path, k: int = 0) -> dict[str, Any]:
        assert folder.parent == disk
        (folder / f"{k}.txt").write_text("made")
        return {}

    for version in range(3):
        if parts:
            run_parts("step", link, {"version": version}, parts, build, lambda work, known: {})
        else:
            run_step("step", link, {"version": version}, build)
        assert link.is_symlink() and (link / "0.txt").read_text() == "made"
        assert [path.name for path in disk.iterdir()] == ["out"] and list(link.parent.iterdir()) == [link]


def test_a_step_never_replaces_a_persons_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="holds something that no step has made"):
        run_step("test", tmp_path, {}, build)
    with pytest.raises(InputError, match="holds something that no step has made"):
        run_step("test", tmp_path / "mine", {}, build)
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("record", [{"step": "corpus", "key": "", "summary": {}, "seconds": 0}, {"step": "stage2"}])
def test_a_step_never_replaces_what_another_one_has_made(tmp_path: Path, record: dict[str, object]) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    write_json(folder / "step.json", record)  # of a step, and of a run, which has no key
    for start in (
        lambda: run_step("export", folder, {}, build),
        lambda: run_step("export", folder, dict, build),
        lambda: run_parts("export", folder, {}, 1, lambda *_: {}, lambda *_: {}),
    ):
        with pytest.raises(InputError, match=f"shards holds what {record['step']} has made, and export would replace"):
            start()
    assert [path.name for path in folder.iterdir()] == ["step.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_folder_without_a_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".", ".."):
        with pytest.raises(InputError, match="has no name of its own"):
            run_step("test", name, {}, build)


def _stays_within(file: Path, entered: Path) -> None:
    with one_at_a_time(file):
        entered.touch()
        signal.pause()


def test_one_process_at_a_time_is_within_and_a_killed_one_is_no_longer(tmp_path: Path) -> None:
    file, entered = tmp_path / "new" / ".lock", tmp_path / "entered"
    with forked(_stays_within, file, entered) as child:
        wait_for(entered.exists)
        with file.open("ab") as other, pytest.raises(BlockingIOError):
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        child.kill()
    with one_at_a_time(file):
        pass


def _stays_in_a_part(folder: Path, entered: Path) -> None:
    def build(work: Path, k: int) -> dict[str, int]:
        entered.write_text(str(work))
        signal.pause()
        return {}

    run_parts("test", folder, {"seed": 1}, 2, build, lambda work, known: {})


def test_a_second_process_does_not_write_into_the_same_step(tmp_path: Path) -> None:
    folder, entered = tmp_path / "output", tmp_path / "entered"
    with forked(_stays_in_a_part, folder, entered) as child:
        wait_for(entered.exists)
        work = tmp_path / ".output.parts"
        with pytest.raises(Busy, match=rf"output is being written by process {child.process.pid} on "):
            run_parts("test", folder, {"seed": 2}, 2, lambda *_: {}, lambda *_: {})
        with pytest.raises(Busy):
            run_step("test", folder, {"seed": 2}, build)
        assert (work / "key.json").exists()  # what the first one has made is still there
        child.kill()
        child.join()
    assert not run_step("test", folder, {"seed": 2}, build).skipped
    assert {path.name for path in tmp_path.iterdir()} == {"entered", "output", ".output.parts"}
