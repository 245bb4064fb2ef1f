"""Accuracy: what counts as right, what chance is, and the whole evaluation of a checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onevision.corpus.build import build_corpus
from onevision.corpus.reader import CorpusReader
from onevision.data.patcher import image_patcher
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import DataError, InputError
from onevision.evaluation.accuracy import Question, chance_levels, evaluate, normalise, prompt, questions
from onevision.recipe import Recipe, recipe_from
from tests.fixtures import sample_record, write_records


def _question(text: str, answer: str, category: str = "digits") -> Question:
    return Question(0, 0, "id", category, "en", text, answer, ())


@pytest.mark.parametrize(("said", "meant"), [(" Yes. ", "yes"), ("三。", "三"), ("7", "7"), ("A cat", "a cat")])
def test_normalise(said: str, meant: str) -> None:
    assert normalise(said) == meant


def test_chance_is_the_score_of_the_most_frequent_training_answer() -> None:
    training = [_question("Even?", "yes")] * 3 + [_question("Even?", "no")] + [_question("Which?", "5")] * 2
    training += [_question("1 + 1?", "2", "text")] * 2 + [_question("2 + 2?", "4", "text")]
    held_out = [_question("Even?", "yes"), _question("Even?", "no"), _question("Which?", "5")]
    held_out += [_question("1 + 0?", "2", "text"), _question("2 + 2?", "4", "text"), _question("3 + 3?", "6", "text")]
    assert chance_levels(training, held_out) == {"digits": 2 / 3, "text": 1 / 3}


def test_questions_that_no_recipe_names_are_not_those_of_the_working_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="evaluation.corpus is empty"):
        evaluate(Recipe(), "runs/any", tmp_path / "evaluation")


def test_a_question_whose_image_cannot_be_decoded_is_named(data_values: dict[str, Any], tmp_path: Path) -> None:
    whole = sample_record(3)
    write_records(tmp_path / "source", [replace(whole, images=(whole.images[0][:-200],))])
    values = {**data_values, "source": str(tmp_path / "source"), "corpus": str(tmp_path / "corpus")}
    data = recipe_from({"data": values}).data
    build_corpus(data, data.corpus)
    corpus = CorpusReader(data.corpus)
    patcher = image_patcher(data, torch.device("cpu"), torch.float32)
    with pytest.raises(
        DataError, match=rf"^{data.corpus}: sample sample-00003 cannot be asked about: image_undecodable"
    ):
        prompt(questions(corpus)[0], corpus, load_tokenizer(data.tokenizer), data, patcher)


def test_evaluation_of_a_trained_model_finds_what_it_learned(colours: tuple[Recipe, Recipe], tmp_path: Path) -> None:
    stage0, recipe = colours
    before = evaluate(recipe, stage0.output, tmp_path / "before").summary
    after = evaluate(recipe, recipe.output, tmp_path / "after")
    assert before["categories"] == {"colours": {"accuracy": 0.0, "n": 20}}
    accuracy = after.summary["categories"]["colours"]["accuracy"]
    assert accuracy >= 0.8
    rows = [json.loads(line) for line in (after.folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    corpus = CorpusReader(recipe.evaluation.corpus)
    assert [row["id"] for row in rows] == [question.id for question in questions(corpus)]
    assert sum(row["correct"] for row in rows) == round(20 * accuracy)
    assert all(row["correct"] == (row["output"] == row["answer"]) for row in rows)
    assert evaluate(recipe, recipe.output, tmp_path / "after").skipped
    with pytest.raises(InputError, match="holds no checkpoint"):
        evaluate(recipe, recipe.output + "-not", tmp_path / "after")
