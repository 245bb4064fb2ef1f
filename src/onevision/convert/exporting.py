"""Export of a checkpoint to the Hugging Face layout of LLaVA-OneVision-1.5, one tensor in memory at a time."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from onevision.convert.ahead import ahead
from onevision.convert.hf_config import (
    CONFIGURATION_CODE,
    MODELING_CODE,
    PROCESSING_CODE,
    chat_template,
    generation_config,
    model_config,
    preprocessor_config,
    token_ids,
    tokenizer_config,
    video_preprocessor_config,
)
from onevision.convert.mapping import TensorGroup, tensor_groups
from onevision.convert.tensors import (
    INDEX_FILE,
    MegatronTensors,
    TensorInfo,
    check_shapes,
    require_space,
    shards_of,
    write_safetensors,
)
from onevision.data.tokenizer import Tokenizer, load_tokenizer
from onevision.errors import DataError, InputError
from onevision.files import refuse_loss, write_json, write_text
from onevision.fingerprint import Digests, file_digest
from onevision.model.presets import Architecture, LanguageArchitecture, VisionArchitecture
from onevision.progress import Progress
from onevision.recipe import DataRecipe
from onevision.steps import StepResult, run_step
from onevision.training.checkpoint_files import check_digest, find, verify_sizes

SHARD_BYTES = 5_000_000_000
# Taken along from the tokenizer's folder where they are there.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
# Written beside the weights.
SETTINGS = (
    INDEX_FILE,
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
)
RECORDS = ("step.json", "parity.json", "parity.txt")  # step.json says of which checkpoint
# What `trust_remote_code` loads.
REMOTE = (CONFIGURATION_CODE, MODELING_CODE, PROCESSING_CODE)
CODE = tuple(Path(__file__).parent / "remote" / f"{name}.py" for name in REMOTE)


def export(checkpoint: str | Path, data: DataRecipe, output: str | Path, shard_bytes: int = SHARD_BYTES) -> StepResult:
    """Write a checkpoint (its folder, or a run folder) as a `LLaVAOneVision1_5_ForConditionalGeneration` directory.

    `data` tells the tokenizer's folder and the pixel limits. Tensors keep the checkpoint's dtype. A safetensors
    file has at most `shard_bytes`, unless a single group of tensors is larger. Summary: architecture, step, dtype,
    tensors, parameters, bytes, shards.

    The checkpoint is compared with its digests while it is read. Of a run folder a broken one is skipped with a
    message, and the one before it is taken.

    Raises:
        InputError: no checkpoint, a tokenizer that does not fit, tensors that are not those of the architecture, or
            `output` holds something besides an earlier export.
        DataError: the checkpoint is broken.
        StorageError: not enough room; an earlier export is untouched.
    """
    found = find(checkpoint, verify_sizes)
    try:
        return _export(*found, data, output, shard_bytes)
    except DataError:
        return _export(*find(checkpoint), data, output, shard_bytes)  # says what is broken, or names the one before it


def _export(
    folder: Path, content: dict[str, Any], data: DataRecipe, output: str | Path, shard_bytes: int
) -> StepResult:
    architecture = architecture_of(content["architecture"])
    tokenizer = load_tokenizer(data.tokenizer)
    if tokenizer.vocab_size > architecture.language.vocab_size:
        raise InputError(
            f"{tokenizer.path} has {tokenizer.vocab_size} tokens, the model of {folder} has "
            f"{architecture.language.vocab_size}: name the tokenizer that the model was trained with"
        )
    inputs = export_inputs(content, data, shard_bytes)

    def build(target: Path) -> dict[str, Any]:
        refuse_loss(Path(output), _added(Path(output)))
        for name in content["files"]:
            if not name.endswith(".distcp"):  # pickles among them, which are compared before they are loaded
                check_digest(folder, content, name, file_digest(folder / name))
        store = MegatronTensors(folder)
        groups = tensor_groups(architecture)
        check_shapes(folder, {group.key: group.shape for group in groups}, store.info)
        names = store.files(group.key for group in groups)
        names += [name for name in content["files"] if name.endswith(".distcp") and name not in names]
        with Digests([folder / name for name in names]) as digests:
            weights = _write_weights(target, store, groups, shard_bytes, digests)
            for path, digest in digests.result().items():
                check_digest(folder, content, path.name, digest)
        _write_config(target, architecture, tokenizer, data, store.info)
        for path in _copied(data):
            shutil.copyfile(path, target / path.name)
        return {"architecture": architecture.name, "step": content["step"], **weights}

    return run_step("export", output, inputs, build)


def export_inputs(content: dict[str, Any], data: DataRecipe, shard_bytes: int = SHARD_BYTES) -> dict[str, Any]:
    """What an export is made of, as its step.json keeps it; `content` is that of checkpoint.json."""
    return {
        "checkpoint": content["fingerprint"],
        "copied": {path.name: file_digest(path) for path in _copied(data)},
        "min_pixels": data.min_pixels,
        "max_pixels": data.max_pixels,
        "shard_bytes": shard_bytes,
    }


def _copied(data: DataRecipe) -> list[Path]:
    return [path for name in COPIED if (path := Path(data.tokenizer) / name).exists()] + list(CODE)


def _added(folder: Path) -> list[str]:
    """What in the folder of an earlier export no export writes: a person's, such as a model card."""
    ours = {*SETTINGS, *RECORDS, *COPIED, *(path.name for path in CODE)}
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if name not in ours and not re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]


