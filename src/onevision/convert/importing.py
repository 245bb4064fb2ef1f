"""Import of Hugging Face directories into a checkpoint that training starts from, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onevision.convert.ahead import ahead
from onevision.convert.hf_config import check_exported, check_qwen3, check_rice
from onevision.convert.mapping import EMBEDDING, HEAD, TensorGroup, language_groups, rice_groups, tensor_groups
from onevision.convert.tensors import (
    SafetensorsFolder,
    TensorInfo,
    buffer,
    check_shapes,
    require_space,
    write_megatron,
)
from onevision.errors import InputError
from onevision.fingerprint import Digests
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

    text_groups = with_head(language_groups(architecture.language), tied)
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in image.info) else ""
    image_groups = list(rice_groups(architecture.vision, prefix))
    ignored = _check_source(image, image_groups, tuple(prefix + name for name in RICE_UNUSED))
    ignored += _check_source(text, text_groups, (HEAD,) if tied else ())
    _tell(ignored)

    def build(target: Path) -> dict[str, Any]:
        info = {group.key: TensorInfo(group.shape, dtype) for group in (*image_groups, *text_groups)}
        reads = {**_reads(image, image_groups, dtype), **_reads(text, text_groups, dtype)}
        adapter = initial_adapter(architecture, recipe, dtype)
        info |= {key: TensorInfo(tuple(tensor.shape), dtype) for key, tensor in adapter.items()}
        reads |= {key: partial(adapter.__getitem__, key) for key in adapter}
        return {**_write_run(target, architecture, recipe, info, reads, digests), "ignored": ignored}

    with _digests(image, text) as digests:  # in the order in which they are read
        return run_step("import", output, lambda: _inputs(recipe, digests, qwen3=text, rice=image), build)


def import_exported(folder: str | Path, output: str | Path, recipe: Recipe) -> StepResult:
    """Make a stage-0 run folder of a LLaVA-OneVision-1.5 directory; its tensors keep their dtype.

    Where the directory says that its head is its embedding, a head beside it does not count. Summary and errors as
    `import_pretrained`.
    """
    architecture = PRESETS[recipe.model.preset]
    folder = Path(folder)
    tied = check_exported(folder, architecture)
    source = SafetensorsFolder(folder)
    groups = with_head(tensor_groups(architecture), tied)
    ignored = _check_source(source, groups, (HEAD,) if tied else ())
    _tell(ignored)

    def build(target: Path) -> dict[str, Any]:
        info = {group.key: TensorInfo(group.shape, source.info[group.sources[0][0]].dtype) for group in groups}
        return {**_write_run(target, architecture, recipe, info, _reads(source, groups), digests), "ignored": ignored}

    with _digests(source) as digests:
        return run_step("import", output, lambda: _inputs(recipe, digests, exported=source), build)


def with_head(groups: Iterable[TensorGroup], tied: bool) -> list[TensorGroup]:
    """The groups of a model, whose last one is the output head; a `tied` one is made of the embedding."""
    *rest, head = groups
    return [*rest, replace(head, sources=((EMBEDDING, head.shape),)) if tied else head]


def _tell(ignored: list[str]) -> None:
    if ignored:
        print(f"import: left out, no place in this model: {', '.join(ignored)}", flush=True)


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
            stored = {source.info[name].dtype for name, _ in group.sources}
            if group.rows or len(stored) > 1:
                tensor = group.join({name: source.read(name) for name, _ in group.sources})
            else:  # one behind the other, each read to where it belongs
                tensor = buffer(TensorInfo(group.shape, stored.pop()))
                places = tensor.split([shape[0] for _, shape in group.sources])
                for (name, _), place in zip(group.sources, places, strict=True):
                    source.read(name, place)
            return tensor if dtype is None else tensor.to(dtype)

        return read

    return {group.key: reader(group) for group in groups}


def _digests(*sources: SafetensorsFolder) -> Digests:
    """Of all files of these folders that count, found while the import reads them."""
    return Digests([path for source in sources for path in (source.folder / "config.json", *source.files)])


def _inputs(recipe: Recipe, digests: Digests, **sources: SafetensorsFolder) -> dict[str, Any]:
    known = digests.result()
    return {
        "sources": {
            name: {path.name: known[path] for path in (source.folder / "config.json", *source.files)}
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
    digests: Digests,
) -> dict[str, Any]:
    """A run folder with the checkpoint of step 0; `digests` of the sources are told how far they are read."""
    start(Ranks(), recipe.seed)
    total = sum(entry.nbytes for entry in info.values())
    require_space(target, total)
    folder = step_folder(target, 0)
    temporary = folder.with_name(f".{folder.name}.tmp")
    temporary.mkdir(parents=True)
    with Progress("import", total=len(info), unit="tensors") as progress, ExitStack() as stack:

        def prepare(key: str) -> Tensor:
            tensor = reads[key]()
            digests.read(tensor.nbytes)
            return tensor

        def read(key: str) -> Tensor:
            progress.advance()
            assert key == next(order)
            return next(tensors)

        order = iter(info)  # that of writing too
        makers = [(entry.nbytes, partial(prepare, key)) for key, entry in info.items()]
        tensors = stack.enter_context(closing(ahead(makers)))
        written = write_megatron(temporary, info, read)
    commit(temporary, target, 0, architecture, keep=1, digests=written)
    save_recipe(recipe, target / "recipe.yaml")
    return {
        "architecture": architecture.name,
        "tensors": len(info),
        "parameters": sum(entry.numel for entry in info.values()),
        "bytes": total,
    }
