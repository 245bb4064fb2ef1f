"""The code beside exported weights, in the transformers of this environment: logits, generation, what it refuses."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from onevision.convert.exporting import export
from onevision.convert.importing import import_exported
from onevision.convert.mapping import EMBEDDING, HEAD
from onevision.convert.parity import (
    NEW_TOKENS,
    TOLERANCE,
    Answers,
    Prompt,
    compare,
    make_prompts,
    model_answers,
    padded,
)
from onevision.convert.remote.configuration_llavaonevision1_5 import Llavaonevision1_5Config
from onevision.convert.remote.modeling_llavaonevision1_5 import LLaVAOneVision1_5_ForConditionalGeneration
from onevision.convert.remote.processing_llavaonevision1_5 import LlavaOnevision1_5Processor, opaque
from onevision.data.decode import image_patches
from onevision.data.image import decode_image
from onevision.data.template import encode_prompt
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import InputError
from onevision.model.onevision import OneVisionModel
from onevision.recipe import DataRecipe
from tests.convert.common import TINY, edit_config, loaded, megatron_tensors, saved_run, tiny_data, tiny_recipe
from tests.fixtures import sample_record

PROMPTS = make_prompts(TINY.language.vocab_size, image_token=5, special=(3, 4, 6))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataRecipe:
    return tiny_data(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def run(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_run(tmp_path_factory.mktemp("runs") / "run", device)


@pytest.fixture(scope="module")
def folder(run: Path, data: DataRecipe) -> Path:
    return export(run, data, run.with_name("hf")).folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return LLaVAOneVision1_5_ForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def ours(run: Path) -> OneVisionModel:
    return loaded(run).eval()


@torch.no_grad()
def answers(model: Any, case: str, **settings: Any) -> Answers:
    inputs = padded(case, PROMPTS[case])
    logits = model(**inputs).logits
    rows = [logits[n, mask.bool()] for n, mask in enumerate(inputs["attention_mask"])]
    return Answers(rows, None if case.endswith("right") else list(generated(model, inputs, **settings)))


def generated(model: Any, inputs: dict[str, Tensor], **settings: Any) -> Tensor:
    given = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": -1} | settings
    return model.generate(**inputs, **given)[:, inputs["input_ids"].shape[1] :]


def alone(prompt: Prompt) -> dict[str, Tensor]:
    return padded("alone", [prompt])


@pytest.mark.parametrize("case", PROMPTS)
def test_logits_and_answers_are_those_of_the_checkpoint(ours: OneVisionModel, theirs: Any, case: str) -> None:
    expected = model_answers(ours, PROMPTS[case], image_token=5)
    row = compare("remote code", case, answers(theirs, case), expected)
    assert row.met and row.largest > 1 and row.difference < TOLERANCE


def test_answers_without_a_cache_are_the_same(theirs: Any) -> None:
    inputs = padded("left", PROMPTS["batch, padded left"])
    assert torch.equal(generated(theirs, inputs), generated(theirs, inputs, use_cache=False))


def test_a_cached_conversation_goes_on_with_another_image(theirs: Any) -> None:
    first, second = PROMPTS["one image"][0], PROMPTS["several images"][0]
    whole = Prompt(
        torch.cat([first.ids, second.ids]),
        torch.cat([first.patches, second.patches]),
        torch.cat([first.grid_thw, second.grid_thw]),
    )
    with torch.no_grad():
        cache = theirs(**alone(first), use_cache=True).past_key_values
    inputs = alone(whole) | {name: alone(second)[name] for name in ("pixel_values", "image_grid_thw")}
    assert torch.equal(generated(theirs, inputs, past_key_values=cache), generated(theirs, alone(whole)))


def test_beams_of_a_batch_are_those_of_each_prompt(theirs: Any) -> None:
    """The patches of a prompt are repeated for its beams as a whole, though prompts have different many images."""
    prompts = PROMPTS["batch, padded left"]
    batch = generated(theirs, padded("left", prompts), num_beams=3)
    for row, prompt in zip(batch, prompts, strict=True):
        assert torch.equal(row, generated(theirs, alone(prompt), num_beams=3)[0])
    assert not torch.equal(batch, generated(theirs, padded("left", prompts)))


def test_an_image_is_the_same_beside_others(theirs: Any) -> None:
    (prompt,) = PROMPTS["several images"]
    images = zip(prompt.patches.split(prompt.grid_thw.prod(1).tolist()), prompt.grid_thw, strict=True)
    with torch.no_grad():
        together = theirs.get_image_features(prompt.patches, prompt.grid_thw)
        each = [theirs.get_image_features(patches, grid[None]) for patches, grid in images]
    assert (together - torch.cat(each)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["visual.class_pos_emb", "visual.pre_layernorm.bias", "model.norm.weight", HEAD])
def test_the_comparison_sees_a_tensor_that_is_another(ours: OneVisionModel, theirs: Any, name: str) -> None:
    case = "one image"
    expected = model_answers(ours, PROMPTS[case], image_token=5)
    tensor = theirs.state_dict()[name]
    before = tensor.clone()
    with torch.no_grad():
        tensor.mul_(1.05)
        row = compare("remote code", case, answers(theirs, case), expected)
        tensor.copy_(before)
    assert not row.met


def test_image_tokens_and_images_must_agree(theirs: Any) -> None:
    inputs = alone(PROMPTS["one image"][0])
    with pytest.raises(ValueError, match="input_ids have 6 image tokens, the images have 4"):
        theirs(**inputs | {"pixel_values": inputs["pixel_values"][:16], "image_grid_thw": torch.tensor([[1, 4, 4]])})
    with pytest.raises(ValueError, match="image_grid_thw is of 24 patches, pixel_values has 23"):
        theirs(**inputs | {"pixel_values": inputs["pixel_values"][:-1]})
    with pytest.raises(ValueError, match="and image_grid_thw"):
        theirs(**inputs | {"image_grid_thw": None})


def test_labels_give_the_loss_of_the_next_token(theirs: Any) -> None:
    inputs = alone(PROMPTS["text only"][0])
    labels = inputs["input_ids"].clone()
    labels[0, :2] = -100
    with torch.no_grad():
        result = theirs(**inputs, labels=labels)
    expected = torch.nn.functional.cross_entropy(result.logits[0, 1:-1], labels[0, 2:])
    assert torch.allclose(result.loss, expected, atol=1e-6)


def test_what_it_saves_is_what_it_was_loaded_from(theirs: Any, folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "saved"
    theirs.save_pretrained(there)
    saved, exported = load_file(there / "model.safetensors"), load_file(next(folder.glob("*.safetensors")))
    assert saved.keys() == exported.keys()
    assert all(torch.equal(saved[name], exported[name]) for name in saved)
    import_exported(there, tmp_path / "again", tiny_recipe())  # transformers 5 writes rope_theta elsewhere

    def scale(config: dict[str, Any]) -> None:
        config["text_config"]["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0}

    edit_config(there, scale)
    with pytest.raises(InputError, match=r"text_config.rope_type=yarn instead of default$"):
        import_exported(there, tmp_path / "other", tiny_recipe())


def test_a_new_model_has_no_value_that_is_not_drawn(folder: Path) -> None:
    torch.manual_seed(0)
    model = LLaVAOneVision1_5_ForConditionalGeneration(Llavaonevision1_5Config.from_pretrained(folder))
    for name in ("class_embedding", "class_pos_emb"):
        assert 0.01 < float(getattr(model.visual, name).std()) < 0.04


def test_a_head_that_is_the_embedding(folder: Path, tmp_path: Path) -> None:
    """A directory without lm_head that says so: in transformers and in our import."""
    tied = Path(shutil.copytree(folder, tmp_path / "tied"))
    path = next(tied.glob("*.safetensors"))
    tensors = load_file(path)
    del tensors[HEAD]
    save_file(tensors, path, {"format": "pt"})
    index = json.loads((tied / "model.safetensors.index.json").read_text())
    del index["weight_map"][HEAD]
    (tied / "model.safetensors.index.json").write_text(json.dumps(index))

    def tie(config: dict[str, Any]) -> None:
        config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True

    edit_config(tied, tie)
    model = LLaVAOneVision1_5_ForConditionalGeneration.from_pretrained(tied).eval()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    import_exported(tied, tmp_path / "run", tiny_recipe())
    found = megatron_tensors(tmp_path / "run")
    assert torch.equal(found["language.output_layer.weight"], tensors[EMBEDDING])
    expected = model_answers(loaded(tmp_path / "run").eval(), PROMPTS["one image"], image_token=5)
    assert compare("tied", "one image", answers(model, "one image"), expected).met


def test_weights_keep_the_dtype_of_the_folder(device: torch.device, data: DataRecipe, tmp_path: Path) -> None:
    folder = export(saved_run(tmp_path / "run", device, torch.bfloat16), data, tmp_path / "hf").folder
    model = LLaVAOneVision1_5_ForConditionalGeneration.from_pretrained(folder, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert model(**alone(PROMPTS["one image"][0])).logits.isfinite().all()


def test_the_processor_gives_what_training_reads(folder: Path, data: DataRecipe) -> None:
    processor, tokenizer = LlavaOnevision1_5Processor.from_pretrained(folder), load_tokenizer(data.tokenizer)
    records = [sample_record(3, images=2, turns=2), sample_record(4, images=0), sample_record(5, images=1)]
    texts, patches, grids, ids = [], [], [], []
    for record in records:
        question = [
            {"role": m.role, "content": [{"type": p.type, **({"text": p.text} if p.text else {})} for p in m.content]}
            for m in record.messages[:-1]
        ]
        texts.append(processor.apply_chat_template(question, tokenize=False, add_generation_prompt=True))
        made = [image_patches(picture, data.min_pixels, data.max_pixels) for picture in record.images]
        patches += [each for each, _ in made]
        grids += [list(grid) for _, grid in made]
        counts = [height * width // 4 for _, (_, height, width) in made]
        ids.append(encode_prompt(record.messages[:-1], tokenizer, counts).tolist())
    images = [decode_image(picture) for record in records for picture in record.images]
    batch = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    for row, mask, expected in zip(batch["input_ids"], batch["attention_mask"], ids, strict=True):
        assert row[mask.bool()].tolist() == expected
    assert batch["image_grid_thw"].tolist() == grids
    np.testing.assert_allclose(batch["pixel_values"], np.concatenate(patches), atol=1e-5)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values", "image_grid_thw"}
    only = processor(text="Hello", return_tensors="pt")
    assert processor.decode(only["input_ids"][0]) == "Hello" and set(only) == {"input_ids", "attention_mask"}
    with pytest.raises(ValueError, match=r"the text has 2 times <\|image_pad\|>, there are 1 images"):
        processor(text=texts[0], images=images[:1])
    with pytest.raises(ValueError, match="takes images and text"):
        processor(text="Hello", videos=[images])


def test_pictures_are_shown_in_every_version_as_in_training() -> None:
    image = Image.new("RGBA", (28, 28), (200, 0, 0, 0))
    image.paste((0, 200, 0, 128), (0, 0, 14, 14))
    palette = image.convert("P")
    palette.info["transparency"] = palette.getpixel((20, 20))
    deep = Image.fromarray(np.linspace(0, 65535, 28 * 28).astype(np.uint16).reshape(28, 28))
    for picture in (image, palette, image.convert("LA"), image.convert("RGB"), deep):
        file = io.BytesIO()
        picture.save(file, "PNG")
        expected = decode_image(file.getvalue())
        ((found,),) = opaque([[Image.open(file)]])
        assert found.convert("RGB").tobytes() == expected.tobytes()
    array = np.zeros((28, 28, 3), np.uint8)
    assert opaque(array) is array
