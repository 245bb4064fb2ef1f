"""`make export-check`: what other loaders make of an export, and what export and import take in memory and time.

    python -m benchmarks.export [run=RUN] [preset=8b] [only=loaders|streaming] [folder=DIR] [strict=1]

- Loaders: two tiny models with random weights, one with a head of its own and one whose head is its embedding, are
  exported, and every loader of `make consumers` gives its logits for prompts with one image, several, in a batch, and
  without; their vocabulary has more rows than their tokenizer has tokens. With `run=RUN` the newest checkpoint of a
  run too, which also answers questions of the run's held-out corpus.
- Streaming: a checkpoint of the preset's shape is exported and imported again, each in a process of its own with a
  cold page cache, beside a copy of the same bytes with the same syncs. Takes twice the weights' room in `folder`.

With strict=1 an unmet goal gives exit code 1. Results: benchmarks/results/export.json, unless `only` leaves rows out.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from jobs.here import QUIET_THREADS

os.environ.update(QUIET_THREADS)

from benchmarks.results import package_versions, show, write_results
from jobs.ranks import ready_model
from onevision.errors import InputError, OneVisionError
from onevision.model.presets import PRESETS

PARTS = ("loaders", "streaming")


def main(arguments: list[str]) -> int:
    """See the head comment."""
    own = {"run": "", "preset": "8b", "only": "", "folder": "", "strict": ""}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in own:
            raise InputError(f"{argument!r} is not one of {', '.join(f'{name}=' for name in own)}")
        own[key] = value
    if own["preset"] not in PRESETS:
        raise InputError(f"preset={own['preset']} is not one of {', '.join(PRESETS)}")
    if own["only"] not in ("", *PARTS):
        raise InputError(f"only={own['only']} is not one of {', '.join(PARTS)}")
    ready_model()
    from benchmarks.export import loaders, streaming

    rows, beside = [], {}
    with tempfile.TemporaryDirectory(prefix="onevision-export-", dir=own["folder"] or None) as name:
        if own["only"] != "streaming":
            found, beside["not_checked"] = loaders.rows(Path(name), Path(own["run"]) if own["run"] else None)
            rows += found
            show("logits of exported folders in other loaders", found)
            for loader, reason in beside["not_checked"].items():
                print(f"not checked: {loader}: {reason}")
        if own["only"] != "loaders":
            found = streaming.rows(Path(name), PRESETS[own["preset"]])
            rows += found
            show(f"export and import, {own['preset']}", found)
    if not own["only"]:
        versions = package_versions("torch", "megatron-core", "safetensors", "transformers")
        print(write_results("export", rows, versions, beside=beside))
    unmet = [row for row in rows if not row.met]
    print(f"{len(rows) - len(unmet)} of {len(rows)} rows meet their goals")
    return 1 if unmet and own["strict"] == "1" else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OneVisionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        sys.exit(130)
