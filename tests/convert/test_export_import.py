"""Checkpoint -> Hugging Face directory -> checkpoint, and pretrained directories -> stage-0 checkpoint."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from onevision.convert.exporting import CODE, export
from onevision.convert.importing import import_exported
from onevision.convert.tensors import INDEX_FILE, SafetensorsFolder
from onevision.corpus.record import Message, Part
from onevision.data.decode import image_patches
from onevision.data.image import decode_image
from onevision.data.template import encode, encode_prompt
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import DataError, InputError, StorageError
from onevision.model.device import runtime_context
from onevision.recipe import DataRecipe, ModelRecipe
from onevision.training.checkpoint_files import find
from tests.convert.common import (
    DTYPES,
    TINY,
    assert_equal,
    edit_config,
    loaded,
    megatron_tensors,
    saved_run,
    tiny_data,
    tiny_recipe,
)
from tests.fixtures import image_bytes, sample_record
from tests.model.common import checkpoint_tensors, random_model, random_pack


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRecipe:
    return tiny_data(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def trained(request: pytest.FixtureRequest, device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("runs") / request.param, device, DTYPES[request.param])


@pytest.fixture(scope="module")
def exported(trained: Path, data: DataRecipe) -> Path:
    return export(trained, data, trained.parent / f"{trained.name}-hf", shard_bytes=2_000_000).folder


@pytest.fixture
def editable(exported: Path, tmp_path: Path) -> Path:
    """A copy of the export that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "edited"))


def test_import_of_an_export_is_bit_equal(trained: Path, exported: Path, tmp_path: Path) -> None:
    result = import_exported(exported, tmp_path / "again", tiny_recipe())
    assert_equal(megatron_tensors(tmp_path / "again"), megatron_tensors(trained))
    assert result.summary["parameters"] == sum(p.numel() for p in random_model(TINY).parameters())
    model = loaded(tmp_path / "again")
    expected = megatron_tensors(trained)
    for key, tensor in checkpoint_tensors(model).items():
        assert torch.equal(tensor, expected[key].float()), key


def test_an_export_of_that_import_is_the_same_files(exported: Path, data: DataRecipe, tmp_path: Path) -> None:
    import_exported(exported, tmp_path / "again", tiny_recipe())
    export(tmp_path / "again", data, tmp_path / "hf", shard_bytes=2_000_000)
    names = sorted(path.name for path in exported.iterdir() if path.name != "step.json")
    assert names == sorted(path.name for path in (tmp_path / "hf").iterdir() if path.name != "step.json")
    for name in names:
        assert (tmp_path / "hf" / name).read_bytes() == (exported / name).read_bytes(), name


def test_index_and_shards(exported: Path) -> None:
    index = json.loads((exported / INDEX_FILE).read_text())
    files = sorted(path.name for path in exported.glob("*.safetensors"))
    assert len(files) > 1 and sorted(set(index["weight_map"].values())) == files
    total = 0
    for name in files:
        tensors = load_file(exported / name)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= 2_000_000
        assert all(index["weight_map"][key] == name for key in tensors)
        total += size
    assert index["metadata"]["total_size"] == total
    assert len(index["weight_map"]) == 5 + TINY.vision.num_layers * 12 + 6 + TINY.language.num_layers * 11 + 3


def test_config_is_that_of_the_published_layout(exported: Path, data: DataRecipe) -> None:
    config = json.loads((exported / "config.json").read_text())
    tokenizer = load_tokenizer(data.tokenizer)
    assert config["architectures"] == ["LLaVAOneVision1_5_ForConditionalGeneration"]
    assert config["model_type"] == "llavaonevision1_5"
    assert config["auto_map"] == {
        "AutoConfig": "configuration_llavaonevision1_5.Llavaonevision1_5Config",
        "AutoModelForCausalLM": "modeling_llavaonevision1_5.LLaVAOneVision1_5_ForConditionalGeneration",
    }
    assert config["image_token_id"] == tokenizer.image_pad
    assert config["video_token_id"] == tokenizer.encode("<|video_pad|>")[0]
    assert config["vision_start_token_id"] == tokenizer.vision_start
    assert config["vision_end_token_id"] == tokenizer.vision_end
    assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is False
    assert config["torch_dtype"] == {"fp32-hf": "float32", "bf16-hf": "bfloat16"}[exported.name]
    assert config["vision_config"] == {
        "model_type": "rice_vit",
        "depth": TINY.vision.num_layers,
        "embed_dim": 128,
        "hidden_size": 128,
        "intermediate_size": TINY.vision.ffn_hidden_size,
        "num_heads": 4,
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "text_hidden_size": 128,
        "initializer_range": 0.02,
    }
    text = config["text_config"]
    assert text["model_type"] == "LLaVAOneVision1_5_text"
    assert (text["rope_theta"], text["max_position_embeddings"]) == (10_000.0, 4096)
    assert (text["rms_norm_eps"], text["vocab_size"], text["head_dim"]) == (1e-6, TINY.language.vocab_size, 32)


