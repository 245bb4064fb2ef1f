"""How a growing log looks on a terminal and in a file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from jobs.terminal import LogStream
from onevision.progress import MARK


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")


def shown(out: io.StringIO, log: Path, *pieces: bytes) -> str:
    stream = LogStream(log, out)
    stream.forward()  # not there yet
    for piece in pieces:
        with log.open("ab") as file:
            file.write(piece)
        stream.forward()
    stream.close()
    return out.getvalue()


def test_progress_redraws_in_place_on_a_terminal(tmp_path: Path) -> None:
    text = f"hello\n{MARK}pack 1/2\n{MARK}pack 2/2\n{MARK}train 1/9\na line\n{MARK}train 2/9\n".encode()
    erase = "\r\x1b[2K"
    assert shown(Terminal(), tmp_path / "log", text) == (
        f"hello\n{erase}{MARK}pack 1/2{erase}{MARK}pack 2/2\n{erase}{MARK}train 1/9\na line\n{erase}{MARK}train 2/9\n"
    )


def test_progress_fits_the_width_in_wide_characters_too(tmp_path: Path) -> None:
    line = shown(Terminal(), tmp_path / "log", f"{MARK}pack {'数' * 40}\n".encode())
    assert line == f"\r\x1b[2K{MARK}pack {'数' * 16}\n"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("110", "▸ stage2    ━━━━━━━━━━━╌╌╌╌╌╌╌╌╌ step 456/800  loss 0.6564  4,252 tokens/s  MFU 26.3%  ETA 1:39"),
        ("91", "▸ stage2    ━━━━━━━━╌╌╌╌╌╌╌ step 456/800  loss 0.6564  4,252 tokens/s  MFU 26.3%  ETA 1:39"),
        ("80", "▸ stage2    ━━━╌╌ step 456/800  loss 0.6564  4,252 tokens/s  ETA 1:39"),
        ("60", "▸ stage2    ━━━╌╌ step 456/800  loss 0.6564  ETA 1:39"),
    ],
)
def test_a_narrow_terminal_still_shows_how_long_it_will_take(
    columns: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    line = f"{MARK}stage2    {'━' * 11}{'╌' * 9} step 456/800  loss 0.6564  4,252 tokens/s  MFU 26.3%  ETA 1:39\n"
    assert shown(Terminal(), tmp_path / "log", line.encode()) == f"\r\x1b[2K{expected}\n"


def test_elsewhere_lines_are_printed_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"{MARK}pack 1/2\n{MARK}pack {'━' * 80} 2/2\n"
    assert shown(io.StringIO(), tmp_path / "log", text.encode()) == text
    monkeypatch.setenv("TERM", "dumb")
    assert shown(Terminal(), tmp_path / "other", text.encode()) == text


def test_lines_are_shown_when_complete_whatever_their_bytes(tmp_path: Path) -> None:
    character = "数".encode()
    pieces = [b"one\ntw", b"o\n" + character[:1], character[1:] + b"\n", b"10%\r100%\n", b"\xff\nlast"]
    assert shown(io.StringIO(), tmp_path / "log", *pieces) == "one\ntwo\n数\n100%\n\ufffd\nlast\n"


def test_a_traceback_stays_in_the_log(tmp_path: Path) -> None:
    text = b"one\n[error] Traceback (most recent call last):\n  File\nTypeError\n"
    assert shown(io.StringIO(), tmp_path / "log", text) == "one\n"
    assert (tmp_path / "log").stat().st_size == len(text)
