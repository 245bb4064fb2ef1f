"""`python -m jobs`: names, help, and errors as one line."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.__main__ import JOBS, Job, main
from onevision.errors import StorageError

ROOT = Path(__file__).parents[2]


def fine(arguments: list[str]) -> int:
    """Takes key=value pairs."""
    print(arguments)
    return 7


def full_disk(arguments: list[str]) -> int:
    raise StorageError("cannot write corpus.h5: No space left on device")


def broken(arguments: list[str]) -> int:
    raise ZeroDivisionError("by zero\nand more")


def interrupted(arguments: list[str]) -> int:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for function in (fine, full_disk, broken, interrupted):
        monkeypatch.setitem(JOBS, function.__name__, Job(f"{__name__}:{function.__name__}", "for a test"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_help_lists_every_job_without_importing_one(capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys, jobs.__main__ as m; m.main([]); print(*sys.modules, file=sys.stderr)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in ("demo", "corpus", "pack", "train", "resume", "evaluate", "export"):
        assert any(line.split(maxsplit=1) == [name, JOBS[name].help] for line in ended.stdout.splitlines())
    imported = {module for module in ended.stderr.split() if module.startswith("jobs.") or module == "torch"}
    assert imported == {"jobs.__main__"}
    assert main(["--help"]) == 0 and JOBS["corpus"].help in capsys.readouterr().out


def test_a_terminal_of_another_encoding_does_not_end_a_job() -> None:
    job = Job(f"{__name__}:{fine.__name__}", "for a test")
    code = f"import jobs.__main__ as m; m.JOBS['fine'] = m.{job}; raise SystemExit(m.main(['fine', 'name=\u25b8']))"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (7, b"['name=?']\n")


@pytest.mark.parametrize("name", [name for name, job in JOBS.items()])
def test_every_registered_job_exists(name: str) -> None:
    module, _, function = JOBS[name].target.partition(":")
    found = importlib.util.find_spec(module)
    assert found is not None and found.origin is not None, f"{module} does not exist"
    body = ast.parse(Path(found.origin).read_text()).body
    assert function in {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_arguments_and_exit_code_are_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fine", "tiny.yaml", "optimizer.lr=2e-5", "--flag"]) == 7
    assert capsys.readouterr().out == "['tiny.yaml', 'optimizer.lr=2e-5', '--flag']\n"
    assert main(["fine", "--help"]) == 0
    assert capsys.readouterr().out == "Takes key=value pairs.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["corpsu"], 2, "error: unknown job 'corpsu'; the nearest is 'corpus'"),
        (["full_disk"], 74, "error: cannot write corpus.h5: No space left on device"),
        (["interrupted"], 130, "error: stopped"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    assert capsys.readouterr() == ("", f"{line}\n")


def test_an_unexpected_error_names_the_file_with_its_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["broken"]) == 1
    (log,) = tmp_path.iterdir()
    assert capsys.readouterr() == ("", f"error: broken failed: ZeroDivisionError: by zero; see {log}\n")
    assert "Traceback (most recent call last)" in log.read_text()


def test_a_reader_that_left_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    code = "import sys, tests.jobs.test_main as t; t.JOBS['fine'] = t.Job('tests.jobs.test_main:fine', ''); "
    code += "sys.exit(t.main(['fine']))"
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (141, "")