def test_transformers_computes_the_same_text_logits(trained: Path, exported: Path) -> None:
    """The exported text_config and weights, read as Qwen3, give the logits of the checkpoint."""
    config = json.loads((exported / "config.json").read_text())["text_config"]
    config.pop("model_type")
    reference = Qwen3ForCausalLM(Qwen3Config(**config, attn_implementation="eager")).eval().float()
    source = SafetensorsFolder(exported)
    weights = {name: source.read(name).float() for name in source.info if not name.startswith("visual.")}
    reference.load_state_dict(weights, strict=True)
    pack = random_pack([(17, ()), (29, ())], vocab_size=TINY.language.vocab_size)
    with torch.no_grad(), runtime_context(torch.device("cpu")):
        ours = loaded(trained)(*pack.inputs)[0]
        theirs = torch.cat([reference(part[None]).logits[0] for part in pack.tokens.split(pack.lengths)])
    assert (ours - theirs).abs().max() < 1e-4


def test_transformers_reads_the_image_processor(exported: Path, data: DataRecipe) -> None:
    processor = Qwen2VLImageProcessorPil.from_pretrained(exported)
    for width, height in [(61, 95), (300, 40), (20, 20)]:
        picture = image_bytes(width, height)
        patches, grid = image_patches(picture, data.min_pixels, data.max_pixels)
        theirs = processor(decode_image(picture), return_tensors="np")
        assert theirs["image_grid_thw"].tolist() == [list(grid)]
        np.testing.assert_allclose(theirs["pixel_values"], patches, atol=1e-5)


def test_transformers_reads_the_tokenizer_and_the_template(exported: Path, data: DataRecipe) -> None:
    theirs, ours = AutoTokenizer.from_pretrained(exported), load_tokenizer(data.tokenizer)
    assert theirs.eos_token_id == ours.im_end and theirs.pad_token_id == ours.endoftext
    record = sample_record(3, images=2, turns=2)
    system = Message("system", (Part("text", "Answer in one word."),))
    for messages in (record.messages, (system, *record.messages)):
        plain = [
            {"role": m.role, "content": [{"type": p.type, **({"text": p.text} if p.text else {})} for p in m.content]}
            for m in messages
        ]
        whole = replace(record, messages=messages)
        text = theirs.apply_chat_template(plain, tokenize=False)
        assert text.endswith("<|im_end|>\n")
        assert ours.encode(text.removesuffix("\n")) == encode(whole, ours, [1, 1]).ids.tolist()
        question = theirs.apply_chat_template(plain[:-1], tokenize=False, add_generation_prompt=True)
        assert ours.encode(question) == encode_prompt(messages[:-1], ours, [1, 1]).tolist()
    as_text = theirs.apply_chat_template([{"role": "user", "content": "Hello\n"}], tokenize=False)
    assert as_text.endswith("<|im_start|>user\nHello\n<|im_end|>\n")
    assert json.loads((exported / "chat_template.json").read_text())["chat_template"] == theirs.chat_template
    assert json.loads((exported / "generation_config.json").read_text())["eos_token_id"][0] == ours.im_end


def test_an_export_is_skipped_when_nothing_changed(trained: Path, exported: Path, data: DataRecipe) -> None:
    assert export(trained, data, exported, shard_bytes=2_000_000).skipped
    wider = replace(data, max_pixels=data.max_pixels * 2)
    other = export(trained, wider, exported.with_name("wider"), shard_bytes=2_000_000)
    assert not other.skipped and other.summary["architecture"] == "tiny" and other.summary["step"] == 30


def test_a_card_in_the_folder_of_an_earlier_export_is_not_lost(trained: Path, editable: Path, data: DataRecipe) -> None:
    (editable / "README.md").write_text("mine")
    assert export(trained, data, editable, shard_bytes=2_000_000).skipped
    with pytest.raises(
        InputError, match=r"edited would be replaced, and what .* would be lost: README\.md\. Move that"
    ):
        export(trained, data, editable, shard_bytes=1_000_000)
    assert (editable / "README.md").read_text() == "mine" and not list(editable.parent.glob(".*"))
    (editable / "README.md").unlink()
    assert not export(trained, data, editable, shard_bytes=1_000_000).skipped


def test_files_of_the_tokenizer_are_taken_along(trained: Path, data: DataRecipe, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data.tokenizer, tmp_path / "tokenizer"))
    own = {"merges.txt": "a b\n", "tokenizer_config.json": "{}"}
    for name, text in own.items():
        (folder / name).write_text(text)
    (folder / "README.md").write_text("not a part of a model\n")
    (folder / "modeling_llavaonevision1_5.py").write_text("another model's\n")
    target = export(trained, replace(data, tokenizer=str(folder)), tmp_path / "hf").folder
    for name, text in own.items():
        assert (target / name).read_text() == text
    assert not (target / "README.md").exists()
    for path in CODE:
        assert (target / path.name).read_bytes() == path.read_bytes()


