"""Held-out questions with their images and answers, chosen so that right and wrong ones are shown as they occur."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onevision.corpus.reader import CorpusReader
from onevision.report.results import Evaluation, Results
from onevision.report.thumbnails import Picture, cut, picture

SHOWN = 6  # examples a category, fewer when there are many categories
ALL_SHOWN = 60


@dataclass(frozen=True)
class Example:
    """One answered question."""

    id: str
    language: str
    turn: int  # from 1
    turns: int
    pictures: list[Picture]
    earlier: list[tuple[str, str]]  # questions and answers that came before
    question: str
    answer: str
    output: str
    output_before: str | None  # of the start weights
    correct: bool


@dataclass(frozen=True)
class Group:
    """The examples of a category, and how many of its questions were answered rightly."""

    category: str
    right: int
    n: int
    examples: list[Example]


def example_groups(results: Results) -> list[Group]:
    """Examples of every category of the evaluation after training; none without it."""
    if results.after is None:
        return []
    corpus = results.heldout_corpus
    before = _outputs(results.before)
    count = max(2, min(SHOWN, ALL_SHOWN // max(len(results.after.categories), 1)))
    groups = []
    for category in results.after.categories:
        answers = [answer for answer in results.after.answers if answer["category"] == category]
        chosen = choose(answers, [_images(answer, corpus) for answer in answers], count)
        groups.append(
            Group(
                category,
                sum(answer["correct"] for answer in answers),
                len(answers),
                [_example(answer, corpus, before.get((answer["row"], answer["turn"]))) for answer in chosen],
            )
        )
    return groups


def choose(answers: Sequence[dict[str, Any]], images: Sequence[int], count: int) -> list[dict[str, Any]]:
    """`count` answers: wrong ones in their share, at least one of each kind that occurs; then as different as can be
    in language, number of images, turn and wording. Right ones come first."""
    wrong = [i for i, answer in enumerate(answers) if not answer["correct"]]
    right = [i for i, answer in enumerate(answers) if answer["correct"]]
    count = min(count, len(answers))
    share = round(count * len(wrong) / max(len(answers), 1))
    wanted = min(max(share, min(1, len(wrong))), count - min(1, len(right)))
    return [answers[i] for i in _varied(right, count - wanted, answers, images)] + [
        answers[i] for i in _varied(wrong, wanted, answers, images)
    ]


def _varied(
    candidates: list[int], count: int, answers: Sequence[dict[str, Any]], images: Sequence[int]
) -> list[int]:
    used: Counter[Any] = Counter()
    chosen: list[int] = []

    def traits(i: int) -> tuple[Any, Any]:
        return (answers[i]["language"], images[i], answers[i]["turn"] > 0), answers[i]["text"]

    while len(chosen) < count:
        left = [i for i in candidates if i not in chosen]
        best = min(left, key=lambda i: (*(used[trait] for trait in traits(i)), i))
        used.update(traits(best))
        chosen.append(best)
    return chosen


def _outputs(evaluation: Evaluation | None) -> dict[tuple[int, int], str]:
    return {(row["row"], row["turn"]): row["output"] for row in evaluation.answers} if evaluation else {}


def _holds(corpus: CorpusReader | None, answer: dict[str, Any]) -> bool:
    """Whether the corpus still is the one that was asked about, as far as this row tells."""
    row = answer["row"]
    return corpus is not None and 0 <= row < len(corpus) and corpus.index.id[row].decode() == answer["id"]


def _images(answer: dict[str, Any], corpus: CorpusReader | None) -> int:
    if corpus is None or not _holds(corpus, answer):
        return 0
    start = corpus.index.image_start
    return int(start[answer["row"] + 1] - start[answer["row"]])


def _example(answer: dict[str, Any], corpus: CorpusReader | None, output_before: str | None) -> Example:
    pictures: list[Picture] = []
    earlier: list[tuple[str, str]] = []
    turns = answer["turn"] + 1
    if corpus is not None and _holds(corpus, answer):
        record = corpus.record(answer["row"])
        users = [message for message in record.messages if message.role == "user"]
        replies = [message.text.strip() for message in record.messages if message.role == "assistant"]
        turns = len(users)
        asked = users[: answer["turn"] + 1]
        used = sum(part.type == "image" for message in asked for part in message.content)
        pictures = [shown for image in record.images[:used] if (shown := picture(image))]
        earlier = [
            (cut(user.text.strip()), cut(reply)) for user, reply in zip(asked[:-1], replies, strict=False)
        ]
    return Example(
        id=answer["id"],
        language=answer["language"],
        turn=answer["turn"] + 1,
        turns=turns,
        pictures=pictures,
        earlier=earlier,
        question=cut(answer["text"]),
        answer=cut(answer["answer"]),
        output=cut(answer["output"]),
        output_before=None if output_before is None else cut(output_before, 60),
        correct=answer["correct"],
    )
