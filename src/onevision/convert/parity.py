"""Does an exported folder compute what its checkpoint computes, in the loaders that others use?

Random prompts over the whole vocabulary, with random patches for images, go through the Megatron model in FP32 and
through each loader in a process of its own. `parity.json` and `parity.txt` beside the weights say what came out, and
which loaders are not installed here.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from onevision.convert import consumer
from onevision.convert.exporting import architecture_of
from onevision.convert.importing import import_exported
from onevision.errors import DataError
from onevision.files import read_json, write_json, write_text
from onevision.machine import version
from onevision.model.configs import language_config
from onevision.model.device import Ranks, runtime_context, start
from onevision.model.onevision import OneVisionModel
from onevision.model.presets import PATCH_VALUES, SPATIAL_MERGE_SIZE, Architecture
from onevision.model.specs import backend_modules
from onevision.recipe import ModelRecipe, Recipe, TrainRecipe
from onevision.training.checkpoint import load_model
from onevision.training.checkpoint_files import find

TOLERANCE = 1e-4  # of logits, FP32
NEW_TOKENS = 6  # that are generated after each prompt and compared
SEED = 20
OWN = "onevision (make import)"
CONSUMERS = Path(".venv-consumers")  # in the working folder; `make consumers` makes it
REPORT, TABLE = "parity.json", "parity.txt"
MERGED = SPATIAL_MERGE_SIZE**2  # patches of an image token
# (rows, columns) in patches of the images of each prompt of a case; text stands before, between and behind them.
CASES: dict[str, tuple[tuple[tuple[int, int], ...], ...]] = {
    "one image": (((4, 6),),),
    "several images": (((4, 6), (2, 8), (6, 2)),),
    "batch, padded left": (((2, 4), (6, 4)), (), ((4, 2),)),
    "batch, padded right": (((2, 4), (6, 4)), (), ((4, 2),)),
    "text only": ((),),
}


@dataclass(frozen=True)
class Consumer:
    """A loader, and the Python that has it."""

    name: str
    kind: str  # of onevision.convert.consumer
    python: Path


@dataclass(frozen=True)
class Prompt:
    """Token ids int64 [L], and patches [P, 588] and grid_thw int64 [I, 3] of the images in it."""

    ids: Tensor
    patches: Tensor
    grid_thw: Tensor


@dataclass(frozen=True)
class Answers:
    """What a model makes of the prompts of a case: logits [L, V] of each, and the tokens [N] that it goes on with."""

    logits: list[Tensor]
    new_tokens: list[Tensor] | None


@dataclass(frozen=True)
class Comparison:
    """A case in a loader beside the Megatron model; `same_tokens` None where the loader does not generate."""

    consumer: str
    case: str
    difference: float  # the largest of any logit
    largest: float  # logit of the Megatron model
    same_tokens: bool | None

    @property
    def met(self) -> bool:
        """Whether it is as it should be."""
        return self.difference < TOLERANCE and self.same_tokens is not False


def consumers() -> tuple[list[Consumer], dict[str, str]]:
    """The loaders that are installed, and of the others why they are not checked."""
    found, missing = [], {}
    if version("transformers"):
        found.append(Consumer("transformers", "transformers", Path(sys.executable)))
    else:
        missing["transformers"] = f"not installed in {sys.prefix}"
    for name, kind in (("transformers4", "transformers"), ("nemo-automodel", "nemo-automodel")):
        python = (CONSUMERS / name / "bin" / "python").absolute()
        if python.exists():
            found.append(Consumer(name, kind, python))
        else:
            missing[name] = f"{CONSUMERS / name} does not exist: make consumers"
    return found, missing


def make_prompts(vocab_size: int, image_token: int, special: Sequence[int] = ()) -> dict[str, list[Prompt]]:
    """The prompts of every case, a function of these values alone. Tokens are drawn from the whole vocabulary, rows
    that no token has included, but for the image token and other `special` ones."""
    generator = torch.Generator().manual_seed(SEED)
    allowed = torch.tensor(sorted(set(range(vocab_size)) - {image_token, *special}))

    def text(count: int) -> Tensor:
        return allowed[torch.randint(len(allowed), (count,), generator=generator)]

    made: dict[str, list[Prompt]] = {}
    for case, prompts in CASES.items():
        made[case] = []
        for number, grids in enumerate(prompts):
            parts = [text(5 + 3 * number)]
            for height, width in grids:
                parts += [torch.full((height * width // MERGED,), image_token), text(3)]
            grid_thw = torch.tensor([(1, *grid) for grid in grids], dtype=torch.int64).reshape(-1, 3)
            patches = torch.randn(int(grid_thw.prod(1).sum()), PATCH_VALUES, generator=generator)
            made[case].append(Prompt(torch.cat(parts), patches, grid_thw))
    return made


def padded(case: str, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """What the loaders are given: input_ids and attention_mask [B, L], and the images of all prompts if there are."""
    length = max(len(prompt.ids) for prompt in prompts)
    ids = torch.zeros(len(prompts), length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, _place(case, prompt, length)], mask[row, _place(case, prompt, length)] = prompt.ids, 1
    images: dict[str, Tensor] = {}
    if any(len(prompt.grid_thw) for prompt in prompts):
        images["pixel_values"] = torch.cat([prompt.patches for prompt in prompts])
        images["image_grid_thw"] = torch.cat([prompt.grid_thw for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask} | images


def _place(case: str, prompt: Prompt, length: int) -> slice:
    """Where the tokens of a prompt stand among `length`."""
    count = len(prompt.ids)
    return slice(0, count) if case.endswith("right") else slice(length - count, length)


@torch.no_grad()
def model_answers(model: OneVisionModel, prompts: Sequence[Prompt], image_token: int) -> Answers:
    """What the Megatron model makes of prompts, packed one behind the other; greedy, and without a cache."""
    device, rows = next(model.parameters()).device, [prompt.ids for prompt in prompts]
    patches = torch.cat([prompt.patches for prompt in prompts]).to(device)
    grid_thw = torch.cat([prompt.grid_thw for prompt in prompts])

    def logits() -> list[Tensor]:
        lengths = torch.tensor([len(row) for row in rows])
        starts = lengths.cumsum(0) - lengths
        # Places in the prompts alone: an image token that was generated is a token like others.
        slots = [
            start + (prompt.ids == image_token).nonzero().squeeze(1)
            for start, prompt in zip(starts, prompts, strict=True)
        ]
        with runtime_context(device):
            found = model(
                torch.cat(rows).to(device),
                torch.cat([torch.arange(len(row)) for row in rows]).to(device),
                torch.cat([starts, lengths.sum()[None]]).to(torch.int32),
                patches,
                grid_thw,
                torch.cat(slots),
            )
        return list(found[0].float().cpu().split(lengths.tolist()))

    first = last = logits()
    for number in range(NEW_TOKENS):
        last = logits() if number else first
        rows = [torch.cat([row, scores[-1].argmax()[None]]) for row, scores in zip(rows, last, strict=True)]
    return Answers(first, [row[len(prompt.ids) :] for row, prompt in zip(rows, prompts, strict=True)])


def consumer_answers(
    user: Consumer, folder: Path, cases: dict[str, list[Prompt]], threads: int, device: str
) -> tuple[dict[str, Answers], dict[str, str]]:
    """What a loader makes of the cases, and its versions.

    Raises:
        DataError: it ended with an error; the line has the last words of it.
    """
    with tempfile.TemporaryDirectory(prefix="onevision-parity-") as name:
        work = Path(name)
        given = {f"{case}.{key}": value for case, row in cases.items() for key, value in padded(case, row).items()}
        save_file(given, work / "prompts.safetensors")
        command = [str(user.python), consumer.__file__, user.kind, str(folder.absolute()), "prompts.safetensors"]
        command += ["answers.safetensors", f"new_tokens={NEW_TOKENS}", f"threads={threads}", f"device={device}"]
        # The code beside the weights is copied into a cache, which goes with the folder; no hub is asked.
        environment = os.environ | {"HF_HOME": name, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)
        ended = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            words = ended.stderr.strip().splitlines()[-1:] or [f"exit code {ended.returncode}"]
            raise DataError(f"{folder} could not be used by {user.name}: {words[0]}")
        left = load_file(work / "answers.safetensors")
        with safe_open(work / "answers.safetensors", framework="pt") as file:
            versions = dict(file.metadata())
    answers = {}
    for case, prompts in cases.items():
        logits = left[f"{case}.logits"]
        rows = [logits[n, _place(case, prompt, logits.shape[1])] for n, prompt in enumerate(prompts)]
        new_tokens = left.get(f"{case}.new_tokens")
        answers[case] = Answers(rows, None if new_tokens is None else list(new_tokens))
    return answers, versions


def compare(name: str, case: str, found: Answers, expected: Answers) -> Comparison:
    """A case in a loader beside the Megatron model."""
    pairs = list(zip(found.logits, expected.logits, strict=True))
    for ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise DataError(f"{name}, {case}: logits {list(ours.shape)} instead of {list(theirs.shape)}")
    same = None
    if found.new_tokens is not None and expected.new_tokens is not None:
        same = all(torch.equal(a, b) for a, b in zip(found.new_tokens, expected.new_tokens, strict=True))
    difference = max(float((ours - theirs).abs().nan_to_num(float("inf")).max()) for ours, theirs in pairs)
    return Comparison(name, case, difference, max(float(theirs.abs().max()) for _, theirs in pairs), same)


def check_parity(
    checkpoint: Path, folder: Path, threads: int = 0, more: Mapping[str, list[Prompt]] = MappingProxyType({})
) -> dict[str, Any]:
    """Compare an exported folder with its checkpoint in every loader that is installed; writes the report. `more`
    cases may be added to those of `CASES`.

    The report: tolerance, checkpoint, dtype of the weights, rows, loaders with their versions, and those not checked
    with the reason. `met` says whether all rows are.

    Raises:
        DataError: a loader could not use the folder.
    """
    step, content = find(checkpoint)
    architecture = architecture_of(content["architecture"])
    config = read_json(folder / "config.json")
    image_token = config["image_token_id"]
    special = [config[key] for key in ("video_token_id", "vision_start_token_id", "vision_end_token_id")]
    cases = make_prompts(architecture.language.vocab_size, image_token, [token for token in special if token])
    cases |= more
    device = start(Ranks(), SEED)
    threads = threads or torch.get_num_threads()
    expected = _answers_of(step, content, architecture, device, cases, image_token)

    rows: list[Comparison] = []
    versions: dict[str, dict[str, str]] = {}
    again = folder.with_name(f".{folder.name}.parity")  # beside it: as large as the weights
    shutil.rmtree(again, ignore_errors=True)  # of a comparison that was killed
    try:
        recipe = Recipe(model=ModelRecipe(preset=architecture.name), train=TrainRecipe(precision="fp32"))
        import_exported(folder, again, recipe)
        found = _answers_of(*find(again), architecture, device, cases, image_token)
    finally:
        shutil.rmtree(again, ignore_errors=True)
    rows += [compare(OWN, case, found[case], expected[case]) for case in cases]
    installed, missing = consumers()
    for user in installed:
        found, versions[user.name] = consumer_answers(user, folder, cases, threads, device.type)
        rows += [compare(user.name, case, found[case], expected[case]) for case in cases]
    report = {
        "checkpoint": content["fingerprint"],
        "step": content["step"],
        "dtype_of_weights": config["torch_dtype"],
        "computed_in": "float32",
        "device": device.type,
        "tolerance": TOLERANCE,
        "met": all(row.met for row in rows),
        "rows": [asdict(row) | {"met": row.met} for row in rows],
        "loaders": versions,
        "not_checked": missing,
    }
    write_json(folder / REPORT, report)
    write_text(folder / TABLE, table(report))
    return report


def _answers_of(
    folder: Path,
    content: dict[str, Any],
    architecture: Architecture,
    device: torch.device,
    cases: dict[str, list[Prompt]],
    image_token: int,
) -> dict[str, Answers]:
    """What the Megatron model of a checkpoint makes of the cases, in FP32."""
    with runtime_context(device):
        config = language_config(architecture, ModelRecipe(), torch.float32, initialize=False)
        model = OneVisionModel(architecture, config, backend_modules(device, "torch")).to(device)
        load_model(folder, content, model)
    model.eval()
    return {case: model_answers(model, prompts, image_token) for case, prompts in cases.items()}


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    shown = Table(title=f"logits of step {report['step']}, {report['computed_in']}, tolerance {report['tolerance']:g}")
    for column in ("loader", "prompts", "largest difference", "largest logit", "same tokens", "met"):
        shown.add_column(column)
    words = {True: "yes", False: "no", None: ""}
    for row in report["rows"]:
        values = f"{row['difference']:.1e}", f"{row['largest']:.1f}", words[row["same_tokens"]], words[row["met"]]
        shown.add_row(row["consumer"], row["case"], *values)
    text = io.StringIO()
    console = Console(file=text, width=120)
    console.print(shown)
    for name, found in report["loaders"].items():
        console.print(f"{name}: {', '.join(f'{key} {value}' for key, value in found.items())}", soft_wrap=True)
    for name, reason in report["not_checked"].items():
        console.print(f"not checked: {name} ({reason})", soft_wrap=True)
    return text.getvalue()
