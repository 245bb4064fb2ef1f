"""The typed recipe: one frozen dataclass tree, one YAML file, dotted overrides (`optimizer.lr=2e-5`).

A recipe file may name another one with `extends: base.yaml`; its own values win. The resolved recipe is written into
the run folder, and a run can be started from that file alone.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from onevision.errors import InputError
from onevision.files import write_text
from onevision.recipe_data import DATA_CHOICES, ConceptRecipe, DataRecipe, data_problems
from onevision.recipe_evaluation import EvaluationRecipe, evaluation_problems
from onevision.recipe_training import (
    NOT_OFFERED,
    TRAINING_CHOICES,
    ModelRecipe,
    OptimizerRecipe,
    ParallelRecipe,
    PerformanceRecipe,
    ProfileRecipe,
    TrainRecipe,
    performance_problems,
    precision_problems,
)
from onevision.yaml_text import check_yaml, first_line, read_yaml


@dataclass(frozen=True)
class CheckpointRecipe:
    """How often the state is saved, and how many checkpoints are kept."""

    interval: int = 100  # steps
    keep: int = 2
    asynchronous: bool = True
    # Folder on storage of each node (/dev/shm/NAME) for copies that only a restart on the same nodes can use; "": none.
    local: str = ""
    local_interval: int = 10  # steps


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a result."""

    name: str = "run"
    description: str = ""  # what a reader of the released model should know, in sentences: stands in its model card
    stage: str = "stage1_5"  # stage0 (import or initialise), stage1, stage1_5, stage2
    output: str = ""  # run folder
    seed: int = 1234
    data: DataRecipe = field(default_factory=DataRecipe)
    concepts: ConceptRecipe = field(default_factory=ConceptRecipe)
    model: ModelRecipe = field(default_factory=ModelRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    train: TrainRecipe = field(default_factory=TrainRecipe)
    parallel: ParallelRecipe = field(default_factory=ParallelRecipe)
    performance: PerformanceRecipe = field(default_factory=PerformanceRecipe)
    profile: ProfileRecipe = field(default_factory=ProfileRecipe)
    checkpoint: CheckpointRecipe = field(default_factory=CheckpointRecipe)
    evaluation: EvaluationRecipe = field(default_factory=EvaluationRecipe)


CHOICES: dict[str, tuple[str, ...]] = {
    "stage": ("stage0", "stage1", "stage1_5", "stage2"),
    **DATA_CHOICES,
    **TRAINING_CHOICES,
}
LONGEST_TEXT = 4096  # characters of a value; so long may a path be
MODULES = ("vision", "adapter", "language")
ENTRY_LISTS = ("data.mixture",)  # keys whose value is a list of sections

_MINIMUM: dict[str, float] = {
    "data.sequence_length": 16,
    "data.min_pixels": 28 * 28,
    "data.max_pixels": 28 * 28,
    "data.shard_samples": 1,
    "data.min_caption": 0,
    "data.max_caption": 1,
    "data.reject_threshold": 0,
    "data.max_patches": 0,
    "data.max_attention_cost": 0,
    "data.pack_part_samples": 1,
    "data.workers": 0,
    "data.prefetch_packs": 1,
    "concepts.min_word_count": 1,
    "concepts.min_bigram_pmi": 0,
    "concepts.min_title_views": 0,
    "concepts.encoder_batch": 1,
    "concepts.top_k": 1,
    "concepts.samples": 0,
    "concepts.threshold": 1,
    "concepts.duplicate_bits": -1,
    "model.recompute_layers": 1,
    "optimizer.lr": 0,
    "optimizer.min_lr": 0,
    "optimizer.weight_decay": 0,
    "optimizer.eps": 0,
    "optimizer.clip_grad": 0,
    "optimizer.warmup_fraction": 0,
    "train.steps": 1,
    "train.global_batch_size": 1,
    "train.micro_batch_size": 1,
    "train.log_interval": 1,
    "train.peak_tflops": 0,
    "train.fp8_bf16_layers": 0,
    "train.threads": 0,
    "train.hang_seconds": 0,
    "train.spike_factor": 0,
    "train.spike_window": 1,
    "train.max_skipped_steps": 0,
    "parallel.tensor": 1,
    "parallel.context": 1,
    "parallel.pipeline": 1,
    "parallel.virtual_pipeline": 1,
    "performance.bucket_size": 0,
    "profile.first_step": 0,
    "profile.steps": 1,
    "checkpoint.interval": 1,
    "checkpoint.keep": 1,
    "checkpoint.local_interval": 1,
    "evaluation.max_new_tokens": 1,
    "evaluation.batch_tokens": 1,
    "evaluation.interval": 0,
    "evaluation.batch_size": 1,
    "evaluation.retries": 0,
}

_MAXIMUM: dict[str, float] = {
    "train.threads": 4096,
    "train.hang_seconds": 1e9,  # 30 years; what waits with it counts in 64 bits of nanoseconds
}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `key=value` overrides, check it.

    Raises:
        InputError: unknown key (with the nearest known one), impossible value, missing or unreadable file.
    """
    tree = _read(Path(path), seen=())
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InputError(f"override {override!r} is not of the form key=value")
        _check_key(key, f"override {override!r}")
        try:
            check_yaml(value)
            change = OmegaConf.from_dotlist([override if value else f"{key}=''"])
            _check_keys(change, f"override {override!r}")
            tree = OmegaConf.merge(tree, change)
        except (OmegaConfBaseException, YAMLError, ValueError, OverflowError) as error:
            raise InputError(f"override {override!r}: {first_line(error)}") from None
    return _build(tree, str(path))


def recipe_from(values: dict[str, Any]) -> Recipe:
    """Recipe of a plain (nested) dictionary, checked like a file.

    Raises:
        InputError: as `load_recipe`.
    """
    tree = OmegaConf.create(values)
    _check_keys(tree, "recipe")
    return _build(tree, "recipe")


def recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values."""
    return asdict(recipe)


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe as YAML."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.structured(recipe)))


@cache
def known_keys(node: Any = Recipe, prefix: str = "") -> tuple[str, ...]:
    """All dotted keys of the tree, sections included. Those of a list's entries have no number: data.mixture.weight."""
    keys: list[str] = []
    types = get_type_hints(node)
    for entry in fields(node):
        key = f"{prefix}{entry.name}"
        keys.append(key)
        kind = types[entry.name]
        section = next((part for part in (kind, *get_args(kind)) if is_dataclass(part)), None)
        if section is not None:
            keys += known_keys(section, f"{key}.")  # type: ignore[arg-type]  # classes are hashable
    return tuple(keys)


def _read(path: Path, seen: tuple[Path, ...]) -> Any:
    if path in seen:
        raise InputError(f"{path}: recipes extend each other in a circle")
    tree = read_yaml(path, "recipe")
    if not isinstance(tree, DictConfig):
        raise InputError(f"recipe {path} is not a mapping of keys to values")
    parent = tree.pop("extends", None)
    if not isinstance(parent, str | None):
        raise InputError(f"{path}: extends={parent!r} is not the name of a recipe file")
    _check_keys(tree, str(path))
    return OmegaConf.merge(_read(path.parent / parent, (*seen, path)), tree) if parent else tree


def _check_keys(tree: Any, where: str) -> None:
    flat = OmegaConf.to_container(tree)

    def walk(node: Any, prefix: str) -> None:
        for name, value in node.items():
            key = f"{prefix}{name}"
            _check_key(key, where)
            if key in ENTRY_LISTS:
                if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
                    raise InputError(f"{where}: {key} is not a list of entries with values of their own")
                for entry in value:
                    walk(entry, f"{key}.")
            elif isinstance(value, dict) and value:
                walk(value, f"{key}.")
            elif any(known.startswith(f"{key}.") for known in known_keys()):
                if value != {}:
                    raise InputError(f"{where}: {key}={value!r} is not a section with values of its own")
            elif value == {} or (isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value)):
                raise InputError(f"{where}: {key}={value!r} has a mapping or a list where a single value belongs")

    walk(flat, "")


