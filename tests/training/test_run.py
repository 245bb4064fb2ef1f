"""The run folder: what decides a result; its lock: who is asked to wait, who is refused."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onevision import locks
from onevision.errors import Busy, InputError
from onevision.files import read_json, write_json
from onevision.recipe import Recipe, recipe_from
from onevision.training.run import deciding_values, lock_run, open_run
from tests.forks import forked, wait_for


def hold(run: Path, holder: str) -> None:
    with (run / ".lock").open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        file.write(holder)
        file.flush()
        (run / "held").touch()
        signal.pause()


def test_a_holder_that_lives_here_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = f"{os.getpid()} on {platform.node()}"
    with forked(hold, tmp_path, holder):
        wait_for((tmp_path / "held").exists)
        monkeypatch.setattr(locks.time, "sleep", lambda seconds: pytest.fail("it waits"))
        with pytest.raises(Busy, match=f"is being written by process {holder}: wait"), lock_run(tmp_path):
            pass


@pytest.mark.parametrize("holder", ["17 on a-node-that-died", f"{2**22 + 1} on {platform.node()}", ""])
def test_a_lock_that_lingers_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], holder: str
) -> None:
    with forked(hold, tmp_path, holder) as child:
        wait_for((tmp_path / "held").exists)
        # The first time that the lock is waited for, its holder ends.
        monkeypatch.setattr(locks.time, "sleep", lambda seconds: child.kill())
        with lock_run(tmp_path):
            assert (tmp_path / ".lock").read_text() == f"{os.getpid()} on {platform.node()}"
    assert f"is held by process {holder or 'unknown'}: waiting up to 120 s" in capsys.readouterr().out


def test_patience_ends(tmp_path: Path) -> None:
    with forked(hold, tmp_path, "17 on node04"):
        wait_for((tmp_path / "held").exists)
        with pytest.raises(Busy, match="17 on node04") as raised, lock_run(tmp_path, patience=0.1):
            pass
    assert raised.value.exit_code == 73


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(InputError, match="cannot be locked: No locks available"), lock_run(tmp_path):
        pass


def mixture(weight: float = 1, shards: str = "") -> Recipe:
    entries = [{"corpus": "a", "packs": "b", "weight": 2}, {"corpus": "c", "packs": "d", "weight": weight}]
    entries[1]["shards"] = shards
    return recipe_from({"output": "runs/x", "data": {"mixture": entries}})


def test_what_decides_a_result_are_a_mixtures_values_and_not_where_its_shards_lie() -> None:
    values = deciding_values(mixture())
    assert values["data.mixture[1].weight"] == 1 and values["data.mixture[0].corpus"] == "a"
    assert deciding_values(mixture(shards="s3://bucket/c")) == values
    changed = deciding_values(mixture(weight=3))
    assert {key for key in values if values[key] != changed[key]} == {"data.mixture[1].weight"}


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    recipe = recipe_from({"output": str(tmp_path / "run"), "data": {"corpus": "c", "packs": "p"}})
    inputs = {"corpus": "1", "packs": "2"}
    record = open_run(recipe, inputs) / "run.json"
    before = read_json(record)
    older = {key: value for key, value in before["values"].items() if key != "data.balanced"}
    assert len(older) < len(before["values"])
    write_json(record, {**before, "values": older})
    open_run(recipe, inputs)
    other = replace(recipe, data=replace(recipe.data, balanced="b"))
    with pytest.raises(InputError, match=r"data\.balanced='b' \(was ''\)"):
        open_run(other, {**inputs, "corpus": "3"})


def test_data_may_move_while_a_run_goes_on(tmp_path: Path) -> None:
    """Its fingerprint decides, not its place; a place that was not looked at is another one."""

    def recipe(corpus: str, tokenizer: str = "t") -> Recipe:
        mixture = [{"corpus": corpus, "packs": "p"}, {"corpus": "c", "packs": "q"}]
        return recipe_from({"output": str(tmp_path / "run"), "data": {"mixture": mixture, "tokenizer": tokenizer}})

    inputs = {"corpus.0": "1", "corpus.1": "2", "packs.0": "3", "packs.1": "4", "tokenizer": "5"}
    open_run(recipe("/old/a"), inputs)
    open_run(recipe("/new/a", "/new/t"), inputs)
    for other in ({**inputs, "corpus.0": "2"}, {}):
        with pytest.raises(InputError, match=r"data\.mixture\[0\]\.corpus='/new/a' \(was '/old/a'\)"):
            open_run(recipe("/new/a"), other)


def test_how_concepts_were_found_is_no_setting_of_a_run(tmp_path: Path) -> None:
    recipe = recipe_from({"output": str(tmp_path / "run")})
    open_run(recipe, {})
    open_run(replace(recipe, concepts=replace(recipe.concepts, top_k=3)), {})


@pytest.mark.parametrize("change", [{"reject_threshold": 0.5}, {"source": "/new/source", "image_root": "/new/images"}])
def test_how_the_corpus_was_imported_is_no_setting_of_a_run(tmp_path: Path, change: dict[str, Any]) -> None:
    """A run that too many damaged samples have ended goes on with a threshold that bears them."""
    recipe = recipe_from({"output": str(tmp_path / "run"), "data": {"source": "/old/source"}})
    changed = replace(recipe, data=replace(recipe.data, **change))
    record = open_run(recipe, {}) / "run.json"
    open_run(changed, {})
    before = read_json(record)  # a run of an older version has these values among those that decide
    older = {"data.source": "/old/source", "data.image_root": "", "data.reject_threshold": 0.01}
    write_json(record, {**before, "values": before["values"] | older})
    open_run(changed, {})