def test_a_tokenizer_that_is_too_large_is_refused(trained: Path, data: DataRecipe, tmp_path: Path) -> None:
    fast = FastTokenizer.from_file(f"{data.tokenizer}/tokenizer.json")
    fast.add_tokens([f"word{number}" for number in range(2048)])
    fast.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match=f"tokens, the model of .* has {TINY.language.vocab_size}: name the tokenizer"):
        export(trained, replace(data, tokenizer=str(tmp_path)), tmp_path / "hf")


def test_exporting_needs_a_checkpoint_and_its_tokenizer(trained: Path, data: DataRecipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint"):
        export(tmp_path, data, tmp_path / "hf")
    with pytest.raises(InputError, match="tokenizer.json does not exist"):
        export(trained, replace(data, tokenizer=str(tmp_path)), tmp_path / "hf")
    broken = Path(shutil.copytree(find(trained)[0], tmp_path / "step_00000030"))
    largest = max(broken.glob("*.distcp"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(DataError, match="bytes instead of"):
        export(broken, data, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("what", ["a value", "the head of a tensor", "a pickle"])
def test_an_altered_checkpoint_is_not_exported(trained: Path, data: DataRecipe, tmp_path: Path, what: str) -> None:
    """Digests are compared while the files are read: what was made of an altered one does not stay."""
    broken = Path(shutil.copytree(find(trained)[0], tmp_path / "run" / "checkpoints" / "step_00000031"))
    path = broken / ".metadata" if what == "a pickle" else max(broken.glob("*.distcp"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    place = len(content) // 2 if what == "a value" else 20
    content[place] ^= 64
    path.write_bytes(content)
    with pytest.raises(DataError, match="was altered: its digest is not that of checkpoint.json") as error:
        export(broken, data, tmp_path / "hf")
    assert "\n" not in str(error.value) and not (tmp_path / "hf").exists()
    shutil.copytree(find(trained)[0], broken.with_name("step_00000030"))
    assert export(tmp_path / "run", data, tmp_path / "hf").summary["step"] == 30  # the one before


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """The system refuses to write files beyond `size` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_earlier_output(trained: Path, editable: Path, data: DataRecipe, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in editable.iterdir()}
    with files_at_most(100_000), pytest.raises(StorageError, match="cannot write .*edited: File too large; make room"):
        export(trained, replace(data, max_pixels=data.max_pixels * 2), editable, shard_bytes=2_000_000)
    assert {path.name: path.read_bytes() for path in editable.iterdir()} == before
    with files_at_most(100_000), pytest.raises(StorageError, match="cannot write .*again: File too large; make room"):
        import_exported(editable, tmp_path / "again", tiny_recipe())
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]


def test_another_size_is_refused_in_one_line(editable: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        import_exported(editable, tmp_path / "run", replace(tiny_recipe(), model=ModelRecipe(preset="4b")))
    line = str(error.value)
    assert "\n" not in line and str(editable / "config.json") in line
    for part in ("num_hidden_layers=3 instead of 36", "hidden_size=128 instead of 2560", "rope_theta=10000.0 instead"):
        assert part in line

    def other_frequency(config: dict[str, Any]) -> None:
        config["text_config"]["rope_theta"] = 5e6

    edit_config(editable, other_frequency)
    with pytest.raises(InputError, match=r"preset's model: text_config.rope_theta=5000000.0 instead of 10000.0$"):
        import_exported(editable, tmp_path / "run", tiny_recipe())


@pytest.mark.parametrize(("section", "value"), [("text_config", 3), ("vision_config", [1])])
def test_a_configuration_that_is_none_is_refused_in_one_line(
    editable: Path, tmp_path: Path, section: str, value: Any
) -> None:
    edit_config(editable, lambda config: config.update({section: value}))
    with pytest.raises(InputError, match=rf"config.json: {section} is {type(value).__name__}, not an object$"):
        import_exported(editable, tmp_path / "run", tiny_recipe())
    (editable / "config.json").write_text("[1]")
    with pytest.raises(InputError, match=r"config.json was altered: it holds no object$"):
        import_exported(editable, tmp_path / "run", tiny_recipe())


def test_damaged_weights_are_refused_in_one_line(editable: Path, tmp_path: Path) -> None:
    path = editable / json.loads((editable / INDEX_FILE).read_text())["weight_map"]["model.norm.weight"]
    whole = load_file(path)
    with_gap = {name: tensor for name, tensor in whole.items() if name != "model.norm.weight"}
    cases = [
        (with_gap, r"tensor model.norm.weight \[128\] is missing$"),
        ({**whole, "model.norm.weight": torch.zeros(64)}, r"model.norm.weight has shape \[64\] instead of \[128\]$"),
        ({**whole, "model.norm.bias": torch.zeros(128)}, "the preset has no place for: model.norm.bias$"),
    ]
    for tensors, message in cases:
        save_file(tensors, path)
        with pytest.raises(InputError, match=message):
            import_exported(editable, tmp_path / "run", tiny_recipe())
    path.unlink()
    with pytest.raises(InputError, match="the download is not complete"):
        import_exported(editable, tmp_path / "run", tiny_recipe())
    assert not (tmp_path / "run").exists()