def architecture_of(values: dict[str, Any]) -> Architecture:
    """The architecture that a checkpoint's `checkpoint.json` describes."""
    return Architecture(
        values["name"], VisionArchitecture(**values["vision"]), LanguageArchitecture(**values["language"])
    )


def _write_weights(
    target: Path, store: MegatronTensors, groups: Sequence[TensorGroup], shard_bytes: int, digests: Digests
) -> dict[str, Any]:
    sizes = [store.info[group.key].nbytes for group in groups]
    require_space(target, sum(sizes))
    shards = shards_of(sizes, shard_bytes)
    weight_map: dict[str, str] = {}
    with Progress("export", total=len(groups), unit="tensors") as progress, ExitStack() as stack:

        def read(group: TensorGroup) -> list[Tensor]:
            tensor = store.read(group.key)
            digests.read(tensor.nbytes)
            return list(group.split(tensor).values())

        def tensors(members: Sequence[int]) -> Iterator[Tensor]:
            for _ in members:
                yield from next(parts)
                progress.advance()

        makers = [(size, partial(read, group)) for size, group in zip(sizes, groups, strict=True)]
        parts = stack.enter_context(closing(ahead(makers)))
        for number, members in enumerate(shards, start=1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            info = {
                name: TensorInfo(shape, store.info[groups[member].key].dtype)
                for member in members
                for name, shape in groups[member].sources
            }
            write_safetensors(target / file, info, tensors(members))
            weight_map |= dict.fromkeys(info, file)
    write_json(target / INDEX_FILE, {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map})
    return {
        "dtype": str(store.info[groups[-1].key].dtype).removeprefix("torch."),
        "tensors": len(weight_map),
        "parameters": sum(store.info[group.key].numel for group in groups),
        "bytes": sum(sizes),
        "shards": len(shards),
    }


def _write_config(
    target: Path, architecture: Architecture, tokenizer: Tokenizer, data: DataRecipe, info: dict[str, TensorInfo]
) -> None:
    ids = token_ids(tokenizer)
    dtype = info["language.output_layer.weight"].dtype
    write_json(target / "config.json", model_config(architecture, ids, dtype))
    write_json(target / "generation_config.json", generation_config(ids))
    write_json(target / "preprocessor_config.json", preprocessor_config(data.min_pixels, data.max_pixels))
    write_json(target / "video_preprocessor_config.json", video_preprocessor_config(data.min_pixels, data.max_pixels))
    write_text(target / "chat_template.jinja", chat_template())
    write_json(target / "chat_template.json", {"chat_template": chat_template()})
    # A fuller one from the tokenizer's folder takes its place.
    length = architecture.language.max_position_embeddings
    write_json(target / "tokenizer_config.json", tokenizer_config(tokenizer, length))
