"""Accuracy on held-out questions, per category, beside the score of the best constant answer."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onevision.corpus.reader import CorpusReader
from onevision.corpus.record import Message
from onevision.data.image import patch_grid
from onevision.data.patcher import Patcher, image_patcher
from onevision.data.template import encode_prompt
from onevision.data.tokenizer import Tokenizer, load_tokenizer
from onevision.errors import DataError, InputError
from onevision.evaluation.generate import Prompt, generate
from onevision.evaluation.model import answering, find_checkpoint, load_answering
from onevision.fingerprint import value_digest
from onevision.progress import Progress
from onevision.recipe import DataRecipe, Recipe
from onevision.steps import StepResult, run_step


@dataclass(frozen=True)
class Question:
    """One answer of a held-out record: asked with the turns before it as they are in the record."""

    row: int  # in the corpus
    turn: int  # of the answer among the record's answers
    id: str
    category: str
    language: str
    text: str
    answer: str
    messages: tuple[Message, ...]


def questions(corpus: CorpusReader) -> list[Question]:
    """Every answer of every record of a corpus, in order."""
    found = []
    for row in range(len(corpus)):
        record = corpus.record(row)
        answers = [n for n, message in enumerate(record.messages) if message.role == "assistant"]
        for turn, n in enumerate(answers):
            found.append(
                Question(
                    row,
                    turn,
                    record.id,
                    record.category,
                    record.language,
                    record.messages[n - 1].text.strip(),
                    record.messages[n].text.strip(),
                    record.messages[:n],
                )
            )
    return found


def normalise(answer: str) -> str:
    """An answer as it is compared: without case, outer blanks and a final full stop."""
    return answer.strip().rstrip(".。").strip().casefold()


def prompt(
    question: Question, corpus: CorpusReader, tokenizer: Tokenizer, data: DataRecipe, patcher: Patcher
) -> Prompt:
    """The question as the model is asked it.

    Raises:
        DataError: an image of it cannot be decoded.
    """
    index = corpus.index
    used = sum(part.type == "image" for message in question.messages for part in message.content)
    images = corpus.record(question.row).images[:used]
    first = index.image_start[question.row]
    widths, heights = (column[first : first + used].tolist() for column in (index.image_width, index.image_height))
    sizes = list(zip(widths, heights, strict=True))
    grids = [patch_grid(*size, data.min_pixels, data.max_pixels) for size in sizes]
    patches, errors = patcher.make(images, sizes, grids)
    if error := next(filter(None, errors), None):
        raise DataError(
            f"{corpus.folder}: sample {question.id} cannot be asked about: {error}; import these questions with "
            "data.verify_images=true, which leaves out images that cannot be decoded"
        )
    return Prompt(
        encode_prompt(question.messages, tokenizer, [height * width // 4 for height, width in grids]),
        patches,
        np.array([(1, height, width) for height, width in grids], np.int64).reshape(-1, 3),
    )


def wording(question: Question) -> str:
    """The question without its figures, so that "larger: 3 or 7" and "larger: 2 or 9" are one wording."""
    return re.sub(r"\d", "#", question.text)


def constant_answers(asked: Iterable[Question]) -> tuple[dict[tuple[str, str], str], dict[str, str]]:
    """The most frequent answer to each (category, wording), and to each category."""
    by_text: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    by_category: dict[str, Counter[str]] = defaultdict(Counter)
    for question in asked:
        by_text[question.category, wording(question)][normalise(question.answer)] += 1
        by_category[question.category][normalise(question.answer)] += 1
    return (
        {key: counts.most_common(1)[0][0] for key, counts in by_text.items()},
        {key: counts.most_common(1)[0][0] for key, counts in by_category.items()},
    )


def chance_levels(training: Iterable[Question], held_out: list[Question]) -> dict[str, float]:
    """What a reader without eyes would score: to each held-out question the answer that is most frequent in training
    for the same wording, or for its category when the wording does not occur there."""
    by_text, by_category = constant_answers(training)
    right: Counter[str] = Counter()
    for question in held_out:
        guess = by_text.get((question.category, wording(question)), by_category.get(question.category))
        right[question.category] += guess == normalise(question.answer)
    counts = Counter(question.category for question in held_out)
    return {category: right[category] / count for category, count in counts.items()}


def evaluate(recipe: Recipe, checkpoint_path: str, output: str | Path) -> StepResult:
    """Answer the held-out questions with a checkpoint; writes answers.jsonl and the accuracy per category.

    The summary is `{categories: {name: {accuracy, n}}, checkpoint, step, tokens_per_second}`.

    Raises:
        InputError: the recipe names no questions, or corpus, tokenizer or checkpoint is missing or of another size.
        DataError: a question or the checkpoint is damaged.
    """
    if not recipe.evaluation.corpus:
        raise InputError("evaluation.corpus is empty: name a corpus of held-out questions, or ask tasks=NAME,…")
    corpus, tokenizer = CorpusReader(recipe.evaluation.corpus), load_tokenizer(recipe.data.tokenizer)
    folder, content = find_checkpoint(recipe, checkpoint_path)
    recipe = answering(recipe)
    inputs = {
        "checkpoint": content["fingerprint"],
        "corpus": corpus.index.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "max_new_tokens": recipe.evaluation.max_new_tokens,
        "pixels": [recipe.data.min_pixels, recipe.data.max_pixels],
        "decoder": recipe.data.decoder,
        "precision": recipe.train.precision,
    }

    def build(temporary: Path) -> dict[str, Any]:
        model, device = load_answering(recipe, folder, content)
        patcher = image_patcher(recipe.data, device, model.config.params_dtype)
        asked = questions(corpus)
        prompts = (prompt(question, corpus, tokenizer, recipe.data, patcher) for question in asked)
        right: Counter[str] = Counter()
        with (
            (temporary / "answers.jsonl").open("w", encoding="utf-8") as file,
            Progress("evaluate", len(asked), "questions") as progress,
        ):
            answers = generate(
                model,
                prompts,
                image_pad=tokenizer.image_pad,
                stop_tokens=tokenizer.stop_tokens,
                max_new_tokens=recipe.evaluation.max_new_tokens,
                batch_tokens=recipe.evaluation.batch_tokens,
            )
            for question, ids in zip(asked, answers, strict=True):
                output_text = tokenizer.decode(ids, special=False).strip()
                correct = normalise(output_text) == normalise(question.answer)
                right[question.category] += correct
                row = asdict(question) | {"output": output_text, "correct": correct}
                del row["messages"]
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                progress.advance(note=f"{sum(right.values())} right")
        counts = Counter(question.category for question in asked)
        return {
            "checkpoint": str(folder),
            "step": content["step"],
            "categories": {
                category: {"accuracy": right[category] / count, "n": count}
                for category, count in sorted(counts.items())
            },
            "fingerprint": value_digest(inputs),
        }

    return run_step("evaluate", output, inputs, build)
