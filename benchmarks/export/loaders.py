"""Logits and greedy answers of exported folders in every loader that is installed, beside those of the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import Row
from onevision.convert.exporting import export
from onevision.convert.mapping import EMBEDDING, HEAD, tensor_groups
from onevision.convert.parity import Prompt, check_parity
from onevision.convert.tensors import TensorInfo, write_megatron
from onevision.corpus.reader import CorpusReader
from onevision.data.patcher import image_patcher
from onevision.data.tokenizer import load_tokenizer
from onevision.demo.tokenizer import build_tokenizer
from onevision.evaluation.accuracy import prompt, questions
from onevision.model.device import Ranks, start
from onevision.model.presets import PRESETS, Architecture
from onevision.recipe import DataRecipe, load_recipe
from onevision.training.checkpoint_files import commit, step_folder

QUESTIONS = 12  # of a run's held-out corpus
TINY = PRESETS["tiny"]


def rows(root: Path, run: Path | None) -> tuple[list[Row], dict[str, str]]:
    """The rows of all folders, and of loaders that are not installed the reason."""
    start(Ranks(), seed=0)
    data = DataRecipe(tokenizer=str(small_tokenizer(root)))
    found: list[Row] = []
    missing: dict[str, str] = {}
    for name, tied in (("own head", False), ("tied head", True)):
        checkpoint = random_checkpoint(root / name.replace(" ", "-"), TINY, tied)
        folder = export(checkpoint, data, root / f"{checkpoint.name}-hf").folder
        report = check_parity(checkpoint, folder)
        found, missing = found + _rows(f"random weights, {name}", report), report["not_checked"]
    if run is not None:
        recipe = load_recipe(run / "recipe.yaml", [])
        made = export(run, recipe.data, root / "run-hf")
        checkpoint = step_folder(run, made.summary["step"])
        more = {"held-out questions, padded left": held_out(recipe)} if recipe.evaluation.corpus else {}
        found += _rows(f"{run}, step {made.summary['step']}", check_parity(checkpoint, made.folder, more=more))
    return found, missing


def _rows(model: str, report: dict[str, Any]) -> list[Row]:
    """The rows of a parity report."""
    found = []
    for row in report["rows"]:
        versions = report["loaders"].get(row["consumer"], {})
        package = "nemo-automodel" if row["consumer"] == "nemo-automodel" else "transformers"
        loader = f"{package} {versions[package]}" if versions else row["consumer"]
        goal = "< 1e-4" if row["same_tokens"] is None else "< 1e-4, the same tokens generated"
        place = f"{loader}; {model}"
        difference = row["difference"]
        found.append(
            Row(place, row["case"], difference, "in a logit", "largest logit", row["largest"], goal, row["met"])
        )
    return found


def small_tokenizer(root: Path) -> Path:
    """The folder of a tokenizer of some hundred tokens."""
    source = root / "records"
    source.mkdir(parents=True, exist_ok=True)
    messages = [{"role": role, "content": [{"type": "text", "text": "a word"}]} for role in ("user", "assistant")]
    (source / "records.jsonl").write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    return build_tokenizer(source, root / "tokenizer", vocab_size=300).folder


def random_checkpoint(run: Path, architecture: Architecture, tied: bool = False) -> Path:
    """A run folder with random weights in FP32, no bias zero and no norm one; `tied`: the head is the embedding."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for group in tensor_groups(architecture):
        value = torch.randn(group.shape, generator=generator)
        if len(group.shape) > 1:
            value *= group.shape[1] ** -0.5
        elif group.key.endswith("norm.weight") or group.key.endswith("norm_weight"):
            value = 1 + 0.2 * value
        else:
            value *= 0.2
        tensors[group.key] = value
    if tied:
        keys = {name: group.key for group in tensor_groups(architecture) for name, _ in group.sources}
        tensors[keys[HEAD]] = tensors[keys[EMBEDDING]]
    temporary = step_folder(run, 0).with_name(".step_00000000.tmp")
    temporary.mkdir(parents=True)
    info = {key: TensorInfo(tuple(value.shape), value.dtype) for key, value in tensors.items()}
    commit(temporary, run, 0, architecture, keep=1, digests=write_megatron(temporary, info, tensors.__getitem__))
    return run


def held_out(recipe: Any) -> list[Prompt]:
    """The first questions of the run's held-out corpus, each kind in turn, as the model is asked them."""
    corpus, tokenizer = CorpusReader(recipe.evaluation.corpus), load_tokenizer(recipe.data.tokenizer)
    patcher = image_patcher(recipe.data, torch.device("cpu"), torch.float32)
    asked: dict[str, list[Any]] = {}
    for question in questions(corpus):
        asked.setdefault(question.category, []).append(question)
    chosen = [row[number] for number in range(QUESTIONS) for row in asked.values() if number < len(row)][:QUESTIONS]
    made = [prompt(question, corpus, tokenizer, recipe.data, patcher) for question in chosen]
    return [
        Prompt(torch.from_numpy(each.ids).long(), each.patches.float(), torch.from_numpy(each.grid_thw))
        for each in made
    ]
