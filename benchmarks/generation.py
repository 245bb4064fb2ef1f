"""`make bench-generation`: tokens a second of answers, with keys and values remembered and without.

    python -m benchmarks.generation [preset=tiny] [precision=fp32] [prompt=300] [new=48] [batches=1,8] [out=DIR]

`batches` of prompts of `prompt` tokens of text are answered with `new` tokens each, by random weights of the preset, on
the GPU where there is one. Without the cache every token takes a pass over the whole sequences. Both must give the same
tokens in FP32. Figures go to generation.json in benchmarks/results, or in DIR.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import RESULTS, Row, package_versions, show, write_results
from jobs.numbers import whole
from jobs.ranks import ready_model
from onevision.errors import InputError

PAD = 1  # no token of the prompts


def main(arguments: list[str]) -> int:
    """Measure, write and print; see the head comment."""
    ready_model()
    defaults = {"preset": "tiny", "precision": "fp32", "prompt": "300", "new": "48", "batches": "1,8"}
    settings = defaults | {"out": str(RESULTS)} | dict(text.partition("=")[::2] for text in arguments)
    if unknown := settings.keys() - {*defaults, "out"}:
        print(f"error: unknown {min(unknown)!r}; there are {', '.join([*defaults, 'out'])}", file=sys.stderr)
        return InputError.exit_code
    try:
        rows, beside = measure(
            settings["preset"],
            settings["precision"],
            *(_number(settings, key) for key in ("prompt", "new")),
            [_number({"batches": size}, "batches") for size in settings["batches"].split(",")],
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    write_results("generation", rows, package_versions("torch", "megatron-core"), Path(settings["out"]), beside)
    show("generation", rows)
    return 0


def measure(
    preset: str, precision: str, prompt: int, new: int, batches: list[int]
) -> tuple[list[Row], dict[str, str | int]]:
    """A row a batch size, and what they were measured on."""
    from onevision.evaluation.generate import Prompt, generate
    from onevision.model.device import Ranks, runtime_context, start
    from onevision.model.presets import PATCH_VALUES
    from onevision.recipe import recipe_from
    from onevision.training.parts import build_model

    recipe = recipe_from({"model": {"preset": preset}, "train": {"precision": precision}})
    device = start(Ranks(), recipe.seed)
    torch.set_num_threads(1)
    with runtime_context(device):
        model = build_model(recipe, device, generates=True).eval()
    vocabulary = model.architecture.language.vocab_size
    rng = np.random.default_rng(0)
    rows = []
    for size in batches:
        ids = [rng.integers(PAD + 1, vocabulary, prompt) for _ in range(size)]
        none = torch.empty(0, PATCH_VALUES), np.empty((0, 3), np.int64)
        prompts = [Prompt(entry, *none) for entry in ids]

        def cached(prompts: list[Prompt] = prompts) -> list[list[int]]:
            return list(
                generate(
                    model,
                    prompts,
                    image_pad=PAD,
                    stop_tokens=(),
                    max_new_tokens=new,
                    batch_tokens=prompt * len(prompts),
                )
            )

        def again(ids: list[np.ndarray] = ids) -> list[list[int]]:
            return recomputed(model, ids, new)

        (fast, answers), (slow, reference) = timed(cached), timed(again)
        agree = sum(ours == theirs for ours, theirs in zip(answers, reference, strict=True)) / size
        rate, slow_rate = size * new / fast, size * new / slow
        rows.append(
            Row(
                f"generation, {size} x ({prompt} + {new}) tokens",
                f"tokens/s ({agree:.0%} the same answers)",
                rate,
                "tokens/s",
                "without a cache",
                slow_rate,
                ">= 2x, the same answers in fp32",
                rate >= 2 * slow_rate and (agree == 1 or precision != "fp32"),
            )
        )
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return rows, {"device": on, "threads": torch.get_num_threads(), "preset": preset, "precision": precision}


@torch.no_grad()
def recomputed(model: torch.nn.Module, prompts: list[np.ndarray], new: int) -> list[list[int]]:
    """The most likely `new` tokens after each prompt, by a pass over all of them for every token."""
    device = next(model.parameters()).device
    sequences = [prompt.tolist() for prompt in prompts]
    for _ in range(new):
        lengths = torch.tensor([len(sequence) for sequence in sequences])
        ends = lengths.cumsum(0)
        logits = model(
            torch.tensor([token for sequence in sequences for token in sequence], device=device),
            torch.cat([torch.arange(length) for length in lengths.tolist()]).to(device),
            torch.nn.functional.pad(ends, (1, 0)).to(torch.int32),
            torch.empty(0, 588, device=device),
            torch.empty(0, 3, dtype=torch.int64),
            torch.empty(0, dtype=torch.int64),
            target_rows=ends - 1,
        )
        for sequence, token in zip(sequences, logits[0].argmax(-1).tolist(), strict=True):
            sequence.append(token)
    return [sequence[len(prompt) :] for sequence, prompt in zip(sequences, prompts, strict=True)]


def timed(call: Callable[[], list[list[int]]], repeats: int = 3) -> tuple[float, list[list[int]]]:
    """Seconds of a call, the least of some, and its value."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        value = call()
        seconds.append(time.perf_counter() - began)
    return min(seconds), value


def _number(settings: dict[str, str], key: str) -> int:
    number = whole(settings[key])
    if not number:
        raise InputError(f"{key}={settings[key]} is not a number of at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
