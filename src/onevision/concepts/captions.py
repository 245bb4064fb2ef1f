"""The caption of a sample: the text that concepts are looked for in."""

from __future__ import annotations

from onevision.corpus.record import Record


def caption(record: Record) -> str:
    """What the assistant says in a record, turn by turn, a line each; questions and system messages are left out."""
    return "\n".join(message.text.strip() for message in record.messages if message.role == "assistant")
