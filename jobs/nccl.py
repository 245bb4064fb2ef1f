"""Files of environment variables for communication: lines of NAME=value  # reason."""

from __future__ import annotations

import re
from pathlib import Path

from onevision.errors import InputError

PREFIXES = ("NCCL_", "GLOO_", "UCX_", "OMP_", "CUDA_")
_LINE = re.compile(r"(?P<name>[A-Z][A-Z0-9_]*)=(?P<value>\S+)(?P<reason>\s+#\s*\S.*)?")


def read_nccl(path: Path) -> dict[str, str]:
    """The variables of a file. Empty lines and lines that begin with # are left out.

    Raises:
        InputError: the file is missing or unreadable; or a line is not NAME=value, has no reason, names a variable
            that is not one of communication or threads, or one a second time.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; the profile's `nccl` names it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    values: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        where = f"{path} line {number}"
        match = _LINE.fullmatch(text)
        if match is None:
            raise InputError(f"{where}: {text!r} is not of the form NAME=value  # reason")
        name = match["name"]
        if not name.startswith(PREFIXES):
            raise InputError(f"{where}: {name} does not begin with one of {', '.join(PREFIXES)}; set it elsewhere")
        if match["reason"] is None:
            raise InputError(f"{where}: {name} has no reason; write it behind the value: {text}  # why")
        if name in values:
            raise InputError(f"{where}: {name} stands there twice")
        values[name] = match["value"]
    return values
