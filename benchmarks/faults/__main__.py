"""`make fault-check`: every fault, done to real training processes on this machine, as a table and a JSON file.

    python -m benchmarks.faults [only=TEXT[,TEXT]] [seed=N] [keep=DIR]

`only` takes the rows whose fault or moment has one of the texts in it; nothing is then written to
benchmarks/results/faults.json. `seed` draws the steps, ranks and times of the kills. `keep` is a new folder for
everything that the cases leave. Exit code 1 if a row is not as it should be.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import psutil

from jobs.here import QUIET_THREADS

os.environ.update(QUIET_THREADS)  # the server of ranks has them from its start

from benchmarks.faults.matrix import check
from onevision.errors import InputError, OneVisionError


def main(arguments: list[str]) -> int:
    """See the head comment."""
    values = {"only": "", "seed": "7", "keep": ""}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in values:
            raise InputError(f"{argument!r} is not one of {', '.join(f'{name}=' for name in values)}")
        values[key] = value
    if not values["seed"].isdigit():
        raise InputError(f"seed={values['seed']} is not a number")
    only = [text for text in values["only"].split(",") if text]
    if values["keep"]:
        folder = Path(values["keep"]).absolute()
        if folder.exists():
            raise InputError(f"keep={folder} exists: name a new folder")
        folder.mkdir(parents=True)
        return check(folder, only, int(values["seed"]))
    with tempfile.TemporaryDirectory(prefix="onevision-faults-") as name:
        return check(Path(name), only, int(values["seed"]))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OneVisionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr, flush=True)
        for process in psutil.Process().children(recursive=True):  # the ranks have sessions of their own
            process.kill()
        os._exit(130)  # threads wait for the ranks
