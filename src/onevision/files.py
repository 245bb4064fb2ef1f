"""Writing files so that a reader sees the old one or the whole new one, never a part."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onevision.errors import InputError, StorageError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_SHOWN = 5  # names in a message


def full_disk(error: BaseException | None) -> OSError | None:
    """The "disk full" behind an error, looked for in its causes and in what a failed writer sent."""
    seen: list[Any] = [error]
    while seen:
        current = seen.pop()
        if isinstance(current, OSError) and current.errno in FULL:
            return current
        if isinstance(current, str):  # of an error that came from another process there is only the text
            numbers = map(int, re.findall(r"\[Errno (\d+)\]", current))
            if number := next((number for number in numbers if number in FULL), 0):
                return OSError(number, os.strerror(number))
        if isinstance(current, BaseException):
            seen += [current.__cause__, current.__context__, *current.args]
            seen += [failure[0] for failure in getattr(current, "failures", {}).values()]
    return None


@contextmanager
def storage_errors(path: str | Path) -> Iterator[None]:
    """Turn "disk full" and its kin into one line.

    Raises:
        StorageError: naming `path` and what the system said.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise StorageError(f"cannot write {path}: {error.strerror}; make room and run again") from error
        raise


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block ends well, remove it otherwise."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp{os.getpid()}")
    try:
        with storage_errors(target):
            yield temporary
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_name(folder: Path) -> None:
    """Refuse a folder that a new one, made beside it, could not take the place of.

    Raises:
        InputError: it is "." or "..".
    """
    if folder.name in ("", ".."):
        raise InputError(f"{folder} has no name of its own, and a new folder takes its place: name the folder itself")


def behind_link(folder: str | Path) -> Path:
    """The folder itself where it is named by a link, as `data/corpus` on a small disk that leads to a large one: what
    is made must lie on the large one from the start, and take the place of what is there, not of the link.

    Raises:
        InputError: the link leads back to itself.
    """
    folder = Path(folder)
    if not folder.is_symlink():
        return folder
    found = Path(os.path.realpath(folder))  # resolve() has no answer for a link to itself but an error without a name
    if found.is_symlink():
        raise InputError(f"{folder} is a link that leads back to itself: remove it, or name another folder")
    return found


def refuse_loss(folder: Path, names: Sequence[str]) -> None:
    """Refuse to replace a folder with files in it, `names`, that will not be made again.

    Raises:
        InputError: there are such files.
    """
    if names:
        more = f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
        raise InputError(
            f"{folder} would be replaced, and what was put there or changed since it was made would be lost: "
            f"{', '.join(names[:_SHOWN])}{more}. Move that, or name another folder with to="
        )


def replace_folder(made: Path, folder: Path) -> None:
    """Let the folder `made` take the place of `folder`, if there is one, by renames beside it."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    made.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def remove_temporaries(folder: Path) -> None:
    """Remove what `replacing` has left in a folder where it was killed. Nobody may be writing there."""
    for path in folder.glob(".*.tmp*"):
        if re.fullmatch(r"\..+\.tmp\d+", path.name):
            path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file atomically, indented."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, numbers too long or lists too deep to be meant
        raise InputError(f"{path} is not valid JSON: {error}") from None


def read_json_lines(path: str | Path) -> list[Any]:
    """Read the values of a file that holds one a line. Lines end with \\n alone: in a JSON text there may be characters
    that end a line elsewhere, such as U+2028.

    Raises:
        InputError: the file is missing, cannot be read or is not JSON lines.
    """
    try:
        return [json.loads(line) for line in Path(path).read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None


def read_record(path: str | Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """Read a JSON file that holds an object with values of these types under these keys.

    Raises:
        InputError: as `read_json`, or it holds something else.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise InputError(f"{path} was altered: it holds no object")
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            raise InputError(f"{path} was altered: its {key!r} is not what was written")
    return record


@contextmanager
def one_at_a_time(file: str | Path) -> Iterator[None]:
    """Wait until no other process, on any machine that sees `file`, is within. The file stays, and holds nothing."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with Path(file).open("ab") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # given back when it is closed, also by kill -9
        yield