def _check_key(key: str, where: str) -> None:
    known = known_keys()
    if key in known:
        return
    if key in NOT_OFFERED:
        raise InputError(f"{where}: {key} is no setting: {NOT_OFFERED[key]}")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    raise InputError(f"{where}: unknown key {key!r}; the nearest is {near[0]!r}")


@cache
def _schema() -> Any:
    return OmegaConf.structured(Recipe)


def _build(tree: Any, where: str) -> Recipe:
    try:
        merged = OmegaConf.merge(_schema(), tree)
        recipe = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise InputError(f"{where}: {key + ': ' if key else ''}{first_line(error)}") from None
    assert isinstance(recipe, Recipe)
    problems = recipe_problems(recipe)
    if problems:
        raise InputError(f"{where}: " + "; ".join(problems))
    return recipe


def _value(recipe: Recipe, key: str) -> Any:
    node: Any = recipe
    for name in key.split("."):
        node = getattr(node, name)
    return node


def recipe_problems(recipe: Recipe) -> list[str]:
    """Everything wrong with the values of a recipe, each naming the key, the value and what is allowed."""
    if problems := _odd_values(recipe_dict(recipe), ""):
        return problems
    problems = [
        f"{key}={_value(recipe, key)!r} is not one of {', '.join(choices)}"
        for key, choices in CHOICES.items()
        if _value(recipe, key) not in choices
    ]
    for key, minimum in _MINIMUM.items():
        value = _value(recipe, key)
        if not value >= minimum:  # also refuses NaN
            problems.append(f"{key}={value} must be at least {minimum}")
    for key, maximum in _MAXIMUM.items():
        if _value(recipe, key) > maximum:
            problems.append(f"{key}={_value(recipe, key)} must be at most {maximum:.0f}")
    if not -1 <= recipe.concepts.min_score <= 1:
        problems.append(f"concepts.min_score={recipe.concepts.min_score} is not between -1 and 1")
    for name in recipe.model.freeze:
        if name not in MODULES:
            problems.append(f"model.freeze: {name!r} is not one of {', '.join(MODULES)}")
    if set(MODULES) <= set(recipe.model.freeze):
        problems.append("model.freeze names every part: nothing would be trained")
    data, optimizer, train = recipe.data, recipe.optimizer, recipe.train
    problems += data_problems(data)
    if optimizer.min_lr > optimizer.lr:
        problems.append(f"optimizer.min_lr={optimizer.min_lr} is above optimizer.lr={optimizer.lr}")
    shares = (
        "optimizer.warmup_fraction",
        "data.reject_threshold",
        "data.hw_decoder_load",
        "concepts.duplicate_similarity",
    )
    for key in ("optimizer.beta1", "optimizer.beta2", *shares):
        if not 0 <= _value(recipe, key) <= 1 or (key.startswith("optimizer.beta") and _value(recipe, key) == 1):
            problems.append(f"{key}={_value(recipe, key)} is not between 0 and 1")
    if train.global_batch_size % train.micro_batch_size:
        problems.append(
            f"train.global_batch_size={train.global_batch_size} is not a multiple of "
            f"train.micro_batch_size={train.micro_batch_size}"
        )
    delayed = train.precision == "fp8" and train.fp8_recipe == "delayed"
    for key, on in (("context", recipe.parallel.context > 1), ("split_vision", recipe.parallel.split_vision)):
        if delayed and on:
            problems.append(
                f"parallel.{key}={str(getattr(recipe.parallel, key)).lower()}: the maxima of delayed FP8 are those of "
                "all ranks of a copy, of which one without an image asks for none: use train.fp8_recipe=tensorwise"
            )
    if recipe.checkpoint.local and delayed:
        problems.append(
            f"checkpoint.local={recipe.checkpoint.local}: the scales of delayed FP8 are not part of a local copy: use "
            "train.fp8_recipe=tensorwise, or no local copies"
        )
    problems += precision_problems(recipe.model, train, optimizer, data.sequence_length)
    problems += performance_problems(recipe.model, train, recipe.parallel, recipe.performance)
    problems += evaluation_problems(recipe.evaluation, max(1, recipe.checkpoint.interval))
    return problems


