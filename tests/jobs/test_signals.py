"""Ctrl-C, SIGTERM and kill -9, sent to a launcher in a process of its own."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
STOPPING = "stopping after this step and saving; Ctrl-C again to stop at once"


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited 30 s for {what}"
        time.sleep(0.05)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class Launcher:
    """`tests.jobs.samples` on a terminal of its own, as a person would start it."""

    def __init__(self, folder: Path, call: str, *arguments: str) -> None:
        self.process_file = folder / "process"
        self.terminal, device = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.samples", call, folder / "log", self.process_file, *arguments],
            cwd=ROOT, stdin=device, stdout=device, stderr=device, start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # its controlling terminal
            env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(device)
        wait_for(lambda: self.process_file.exists() and self.process_file.read_text(), "the job to start")
        self.job = int(self.process_file.read_text())

    def end(self) -> tuple[int, list[str]]:
        """Exit code and the lines on the terminal."""
        output = b""
        while True:
            try:
                output += os.read(self.terminal, 65536)
            except OSError:  # the terminal was left by all
                break
        os.close(self.terminal)
        return self.process.wait(timeout=30), output.decode().replace("^C", "").splitlines()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Launcher]]:
    started: list[Launcher] = []

    def launch(call: str, *arguments: str) -> Launcher:
        started.append(Launcher(tmp_path, call, *arguments))
        return started[-1]

    yield launch
    for launcher in started:
        for pid in (launcher.job, launcher.process.pid):
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_ctrl_c_lets_the_job_save(start: Callable[..., Launcher]) -> None:
    launcher = start("steps")
    os.write(launcher.terminal, b"\x03")
    code, lines = launcher.end()
    assert code == 130
    assert lines == ["training", STOPPING, "saved", "error: saved after 1 signal"]
    assert gone(launcher.job)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_to_the_launcher_alone_reaches_the_job(
    signum: signal.Signals, code: int, start: Callable[..., Launcher]
) -> None:
    launcher = start("steps")
    launcher.process.send_signal(signum)
    launcher.process.send_signal(signum)  # make, timeout and others send it twice
    assert launcher.end() == (code, ["training", STOPPING, "saved", "error: saved after 1 signal"])


def test_a_job_that_finishes_all_the_same_is_followed_by_nothing(start: Callable[..., Launcher]) -> None:
    launcher = start("steps", "finishes")
    launcher.process.send_signal(signal.SIGINT)
    line = "error: stopped after job steps, which had finished"
    assert launcher.end() == (130, ["training", STOPPING, "saved", line])


def test_a_second_ctrl_c_stops_at_once(start: Callable[..., Launcher]) -> None:
    launcher = start("steps", "yes")
    os.write(launcher.terminal, b"\x03")
    time.sleep(1.2)
    os.write(launcher.terminal, b"\x03")
    code, lines = launcher.end()
    assert code == 130
    assert lines[-1].endswith("error: job steps was stopped at once; what it had saved is untouched")
    assert gone(launcher.job)


def test_a_job_without_handlers_cleans_up(start: Callable[..., Launcher]) -> None:
    launcher = start("wait")
    os.write(launcher.terminal, b"\x03")
    code, lines = launcher.end()
    assert code == 130
    assert lines[-1] == "error: job wait was stopped; the same command starts it again"
    assert launcher.process_file.with_suffix(".cleaned").exists()


def test_a_killed_job_is_reported_promptly_and_leaves_no_process(start: Callable[..., Launcher]) -> None:
    launcher = start("wait")
    child = int(launcher.process_file.with_suffix(".child").read_text())
    began = time.monotonic()
    os.kill(launcher.job, signal.SIGKILL)
    code, lines = launcher.end()
    assert time.monotonic() - began < 5
    assert code == 137
    (log,) = launcher.process_file.with_name("log").iterdir()
    line = f"error: job wait was killed from outside (kill -9, out of memory) or crashed; see {log}"
    assert lines == ["waiting", line]
    assert log.read_text() == "waiting\n"
    wait_for(lambda: gone(child), "the job's child to be killed with it")


def test_a_job_outlives_its_launcher_and_is_not_started_beside_itself(start: Callable[..., Launcher]) -> None:
    launcher = start("steps")
    os.killpg(launcher.process.pid, signal.SIGKILL)
    launcher.end()
    assert not gone(launcher.job)
    second = start("steps")
    code, lines = second.end()
    assert code == 2
    running = rf"error: job steps still runs as process {launcher.job} \(log .*\): wait for it, or stop it"
    assert re.match(running, lines[-1])
    os.kill(launcher.job, signal.SIGTERM)
    wait_for(lambda: gone(launcher.job), "the job to save")
    (log,) = launcher.process_file.with_name("log").glob("*.log")
    assert log.read_text().splitlines()[:2] == ["training", "saved"]
    launcher.process_file.unlink()
    third = start("steps")
    third.process.send_signal(signal.SIGTERM)
    assert third.end()[0] == 75
    assert len(list(launcher.process_file.with_name("log").iterdir())) == 2
