"""Digests that are found while somebody else reads the files."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from onevision.errors import InputError
from onevision.fingerprint import BLOCK, Digests, file_digest
from onevision.steps import run_step


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Files of several blocks, of one, and an empty one."""
    paths = []
    for number, size in enumerate((3 * BLOCK + 5, BLOCK, 0, 100)):
        paths.append(tmp_path / f"file{number}")
        paths[-1].write_bytes(bytes([number + 1]) * size)
    return paths


def test_they_are_those_of_the_files(files: list[Path]) -> None:
    for ahead in (1, BLOCK, 1 << 30):
        with Digests(files, ahead) as digests:
            assert digests.result() == {path: file_digest(path) for path in files}


def test_the_thread_waits_for_the_reader(files: list[Path]) -> None:
    with Digests(files, ahead=BLOCK + 1) as digests:

        def settled() -> int:
            end = time.monotonic() + 20
            while digests._ahead > 0 and time.monotonic() < end:
                time.sleep(0.001)
            return digests._ahead

        assert settled() == 1 - BLOCK  # two blocks: the second one began within the bound
        digests.read(BLOCK)
        assert settled() == 1 - BLOCK and not digests._digests
    assert not digests._thread.is_alive()  # the end of the block ends it, though files are left


def test_a_file_that_is_gone_is_an_error(files: list[Path]) -> None:
    files[1].unlink()
    with Digests(files) as digests, pytest.raises(FileNotFoundError, match="file1"):
        digests.result()


def test_inputs_of_a_step_may_be_known_after_it(files: list[Path], tmp_path: Path) -> None:
    calls: list[str] = []

    def inputs() -> dict[str, str]:
        calls.append("inputs")
        return {path.name: file_digest(path) for path in files}

    def build(folder: Path) -> dict[str, int]:
        calls.append("build")
        (folder / "made").touch()
        return {"made": 1}

    assert not run_step("test", tmp_path / "output", inputs, build).skipped
    assert calls == ["build", "inputs"]
    assert run_step("test", tmp_path / "output", inputs, build).skipped
    assert run_step("test", tmp_path / "output", inputs(), build).skipped  # the same key, whenever they are known
    files[3].write_bytes(b"changed")
    del calls[:]
    assert not run_step("test", tmp_path / "output", inputs, build).skipped
    assert calls == ["inputs", "build"]
    with pytest.raises(InputError, match="holds something that no step has made"):
        run_step("test", files[0], inputs, build)
