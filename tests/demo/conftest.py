"""A small source and its tokenizer, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from onevision.demo.source import CATEGORIES, build_source
from onevision.demo.tokenizer import build_tokenizer

SEED = 7
TRAIN = dict.fromkeys(CATEGORIES, 60)
HELDOUT = dict.fromkeys(CATEGORIES, 24)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_source(tmp_path_factory.mktemp("demo") / "source", SEED, TRAIN, HELDOUT).folder


@pytest.fixture(scope="session")
def tokenizer_folder(source: Path) -> Path:
    return build_tokenizer(source / "train", source.parent / "tokenizer").folder
