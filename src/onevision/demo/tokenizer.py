"""The demo's tokenizer: byte-level BPE of the training text, with Qwen's special tokens.

Digits stand alone, so that a number is read as its digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from onevision.corpus.formats.records import RECORDS
from onevision.data.template import DEFAULT_SYSTEM
from onevision.errors import InputError
from onevision.files import write_json, write_text
from onevision.fingerprint import file_digest
from onevision.steps import StepResult, run_step

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ALPHABET = 256  # every byte is a token, so that any text can be written
LONGEST = 16  # bytes of a token: a word, not a whole question
MODEL_LENGTH = 32_768
# Words with the blank before them, digits one by one, runs of other signs, line ends apart from other blanks.
PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n|[^\S\n]+"

# ChatML. A content is a string or a list of parts; the processor repeats the <|image_pad|> of an image part.
CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}"
    "{%- for part in message.content -%}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def build_tokenizer(source_folder: Path, output: Path, vocab_size: int = 2048) -> StepResult:
    """Train on the text of `source_folder/records.jsonl`; write tokenizer.json and tokenizer_config.json.

    The folder loads with transformers' AutoTokenizer, chat template included. The vocabulary has at most
    `vocab_size` tokens, the special ones among them. Summary: vocab_size, merges, texts.

    Raises:
        InputError: no records in the folder, or a `vocab_size` below the bytes and special tokens.
    """
    records = source_folder / RECORDS
    least = ALPHABET + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise InputError(f"vocab_size={vocab_size} is below {least}: {ALPHABET} bytes and the special tokens")
    if not records.is_file():
        raise InputError(f"{records} does not exist: make the demo's source first")
    inputs = {"records": file_digest(records), "vocab_size": vocab_size, "code": file_digest(__file__)}

    def build(folder: Path) -> dict[str, Any]:
        texts = list(_texts(records))
        tokenizer = _train(texts, vocab_size)
        write_text(folder / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
        write_json(folder / "tokenizer_config.json", _config())
        merges = len(json.loads(tokenizer.to_str())["model"]["merges"])
        return {"vocab_size": tokenizer.get_vocab_size(), "merges": merges, "texts": len(texts)}

    return run_step("demo-tokenizer", output, inputs, build)


def _texts(records: Path) -> Iterator[str]:
    """Every text as it stands in the template, between special tokens."""
    with records.open(encoding="utf-8") as file:
        for line in file:
            yield f"system\n{DEFAULT_SYSTEM}"
            for message in json.loads(line)["messages"]:
                words = "".join(part["text"] for part in message["content"] if part["type"] == "text")
                yield f"{message['role']}\n"
                yield words


def _train(texts: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=LONGEST,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "clean_up_tokenization_spaces": False,
        "model_max_length": MODEL_LENGTH,
        "model_input_names": ["input_ids", "attention_mask"],
        "chat_template": CHAT_TEMPLATE,
    }
