"""The held-out questions of a corpus as a task of lmms-eval: `onevision_heldout`.

A question is every answer of every record, asked with the turns before it, exactly as onevision.evaluation.accuracy
asks it, and an answer is right by the same rule. So both must find the same accuracy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from onevision.corpus.reader import CorpusReader
from onevision.evaluation.accuracy import Question, questions
from onevision.evaluation.harness.places import HELDOUT_DATA
from onevision.files import one_at_a_time
from onevision.steps import StepResult, run_step

ROW_GROUP = 256  # questions
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "turn": pa.int64(),
        "category": pa.string(),
        "language": pa.string(),
        "messages": pa.string(),  # JSON: [{role, content: [{type, text}]}], what is asked
        "answer": pa.string(),
        "images": pa.list_(pa.binary()),  # encoded files, in the order of the image parts of `messages`
    }
)


def write_heldout(corpus_folder: str | Path, folder: str | Path) -> StepResult:
    """Write the questions of a corpus as `folder/test.parquet`. Summary: questions.

    Raises:
        InputError, DataError: as `CorpusReader`.
    """
    corpus = CorpusReader(corpus_folder)

    def build(temporary: Path) -> dict[str, Any]:
        asked = questions(corpus)
        with pq.ParquetWriter(temporary / HELDOUT_DATA.name, SCHEMA) as writer:
            for start in range(0, len(asked), ROW_GROUP):
                rows = [_row(question, corpus) for question in asked[start : start + ROW_GROUP]]
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
        return {"questions": len(asked)}

    folder = Path(folder)
    with one_at_a_time(
        folder.with_name(f".{folder.name}.lock")
    ):  # evaluations of several checkpoints may begin at once
        return run_step("heldout-task", folder, {"corpus": corpus.index.fingerprint, "format": 1}, build)


def _row(question: Question, corpus: CorpusReader) -> dict[str, Any]:
    messages = [
        {"role": message.role, "content": [{"type": part.type, "text": part.text} for part in message.content]}
        for message in question.messages
    ]
    used = sum(part.type == "image" for message in question.messages for part in message.content)
    return {
        "id": question.id,
        "turn": question.turn,
        "category": question.category,
        "language": question.language,
        "messages": json.dumps(messages, ensure_ascii=False),
        "answer": question.answer,
        "images": list(corpus.record(question.row).images[:used]),
    }
