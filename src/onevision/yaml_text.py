"""Settings written in YAML: what JSON could say too, and nothing that makes a small text large or calls for code.

Read are mappings, lists and plain values. Refused are aliases (`*name`, which can stand for a billion values in ten
lines), tags (`!!python/object`, `!!timestamp`, …), `${…}` (its value would come from elsewhere, the environment for
one) and what is too large or too deep to be written by a person.
"""

from __future__ import annotations

import io
from pathlib import Path
from stat import S_ISREG
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from onevision.errors import InputError

MOST_BYTES = 1 << 20
DEEPEST = 20  # mappings and lists inside each other
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as OmegaConf chooses it


def read_yaml(path: Path, what: str) -> Any:
    """The OmegaConf container of the file `path`; `what` it is begins a message.

    Raises:
        InputError: it is missing, no file, too large, no YAML, or has what is refused.
    """
    try:
        state = path.stat()
        if not S_ISREG(state.st_mode) or state.st_size > MOST_BYTES:
            raise InputError(f"{what} {path} cannot be read: it is no file of at most {MOST_BYTES:,} bytes")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{what} {path} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a zero byte
        raise InputError(f"{what} {path} cannot be read: {first_line(error)}") from None
    try:
        check_yaml(text)
        return OmegaConf.load(io.StringIO(text))
    # OSError: it is a plain value; ValueError, OverflowError: numbers out of all range.
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, OverflowError) as error:
        raise InputError(f"{what} {path} cannot be read: {first_line(error)}") from None


def check_yaml(text: str) -> None:
    """Look for what is refused.

    Raises:
        ValueError: it is there; the message says where.
        yaml.YAMLError: the text is no YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        place = f"line {event.start_mark.line + 1}" if event.start_mark else "it"
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{place}: *{event.anchor} stands for another value: write that value out")
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag is not None:
            raise ValueError(f"{place}: the tag {event.tag} is not read: write the plain value")
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            raise ValueError(f"{place}: {event.value[:80]!r}: nothing is filled in for ${{…}}: write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"{place}: more than {DEEPEST} mappings and lists inside each other")


def first_line(error: Exception) -> str:
    """The first line of what an error says; of text that is no YAML where it stops being it, and why."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return next(iter(str(error).splitlines()), type(error).__name__)
