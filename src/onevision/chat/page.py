"""Chat on a page in the browser, by Gradio. Nothing of it comes from, or goes to, another machine."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import util
from pathlib import Path
from typing import Any

from onevision.chat.assistant import Assistant, Settings
from onevision.chat.conversation import Conversation, Picture
from onevision.chat.paths import read_file
from onevision.errors import InputError, OneVisionError
from onevision.evaluation.sampling import Sampling

KEPT_PICTURES = 64  # that need not be decoded again for the next question
# What a page may load, said to the browser: this server's own files, and nothing of Gradio's links to the outside.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "form-action 'self'; frame-ancestors 'self'"
)


def check_gradio() -> None:
    """
    Raises:
        InputError: Gradio is not installed.
    """
    if util.find_spec("gradio") is None:
        raise InputError(
            "web=true needs Gradio: .venv/bin/python -m pip install --no-deps -r envs/chat.lock, or leave web=true out"
        )


def make_page(assistant: Assistant, settings: Settings) -> Any:
    """The page as Gradio's Blocks."""
    import gradio as gr

    @lru_cache(KEPT_PICTURES)
    def picture(path: str) -> Picture:
        return assistant.picture(Path(path).name, read_file(Path(path)))

    def content(parts: Any) -> list[str | Picture]:
        """Texts and pictures of a message of Gradio's history, the pictures first, where training has them."""
        parts = parts if isinstance(parts, list) else [parts]
        texts = [part if isinstance(part, str) else part["text"] for part in parts if "text" in part or part is str]
        files = [part["file"]["path"] for part in parts if isinstance(part, dict) and "file" in part]
        return [*map(picture, files), *texts]

    def reply(message: dict[str, Any], history: list[dict[str, Any]], *values: Any) -> Iterator[tuple[str, str]]:
        temperature, top_p, seed, longest = values
        try:
            chosen = Settings(Sampling(temperature, top_p, settings.sampling.top_k, int(seed)), int(longest))
            conversation = Conversation()
            for turn in history:
                said = content(turn["content"])
                if turn["role"] == "user":
                    conversation = conversation.ask(said)
                else:
                    conversation = conversation.answered("".join(part for part in said if isinstance(part, str)))
            conversation = conversation.ask([*map(picture, message["files"]), message["text"]])
            answer = assistant.answer(conversation, chosen)
        except OneVisionError as error:
            raise gr.Error(str(error), print_exception=False) from None
        for _ in answer:
            yield answer.text, answer.facts
        yield answer.text, answer.facts

    return reply


def serve(assistant: Assistant, settings: Settings, host: str, port: int) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        InputError: the port is taken, or the host is no address of this machine.
    """
