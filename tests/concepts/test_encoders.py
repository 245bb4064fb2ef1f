"""The encoders with real models: all-MiniLM-L6-v2, and a small CLIP model of random weights."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from onevision.concepts.captions import caption
from onevision.concepts.encoders import load_encoder, weights
from onevision.concepts.encoders.clip import ClipEncoder
from onevision.concepts.encoders.text import TextEncoder, packaged_weights
from onevision.corpus.record import Message, Part, Record
from onevision.data.image import ImageError
from onevision.errors import InputError
from onevision.recipe import ConceptRecipe
from tests.concepts.tiny_clip import CONTEXT, DIMENSION, save_tiny_clip
from tests.fixtures import image_bytes, sample_record


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return TextEncoder()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipEncoder:
    return ClipEncoder(str(clip_folder), batch=4)


def answer(*texts: str) -> Record:
    """A record in which the assistant says these texts."""
    record = sample_record(0)
    turns = [
        Message(role, (Part("text", words),)) for said in texts for role, words in (("user", "?"), ("assistant", said))
    ]
    return replace(record, messages=tuple(turns))


def test_the_caption_is_what_the_assistant_says() -> None:
    assert caption(answer(" A red house. ", "It has\ntwo doors.")) == "A red house.\nIt has\ntwo doors."


def test_texts_that_mean_the_same_are_near(text: TextEncoder) -> None:
    rows = text.texts(["a small dog", "puppy", "a fire engine", "red truck with a ladder that puts out fires"])
    assert rows.shape == (4, 384) == (4, text.dimension) and rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    cosines = rows @ rows.T
    assert cosines[0].argsort()[-2] == 1 and cosines[2].argsort()[-2] == 3
    assert np.array_equal(text.texts(["a small dog", "puppy"]), text.texts(["a small dog", "puppy"]))
    assert text.texts([]).shape == (0, 384)


def test_mean_pooling_as_the_folder_says(text: TextEncoder) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = packaged_weights()
    assert json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"]
    inputs = AutoTokenizer.from_pretrained(folder)(["a small dog"], return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder)(**inputs).last_hidden_state[0].numpy()
    mean = states.mean(axis=0)
    assert np.allclose(text.texts(["a small dog"])[0], mean / np.linalg.norm(mean), atol=1e-6)


def test_captions_are_embedded_and_an_empty_one_is_zeros(text: TextEncoder) -> None:
    rows = text.samples([answer("A small dog."), answer("  "), answer("One.", "Two.")])
    assert not rows[1].any()
    assert np.array_equal(rows[[0, 2]], text.texts(["A small dog.", "One.\nTwo."]))
    assert not text.samples([answer("")]).any() and text.samples([]).shape == (0, 384)


def test_clip_gives_what_the_model_gives(clip: ClipEncoder, clip_folder: Path) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    model = CLIPModel.from_pretrained(clip_folder)
    texts = ["cat", "a dog", "a, b", "c", "a long name of a thing", "z" * 40]
    images = [image_bytes(50 + 9 * i, 40 + 5 * i, seed=i) for i in range(6)]
    with torch.inference_mode():
        tokenizer = AutoTokenizer.from_pretrained(clip_folder)
        inputs = [tokenizer([one], truncation=True, max_length=CONTEXT, return_tensors="pt") for one in texts]
        wanted_texts = np.concatenate([model.get_text_features(**one).pooler_output for one in inputs])
        processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
        pixels = processor(images=[Image.open(io.BytesIO(image)) for image in images], return_tensors="pt")
        wanted_images = model.get_image_features(**pixels).pooler_output.numpy()
    assert clip.dimension == DIMENSION
    assert np.allclose(clip.texts(texts), weights.unit(wanted_texts), atol=1e-5)
    records = [replace(sample_record(i), images=(image,)) for i, image in enumerate(images)]
    rows = clip.samples(records)
    assert rows.dtype == np.float32 and np.allclose(rows, weights.unit(wanted_images), atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 0.01  # the images are told apart
    assert np.array_equal(rows, clip.samples(records))


def test_clip_takes_the_mean_of_several_images_and_zeros_for_none(clip: ClipEncoder) -> None:
    images = [image_bytes(40, 60, seed=i) for i in range(3)]
    singles = clip.samples([replace(sample_record(0), images=(image,)) for image in images])
    rows = clip.samples([replace(sample_record(i), images=own) for i, own in enumerate([tuple(images), (), images[:1]])])
    assert np.allclose(rows[0], weights.unit(singles.sum(axis=0, keepdims=True))[0], atol=1e-5)
    assert not rows[1].any() and np.allclose(rows[2], singles[0], atol=1e-5)
    assert not clip.samples([replace(sample_record(0), images=())]).any()


def test_clip_sees_images_as_training_does(clip: ClipEncoder) -> None:
    """The orientation of EXIF is ignored, and transparent pixels show white."""
    picture = Image.open(io.BytesIO(image_bytes(60, 40))).convert("RGB")
    plain, turned, clear, white = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    picture.save(plain, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(turned, "PNG", exif=exif)
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(clear, "PNG")
    Image.new("RGB", (40, 40), (255, 255, 255)).save(white, "PNG")
    images = [buffer.getvalue() for buffer in (plain, turned, clear, white)]
    rows = clip.samples([replace(sample_record(0), images=(image,)) for image in images])
    assert np.allclose(rows[0], rows[1], atol=1e-5) and np.allclose(rows[2], rows[3], atol=1e-5)
    assert np.abs(rows[0] - rows[2]).max() > 0.01


def test_an_image_that_cannot_be_decoded(clip: ClipEncoder) -> None:
    broken = image_bytes(60, 40)[:200]
    with pytest.raises(ImageError, match="image_undecodable"):
        clip.samples([sample_record(1), replace(sample_record(0), images=(broken,))])


def test_fingerprints_are_of_the_files(clip_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(clip_folder, folder)
    first = ClipEncoder(str(clip_folder)).fingerprint
    assert ClipEncoder(str(folder), batch=7).fingerprint == first
    (folder / "README.md").write_text("not read by any encoder")
    assert ClipEncoder(str(folder)).fingerprint == first
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    assert ClipEncoder(str(folder)).fingerprint != first


def test_threads_are_one_while_computing_and_then_as_before(clip: ClipEncoder) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with weights.computing(torch.device("cpu")):
            assert torch.get_num_threads() == 1
        clip.texts(["cat"])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def one_line(recipe: ConceptRecipe, *, compute: bool = False) -> str:
    """The error of loading an encoder, or of using it."""
    with pytest.raises(InputError) as caught:
        encoder = load_encoder(recipe)
        if compute:
            encoder.texts(["cat"])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_folders_are_refused_in_one_line(clip_folder: Path, tmp_path: Path) -> None:
    none, empty = str(tmp_path / "none"), tmp_path / "empty"
    empty.mkdir()
    assert one_line(ConceptRecipe(encoder="clip")) == (
        "concepts.encoder=clip needs the folder of a CLIP model: set concepts.weights"
    )
    assert "is no folder of a CLIP model (it has no config.json)" in one_line(ConceptRecipe(encoder="clip", weights=none))
    assert f"concepts.weights={none} is no folder of a sentence encoder" in one_line(ConceptRecipe(weights=none))
    assert "no modules.json" in one_line(ConceptRecipe(weights=str(empty)))
    bert = str(packaged_weights())
    assert "is of a model of type bert, not clip or metaclip_2" in one_line(ConceptRecipe(encoder="clip", weights=bert))
    (empty / "modules.json").write_text("{")
    assert "cannot be loaded as a sentence encoder" in one_line(ConceptRecipe(weights=str(empty)), compute=True)


def test_damaged_and_incomplete_weights_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    recipe, file = ConceptRecipe(encoder="clip", weights=str(folder)), folder / "model.safetensors"
    tensors = load_file(file)
    save_file({name: values for name, values in tensors.items() if "vision" not in name}, file, {"format": "pt"})
    assert "weights of a CLIP model, the first is vision_model." in one_line(recipe, compute=True)
    file.write_bytes(file.read_bytes()[:2000])
    assert f"{folder} cannot be loaded as a CLIP model" in one_line(recipe, compute=True)
    file.unlink()
    assert f"{folder} cannot be loaded as a CLIP model" in one_line(recipe, compute=True)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(InputError) as caught:
        weights.need_packages("concepts.encoder=text", "torch", "no_such_package")
    assert str(caught.value) == (
        "concepts.encoder=text needs the package no_such_package, which is not installed: "
        "pip install onevision[concepts]"
    )


@pytest.mark.gpu
def test_half_precision_on_a_gpu(clip_folder: Path) -> None:
    encoder = ClipEncoder(str(clip_folder), batch=4)
    assert encoder._model.dtype == torch.float16 and encoder._model.device.type == "cuda"
    rows = encoder.samples([sample_record(i) for i in range(6)])
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)