def _odd_values(node: Any, key: str) -> list[str]:
    """Numbers and texts that no setting can have, and that what reads them later may stumble over."""
    if isinstance(node, dict):
        return [line for name, value in node.items() for line in _odd_values(value, f"{key}.{name}" if key else name)]
    if isinstance(node, list):
        return [line for number, value in enumerate(node) for line in _odd_values(value, f"{key}[{number}]")]
    if isinstance(node, float) and math.isinf(node):
        return [f"{key}={node} is not a finite number"]
    if isinstance(node, int) and not -(2**63) <= node < 2**63:
        return [f"{key} has {node.bit_length()} bits: a whole number has at most 63 and a sign"]
    if isinstance(node, str) and not node.isprintable() and not key.startswith("concepts.templates"):
        return [f"{key}={node!r} has a character that cannot be printed"]
    if isinstance(node, str) and len(node) > LONGEST_TEXT:
        return [f"{key} has {len(node)} characters: a text has at most {LONGEST_TEXT}"]
    return []


def layout_problems(recipe: Recipe, world_size: int) -> list[str]:
    """What keeps a recipe from running on `world_size` ranks, each naming the value and what to change."""
    parallel, train = recipe.parallel, recipe.train
    model_ranks = parallel.model_ranks
    if world_size % model_ranks:  # how many ranks share the batch cannot be said
        return [
            f"parallel.tensor={parallel.tensor} x parallel.context={parallel.context} x parallel.pipeline="
            f"{parallel.pipeline} does not divide {world_size} ranks: choose sizes whose product does, or another "
            "number of nodes (without Slurm: of processes=N)"
        ]
    data_ranks = world_size // model_ranks
    packs = train.micro_batch_size * data_ranks
    if train.global_batch_size % packs:
        below = train.global_batch_size // packs * packs
        choices = " or ".join(str(size) for size in (below, below + packs) if size)
        return [
            f"train.global_batch_size={train.global_batch_size} is not a multiple of train.micro_batch_size="
            f"{train.micro_batch_size} x {data_ranks} data-parallel ranks: set it to {choices}, or use other nodes"
        ]
    micro_batches = train.global_batch_size // packs
    if parallel.virtual_pipeline > 1 and micro_batches % parallel.pipeline:
        return [
            f"parallel.virtual_pipeline={parallel.virtual_pipeline} needs micro-batches by the stage: {micro_batches} "
            f"(train.global_batch_size={train.global_batch_size} / {packs} packs at a time) is not a multiple of "
            f"parallel.pipeline={parallel.pipeline}: change one of them, or set parallel.virtual_pipeline=1"
        ]
    return []
