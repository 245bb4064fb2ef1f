"""Stage 0: a Qwen3 directory and a RICE-ViT directory, as transformers saves them, become a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MLCDVisionConfig, MLCDVisionModel, Qwen3Config, Qwen3ForCausalLM

from onevision.convert.importing import import_pretrained
from onevision.convert.mapping import language_groups, rice_groups
from onevision.errors import InputError
from onevision.model.device import runtime_context
from onevision.model.presets import PRESETS, SPATIAL_MERGE_SIZE
from onevision.recipe import ModelRecipe
from onevision.training.checkpoint_files import find
from tests.convert.common import DTYPES, TINY, edit_config, loaded, megatron_tensors, tiny_recipe
from tests.model.common import random_pack


def save_qwen3(folder: Path, *, tied: bool, **options: Any) -> Path:
    """A Qwen3 directory of the tiny preset with random weights."""
    language = TINY.language
    config = Qwen3Config(
        vocab_size=language.vocab_size,
        hidden_size=language.hidden_size,
        intermediate_size=language.ffn_hidden_size,
        num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_attention_heads,
        num_key_value_heads=language.num_query_groups,
        head_dim=language.head_dim,
        rms_norm_eps=language.rmsnorm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": language.rotary_base},
        tie_word_embeddings=tied,
    )
    torch.manual_seed(11)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder, **options)
    return folder


@pytest.fixture(scope="module")
def qwen3(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_qwen3(tmp_path_factory.mktemp("qwen3"), tied=False, max_shard_size="1MB")


@pytest.fixture(scope="module")
def rice(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    vision = TINY.vision
    torch.manual_seed(12)
    model = MLCDVisionModel(
        MLCDVisionConfig(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.ffn_hidden_size,
            num_hidden_layers=vision.num_layers,
            num_attention_heads=vision.num_attention_heads,
            patch_size=14,
        )
    )
    folder = tmp_path_factory.mktemp("rice")
    model.save_pretrained(folder)
    # The published directory has all names behind this prefix.
    tensors = load_file(folder / "model.safetensors")
    save_file({f"vision_model.{name}": value for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def test_language_logits_are_those_of_the_source(qwen3: Path, rice: Path, tmp_path: Path) -> None:
    assert len(list(qwen3.glob("*.safetensors"))) > 1
    result = import_pretrained(qwen3, rice, tmp_path / "stage0", tiny_recipe())
    assert result.summary["ignored"] == ["vision_model.post_layernorm.bias", "vision_model.post_layernorm.weight"]
    reference = Qwen3ForCausalLM.from_pretrained(qwen3, attn_implementation="eager").eval()
    pack = random_pack([(17, ()), (29, ())], vocab_size=TINY.language.vocab_size)
    with torch.no_grad(), runtime_context(torch.device("cpu")):
        ours = loaded(tmp_path / "stage0")(*pack.inputs)[0]
        theirs = torch.cat([reference(part[None]).logits[0] for part in pack.tokens.split(pack.lengths)])
    assert theirs.std() > 0.1 and (ours - theirs).abs().max() < 1e-4


def test_vision_features_are_those_of_the_source(qwen3: Path, rice: Path, tmp_path: Path) -> None:
    import_pretrained(qwen3, rice, tmp_path / "stage0", tiny_recipe())
    reference = MLCDVisionModel.from_pretrained(rice, attn_implementation="eager").eval()
    height, width, merge = 4, 6, SPATIAL_MERGE_SIZE
    pixels = torch.randn(3, height * 14, width * 14, generator=torch.Generator().manual_seed(0))
    patches = pixels.view(3, height, 14, width, 14).permute(1, 3, 0, 2, 4).reshape(height, width, -1)

    def blocks(grid: Tensor) -> Tensor:
        return grid.view(height // merge, merge, width // merge, merge, -1).transpose(1, 2).flatten(0, 3)

    with torch.no_grad(), runtime_context(torch.device("cpu")):
        theirs = reference(pixel_values=pixels[None]).last_hidden_state[0, 1:].view(height, width, -1)
        ours = loaded(tmp_path / "stage0").vision(blocks(patches), torch.tensor([[1, height, width]]))
    assert theirs.std() > 0.1 and (ours - blocks(theirs)).abs().max() < 1e-4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_tensor_is_the_source_in_the_recipes_precision(
    qwen3: Path, rice: Path, tmp_path: Path, precision: str
) -> None:
    import_pretrained(qwen3, rice, tmp_path / "stage0", tiny_recipe(precision))
    found = megatron_tensors(tmp_path / "stage0")
    assert {tensor.dtype for tensor in found.values()} == {DTYPES[precision]}
    source: dict[str, Tensor] = {}
    for path in (*qwen3.glob("*.safetensors"), *rice.glob("*.safetensors")):
        source |= load_file(path)
    checked = 0
    for group in (*language_groups(TINY.language), *rice_groups(TINY.vision, "vision_model.")):
        for name, tensor in group.split(found[group.key]).items():
            assert torch.equal(tensor, source[name].to(DTYPES[precision])), name
            checked += 1
    assert checked == len(source) - 2  # post_layernorm
    assert len(found) == len(list(loaded(tmp_path / "stage0").parameters()))


def test_a_tied_head_is_a_copy_of_the_embedding(rice: Path, tmp_path: Path) -> None:
    tied = save_qwen3(tmp_path / "tied", tied=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    import_pretrained(tied, rice, tmp_path / "stage0", tiny_recipe())
    found = megatron_tensors(tmp_path / "stage0")
    embedding = load_file(tied / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(found["language.output_layer.weight"], embedding)
    assert torch.equal(found["language.embedding.word_embeddings.weight"], embedding)


def test_names_without_the_prefix_are_read_too(qwen3: Path, rice: Path, tmp_path: Path) -> None:
    plain = Path(shutil.copytree(rice, tmp_path / "plain"))
    tensors = load_file(plain / "model.safetensors")
    bare = {name.removeprefix("vision_model."): value for name, value in tensors.items()}
    save_file({**bare, "embeddings.position_ids": torch.zeros(2)}, plain / "model.safetensors")
    result = import_pretrained(qwen3, plain, tmp_path / "a", tiny_recipe())
    assert result.summary["ignored"][0] == "embeddings.position_ids"
    import_pretrained(qwen3, rice, tmp_path / "b", tiny_recipe())
    for (key, one), other in zip(
        megatron_tensors(tmp_path / "a").items(), megatron_tensors(tmp_path / "b").values(), strict=True
    ):
        assert torch.equal(one, other), key


def test_the_adapter_comes_from_the_seed(qwen3: Path, rice: Path, tmp_path: Path) -> None:
    def adapter(seed: int, name: str) -> dict[str, Tensor]:
        torch.rand(seed)  # whatever was drawn before does not count
        import_pretrained(qwen3, rice, tmp_path / name, tiny_recipe(seed=seed))
        tensors = megatron_tensors(tmp_path / name)
        return {key: tensor for key, tensor in tensors.items() if key.startswith("adapter.")}

    one, again, other = adapter(7, "one"), adapter(7, "again"), adapter(8, "other")
    weight = "adapter.projector.encoder.linear_fc1.weight"
    assert len(one) == 6 and all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one[weight], other[weight])
    assert one[weight].std() == pytest.approx(PRESETS["tiny"].init_std, rel=0.02)
    assert torch.all(one["adapter.layernorm.weight"] == 1)
    assert all(torch.count_nonzero(tensor) == 0 for key, tensor in one.items() if key.endswith("bias"))


def test_an_import_is_skipped_when_nothing_changed(qwen3: Path, rice: Path, tmp_path: Path) -> None:
    run = tmp_path / "stage0"
    assert not import_pretrained(qwen3, rice, run, tiny_recipe()).skipped
    assert import_pretrained(qwen3, rice, run, tiny_recipe()).skipped
    assert not import_pretrained(qwen3, rice, run, tiny_recipe(seed=8)).skipped
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "recipe.yaml", "step.json"]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000000"]
    assert find(run)[1]["step"] == 0


def test_sources_of_another_size_are_refused_in_one_line(qwen3: Path, rice: Path, tmp_path: Path) -> None:
    recipe = replace(tiny_recipe(), model=ModelRecipe(preset="8b"))
    with pytest.raises(InputError) as error:
        import_pretrained(qwen3, rice, tmp_path / "run", recipe)
    line = str(error.value)
    assert "\n" not in line and line.startswith(str(qwen3 / "config.json"))
    for part in ("num_hidden_layers=3 instead of 36", "vocab_size=1024 instead of 151936", "head_dim=32 instead"):
        assert part in line


def set_value(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.__setitem__(name, value)


@pytest.mark.parametrize(
    ("source", "name", "value", "message"),
    [
        ("qwen3", "rms_norm_eps", 1e-5, "rms_norm_eps=1e-05 instead of 1e-06$"),
        ("qwen3", "rope_parameters", {"rope_theta": 1e6}, "rope_theta=1000000.0 instead of 10000.0$"),
        ("qwen3", "rope_theta", 5e5, "rope_theta=500000.0 instead of 10000.0$"),
        ("qwen3", "rope_scaling", {"rope_type": "yarn", "factor": 4}, "rope_type=yarn instead of default$"),
        ("qwen3", "model_type", "qwen2", "model_type=qwen2 instead of qwen3$"),
        ("rice", "layer_norm_eps", 1e-6, "layer_norm_eps=1e-06 instead of 1e-05$"),
        ("rice", "patch_size", 16, "patch_size=16 instead of 14$"),
        ("rice", "hidden_act", "quick_gelu", "hidden_act=quick_gelu instead of gelu$"),
    ],
)
def test_other_constants_are_refused(
    qwen3: Path, rice: Path, tmp_path: Path, source: str, name: str, value: object, message: str
) -> None:
    folders = {"qwen3": qwen3, "rice": rice}
    folders[source] = Path(shutil.copytree(folders[source], tmp_path / "edited"))
    edit_config(folders[source], set_value(name, value))
    with pytest.raises(InputError, match=f"{tmp_path / 'edited'}.*{message}"):
        import_pretrained(folders["qwen3"], folders["rice"], tmp_path / "run", tiny_recipe())
    assert not (tmp_path / "run").exists()


def test_missing_and_foreign_tensors_are_named(qwen3: Path, rice: Path, tmp_path: Path) -> None:
    edited = Path(shutil.copytree(rice, tmp_path / "edited"))
    whole = load_file(edited / "model.safetensors")
    name = "vision_model.encoder.layers.2.self_attn.k_proj.weight"
    cases: list[tuple[dict[str, Tensor], str]] = [
        ({key: value for key, value in whole.items() if key != name}, rf"tensor {name} \[128, 128\] is missing$"),
        ({**whole, name: torch.zeros(64, 128)}, rf"tensor {name} has shape \[64, 128\] instead of \[128, 128\]$"),
        ({**whole, "vision_model.head.weight": torch.zeros(1)}, "no place for: vision_model.head.weight$"),
    ]
    for tensors, message in cases:
        save_file(tensors, edited / "model.safetensors")
        with pytest.raises(InputError, match=message):
            import_pretrained(qwen3, edited, tmp_path / "run", tiny_recipe())
    with pytest.raises(InputError, match="config.json does not exist"):
        import_pretrained(tmp_path / "nothing", rice, tmp_path / "run", tiny_recipe())
    assert not (tmp_path / "run").exists()
