"""Small real inputs that the tests of several packages share: a tokenizer, records, a records folder."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import h5py
import numpy as np
from PIL import Image
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from onevision.corpus.hdf5 import SEAL, seal_file
from onevision.corpus.record import Message, Part, Record, record_fields
from onevision.data.image import image_header
from onevision.data.tokenizer import Tokenizer, load_tokenizer

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# How Qwen's tokenizers cut text into words; newlines are joined with blanks before them and newlines after them.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = [
    "You are a helpful assistant. system user assistant",
    "What is shown in the picture? How many dots are there? Which digit is this?",
    "The picture shows a red circle, a blue square and three green lines. There are seven dots. The digit is 5.",
    "图片里有什么？有几个点？图片里有一个红色的圆和三条绿色的线。一共有七个点。",
    "Read the text line. Compare both charts: the left bar is higher than the right one. 0 1 2 3 4 5 6 7 8 9",
]


@cache
def _tokenizer_json() -> str:
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(TEXTS * 4, trainer)
    return fast.to_str()


def tiny_tokenizer(folder: str | Path) -> Tokenizer:
    """Train a byte-level BPE of about 400 tokens, save it as `folder/tokenizer.json`, and load it."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / "tokenizer.json").write_text(_tokenizer_json(), encoding="utf-8")
    return load_tokenizer(target)


def image_bytes(width: int, height: int, seed: int = 0, format: str = "PNG", mode: str = "RGB") -> bytes:
    """A noisy gradient as an encoded image file, so that resizing and compression have something to do."""
    rng = np.random.default_rng((seed, width, height))
    rows, columns = np.mgrid[0:height, 0:width]
    base = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) % 256], axis=-1)
    pixels = np.clip(base + rng.normal(0, 20, base.shape), 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def sample_record(i: int, images: int | Sequence[tuple[int, int]] = 1, turns: int = 1) -> Record:
    """The i-th record of an endless series: `images` many, or of these (width, height)s; `turns` questions."""
    if isinstance(images, int):
        images = [(30 + 13 * (i % 7) + 9 * k, 41 + 11 * (i % 5)) for k in range(images)]
    messages = []
    for turn in range(turns):
        here = len(images) if turn == 0 else 0
        question = Part("text", f"Question {turn} of sample {i}: " + "what is shown? " * (1 + i % 4))
        messages.append(Message("user", (*[Part("image")] * here, question)))
        messages.append(Message("assistant", (Part("text", f"Answer {i * 7 + turn}" + ", a dot" * (i % 6) + "."),)))
    return Record(
        id=f"sample-{i:05d}",
        images=tuple(image_bytes(width, height, seed=i * 10 + k) for k, (width, height) in enumerate(images)),
        messages=tuple(messages),
        category=("digits", "charts", "text")[i % 3],
        language=("en", "zh")[i % 2],
        source=f"set-{i % 2}",
        license="CC0-1.0",
    )


def write_records(folder: str | Path, records: Sequence[Record]) -> Path:
    """Write a records folder: records.jsonl and images/."""
    target = Path(folder)
    (target / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, record in enumerate(records):
        names = []
        for k, data in enumerate(record.images):
            names.append(f"images/{number:05d}_{k}.{image_header(data).suffix}")
            (target / names[-1]).write_bytes(data)
        lines.append(json.dumps({**record_fields(record), "images": names}, ensure_ascii=False))
    (target / "records.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return target


@contextmanager
def edited(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file of an index to be changed; it ends with the right seal again."""
    with h5py.File(path, "r+") as file:
        yield file
    with path.open("r+b") as raw:  # the library may have left the old seal where it was
        content = raw.read()
        raw.truncate(content.rfind(SEAL) if SEAL in content else len(content))
    seal_file(path)
