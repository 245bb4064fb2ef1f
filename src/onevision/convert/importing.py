"""Import of Hugging Face directories into a checkpoint that training starts from, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onevision.convert.hf_config import check_exported, check_qwen3, check_rice
from onevision.convert.mapping import EMBEDDING, HEAD, TensorGroup, language_groups, rice_groups, tensor_groups
from onevision.convert.tensors import SafetensorsFolder, TensorInfo, check_shapes, require_space, write_megatron
from onevision.errors import InputError
from onevision.fingerprint import file_digest
from onevision.model.adapter import PatchMerger
from onevision.model.configs import adapter_config, language_config, vision_config
from onevision.model.device import Ranks, runtime_context, start
from onevision.model.presets import PRESETS, Architecture
from onevision.model.specs import TORCH
from onevision.progress import Progress
from onevision.recipe import Recipe, save_recipe
from onevision.steps import StepResult, run_step
from onevision.training.checkpoint_files import commit, step_folder
from onevision.training.precision import precision_dtype

# Tensors of a RICE-ViT directory that have no place in this model, behind its prefix.
RICE_UNUSED = ("post_layernorm.", "embeddings.position_ids", "vision_rotary_embedding.")

Read = Callable[[], Tensor]


def import_pretrained(qwen3: str | Path, rice: str | Path, output: str | Path, recipe: Recipe) -> StepResult:
    """Make a stage-0 run folder of a Qwen3 and a RICE-ViT directory; the adapter is initialised from `recipe.seed`.

    The weights take the dtype of `recipe.train.precision`. An output head that is tied to the embedding becomes a
    copy of it. Summary: architecture, tensors, parameters, bytes, ignored (source tensors without a place here).

    Raises:
        InputError: a directory is not complete, or is of another model size than `recipe.model.preset`.
        DataError: a file is broken.
        StorageError: not enough room; an earlier output is untouched.
    """
    architecture = PRESETS[recipe.model.preset]
    qwen3, rice, dtype = Path(qwen3), Path(rice), precision_dtype(recipe.train.precision)
    tied = check_qwen3(qwen3, architecture.language)
    check_rice(rice, architecture.vision)
    text, image = SafetensorsFolder(qwen3), SafetensorsFolder(rice)

    text_groups = list(language_groups(architecture.language))
    if tied:
        head = text_groups.pop()
        text_groups.append(replace(head, sources=((EMBEDDING, head.shape),)))
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in image.info) else ""
    image_groups = list(rice_groups(architecture.vision, prefix))
    ignored = _check_source(image, image_groups, tuple(prefix + name for name in RICE_UNUSED))
    ignored += _check_source(text, text_groups, (HEAD,) if tied else ())
    if ignored:
        print(f"import: left out, no place in this model: {', '.join(ignored)}", flush=True)

    def build(target: Path) -> dict[str, Any]:
        info = {group.key: TensorInfo(group.shape, dtype) for group in (*image_groups, *text_groups)}
        reads = {**_reads(image, image_groups, dtype), **_reads(text, text_groups, dtype)}
        adapter = initial_adapter(architecture, recipe, dtype)
        info |= {key: TensorInfo(tuple(tensor.shape), dtype) for key, tensor in adapter.items()}
        reads |= {key: partial(adapter.__getitem__, key) for key in adapter}
        return {**_write_run(target, architecture, recipe, info, reads), "ignored": ignored}

    return run_step("import", output, _inputs(recipe, qwen3=text, rice=image), build)


def import_exported(folder: str | Path, output: str | Path, recipe: Recipe) -> StepResult:
    """Make a stage-0 run folder of a LLaVA-OneVision-1.5 directory; its tensors keep their dtype.

    Summary and errors as `import_pretrained`.
    """
    architecture = PRESETS[recipe.model.preset]
    folder = Path(folder)
    check_exported(folder, architecture)
    source = SafetensorsFolder(folder)
    groups = tensor_groups(architecture)
    _check_source(source, groups, ())

    def build(target: Path) -> dict[str, Any]:
        info = {group.key: TensorInfo(group.shape, source.info[group.sources[0][0]].dtype) for group in groups}
        return {**_write_run(target, architecture, recipe, info, _reads(source, groups)), "ignored": []}

    return run_step("import", output, _inputs(recipe, exported=source), build)


def initial_adapter(architecture: Architecture, recipe: Recipe, dtype: torch.dtype) -> dict[str, Tensor]:
    """Checkpoint keys and tensors of a new adapter, a function of `recipe.seed` alone."""
    device = start(Ranks(), recipe.seed)
    config = vision_config(architecture, language_config(architecture, recipe.model, dtype))
    with runtime_context(device):
        adapter = PatchMerger(adapter_config(architecture, config), architecture, TORCH)
    return {f"adapter.{name}": parameter.detach() for name, parameter in adapter.named_parameters()}


def _check_source(source: SafetensorsFolder, groups: Iterable[TensorGroup], unused: tuple[str, ...]) -> list[str]:
    """Names that begin with one of `unused`, after everything else was found to be as expected."""
    expected = {name: shape for group in groups for name, shape in group.sources}
    check_shapes(source.folder, expected, source.info)
    rest = sorted(set(source.info) - set(expected))
    foreign = [name for name in rest if not name.startswith(unused)]
    if foreign:
        more = f" (and {len(foreign) - 1} more)" if foreign[1:] else ""
        raise InputError(f"{source.folder} holds a tensor that the preset has no place for: {foreign[0]}{more}")
    return rest


def _reads(
    source: SafetensorsFolder, groups: Iterable[TensorGroup], dtype: torch.dtype | None = None
) -> dict[str, Read]:
    def reader(group: TensorGroup) -> Read:
        def read() -> Tensor:
            tensor = group.join({name: source.read(name) for name, _ in group.sources})
            return tensor if dtype is None else tensor.to(dtype)

        return read

    return {group.key: reader(group) for group in groups}


def _inputs(recipe: Recipe, **sources: SafetensorsFolder) -> dict[str, Any]:
    return {
        "sources": {
            name: {path.name: file_digest(path) for path in (source.folder / "config.json", *source.files)}
            for name, source in sources.items()
        },
        "architecture": asdict(PRESETS[recipe.model.preset]),
        "precision": recipe.train.precision,
        "seed": recipe.seed,
    }


def _write_run(
    target: Path,
    architecture: Architecture,
    recipe: Recipe,
    info: Mapping[str, TensorInfo],
    reads: Mapping[str, Read],
) -> dict[str, Any]:
    """A run folder with the checkpoint of step 0."""
    start(Ranks(), recipe.seed)
    total = sum(entry.nbytes for entry in info.values())
    require_space(target, total)
    folder = step_folder(target, 0)
    temporary = folder.with_name(f".{folder.name}.tmp")
    temporary.mkdir(parents=True)
    with Progress("import", total=len(info), unit="tensors") as progress:

        def read(key: str) -> Tensor:
            progress.advance()
            return reads[key]()

        write_megatron(temporary, info, read)
    commit(temporary, target, 0, architecture, keep=1)
    save_recipe(recipe, target / "recipe.yaml")
    return {
        "architecture": architecture.name,
        "tensors": len(info),
        "parameters": sum(entry.numel for entry in info.values()),
        "bytes": total,
    }
