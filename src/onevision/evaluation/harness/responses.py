"""What a model answered, kept question by question, so that an evaluation that was killed goes on where it was.

    FOLDER/responses.rank0.jsonl      a line an answer, appended and synced; each rank has its own file
    FOLDER/responses.rank1.jsonl      …

An answer is known by its key, a digest of everything that decides it: task, document, request, prompt text, generation
settings, and the settings of the model (checkpoint, pixel limits, data). So a change of any of them asks anew, and
another number of ranks does not. A question that failed has a line too, which counts as no answer: the next run asks it
again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onevision.files import storage_errors
from onevision.fingerprint import value_digest


@dataclass(frozen=True)
class Response:
    """An answer, or why there is none: then `error` is a line, and `text` is empty and means nothing."""

    key: str
    task: str
    document: int
    text: str
    error: str = ""
    attempts: int = 1
    seconds: float = 0.0  # of its batch, over the questions of the batch


def response_key(task: str, document: int, number: int, prompt: str, generation: dict[str, Any], settings: str) -> str:
    """Key of the answer to request `number` of a document, asked with a text, generation settings and the digest of all
    other settings."""
    return value_digest([task, document, number, prompt, generation, settings])


class ResponseStore:
    """The responses of all ranks in a folder, of which this rank adds to its own file. Closed by `close`."""

    def __init__(self, folder: str | Path, rank: int = 0) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"responses.rank{rank}.jsonl"
        self._file = self.path.open("ab")
        if self._file.tell() and not _ends_with_newline(self.path):
            self._file.write(b"\n")  # the line before was cut off by a kill
        self._responses: dict[str, Response] = {}
        self.reload()

    def reload(self) -> None:
        """Read what all ranks have written by now. Of several responses to a question an answer counts before a
        failure, and a later one before an earlier one of the same rank."""
        found: dict[str, Response] = {}
        for path in sorted(self.folder.glob("responses.rank*.jsonl")):
            for response in _read(path):
                known = found.get(response.key)
                if known is None or known.error or not response.error:
                    found[response.key] = response
        self._responses = found

    def __len__(self) -> int:
        return len(self._responses)

    def answer(self, key: str) -> Response | None:
        """The kept answer of a question; None where there is none, or where it failed."""
        response = self._responses.get(key)
        return None if response is None or response.error else response

    def failure(self, key: str) -> Response | None:
        """The failure of a question that has no answer."""
        response = self._responses.get(key)
        return response if response is not None and response.error else None

    def add(self, responses: list[Response]) -> None:
        """Append responses; they are on the disk when this returns.

        Raises:
            StorageError: the disk is full.
        """
        lines = "".join(json.dumps(asdict(response), ensure_ascii=False) + "\n" for response in responses)
        with storage_errors(self.path):
            self._file.write(lines.encode("utf-8", errors="surrogatepass"))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._responses |= {response.key: response for response in responses}

    def close(self) -> None:
        """Close this rank's file."""
        self._file.close()


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _read(path: Path) -> list[Response]:
    """The whole lines of a file: one that was cut off is left out, and its question is asked again."""
    found = []
    for line in path.read_bytes().split(b"\n"):
        try:
            found.append(Response(**json.loads(line.decode("utf-8", errors="surrogatepass"))))
        except (ValueError, TypeError):
            continue
    return found
