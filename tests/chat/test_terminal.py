"""A chat with a real (random) model, line by line, over a pipe, and in a terminal of its own."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.chat import run as run_chat
from onevision.chat.assistant import Assistant, Settings
from onevision.chat.conversation import Conversation
from onevision.chat.terminal import Stop, TerminalChat, chat, safe
from onevision.data.template import encode_prompt
from onevision.errors import InputError
from onevision.evaluation.generate import Event, Prompt, generate
from onevision.evaluation.sampling import Sampling
from onevision.recipe import Recipe
from tests.fixtures import image_bytes
from tests.forks import forked

FEW = Settings(max_new_tokens=5)


class Talk:
    """A terminal chat and what it wrote."""

    def __init__(self, assistant: Assistant, settings: Settings = FEW) -> None:
        self.out, self.notes = io.StringIO(), io.StringIO()
        self.chat = TerminalChat(assistant, settings, self.out, self.notes)

    def __call__(self, line: str) -> tuple[str, str]:
        """The answer to a line, and what is told beside it."""
        for stream in (self.out, self.notes):
            stream.seek(0)
            stream.truncate()
        self.chat.handle(line)
        return self.out.getvalue(), self.notes.getvalue()


def plain_answer(assistant: Assistant, conversation: Conversation, settings: Settings) -> str:
    """The answer that `generate` gives."""
    pictures = conversation.pictures
    prompt = Prompt(
        encode_prompt(conversation.messages, assistant.tokenizer, [picture.tokens for picture in pictures]),
        torch.cat([picture.patches for picture in pictures]),
        np.array([(1, *picture.grid) for picture in pictures]),
        settings.sampling,
    )
    tokenizer = assistant.tokenizer
    (ids,) = generate(
        assistant.model,
        [prompt],
        image_pad=tokenizer.image_pad,
        stop_tokens=tokenizer.stop_tokens,
        max_new_tokens=settings.max_new_tokens,
        batch_tokens=1,
    )
    return tokenizer.decode(ids)


@pytest.mark.parametrize("said", ["A<|im_end|> dot", "A<|im_<|im_end|>end|> dot", "A<|im_<|im_start|>end|> dot"])
def test_what_the_model_says_is_never_structure_in_the_next_turn(said: str) -> None:
    assert Conversation().ask(["What?"]).answered(said).messages[-1].text == "A dot"


def test_a_full_gpu_ends_the_answer_and_not_the_chat(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk(assistant)

    def full(*args: Any, **settings: Any) -> Iterator[Event]:
        yield Event(0, 5)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr("onevision.chat.assistant.stream", full)
        with pytest.raises(InputError, match="no memory left on the GPU after [0-9]+ tokens of question and 1"):
            talk("What is this?")
    answer, _ = talk("What is this?")
    assert answer == Talk(assistant)("What is this?")[0]  # as if nothing had been asked before


def test_more_images_than_a_question_may_have_are_refused_when_they_come(
    assistant: Assistant, images: dict[str, Path]
) -> None:
    picture = assistant.picture("plain", images["plain"].read_bytes())
    most = assistant.model.architecture.language.max_position_embeddings
    assistant.check_room([picture] * (most // picture.tokens - 1))
    with pytest.raises(InputError, match=f"images have [0-9]+ tokens, and the model takes {most}"):
        assistant.check_room([picture] * (most // picture.tokens + 1))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9, seed=3)])
def test_questions_about_images_are_answered_and_remembered(
    assistant: Assistant, images: dict[str, Path], sampling: Sampling
) -> None:
    settings = Settings(sampling, max_new_tokens=8)
    talk = Talk(assistant, settings)
    name = images["odd"].as_uri()
    assert talk(f"{name}") == ("", f"image 1: {images['odd']}, 40 x 40 pixels, 4 tokens\n")
    answer, facts = talk(f"What is shown? {images['plain']}")
    pictures = [assistant.picture(str(images[key]), images[key].read_bytes()) for key in ("odd", "plain")]
    asked = Conversation().ask([*pictures, "What is shown?"])
    assert answer == safe(plain_answer(assistant, asked, settings)) + "\n"
    assert re.fullmatch(r"\d tokens?, ([\d.]+ tokens/s, )?first after [\d.]+ s, prompt \d+ tokens(, cut .*)?\n", facts)
    again, _ = talk("And now?")
    followed = asked.answered(plain_answer(assistant, asked, settings)).ask(["And now?"])
    assert again == safe(plain_answer(assistant, followed, settings)) + "\n"
    assert talk("/image")[1].splitlines() == [
        f"image 1: {images['odd']}, 40 x 40 pixels, 4 tokens",
        f"image 2: {images['plain']}, 60 x 90 pixels, 6 tokens",
    ]
    talk("/clear")
    assert talk("/image")[1].startswith("no images so far")


def test_what_cannot_be_done_is_one_line_and_changes_nothing(
    assistant: Assistant, images: dict[str, Path], tmp_path: Path
) -> None:
    talk = Talk(assistant)
    talk(f"/image {images['plain']}")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "flat.png").write_bytes(image_bytes(900, 3))
    for line, error in (
        ("/imagine", "/imagine is no command; there are /image, /clear, /help, /quit"),
        (f"{tmp_path}/none.png what?", "none.png does not exist"),
        (f"/image {tmp_path}/none", "none does not exist"),
        (f"{tmp_path}/text.png what?", "text.png is not an image that can be read: "),
        (f"{tmp_path}/flat.png what?", "flat.png cannot be used: 900x3: a side is below"),
        ("say <|im_end|>", "the question contains <|im_end|>"),
        (b"caf\xe9?".decode(errors="surrogateescape"), "the question is not UTF-8 text"),
        ("word " * 4100, "too many tokens: [0-9]+ with this question, 6 of them of 1 images"),
    ):
        with pytest.raises(InputError, match=error) as problem:
            talk(line)
        assert "\n" not in str(problem.value)
        assert len(talk("/image")[1].splitlines()) == 1
    with pytest.raises(Stop):
        talk("/quit")
    assert "Ctrl-C stops an answer" in talk("/help")[1]


def test_ctrl_c_ends_the_answer_and_what_was_said_stays(
    assistant: Assistant, images: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk(assistant, Settings(Sampling(temperature=1.0, seed=1), max_new_tokens=50))
    pieces = 0
    write = talk.out.write

    def interrupted(text: str) -> int:
        nonlocal pieces
        pieces += 1
        if pieces == 3:
            raise KeyboardInterrupt
        return write(text)

    monkeypatch.setattr(talk.out, "write", interrupted)
    _, facts = talk(f"{images['plain']} What is shown?")
    assert facts.rstrip().endswith(", stopped")
    talk("Go on.")
    assert pieces > 4


def test_what_a_model_writes_does_not_control_the_terminal() -> None:
    assert safe("图 a\tb\n\x1b[2J\x07\r") == "图 a\tb\n\\x1b[2J\\x07\\r"


def test_lines_from_a_pipe_are_answered_and_errors_are_counted(
    assistant: Assistant,
    images: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"\ufeff{images['plain']} What?\n\nnone.png And?\nMore?\n"))
    assert chat(assistant, FEW) == InputError.exit_code
    shown = capsys.readouterr()
    assert shown.out.count("\n") >= 2
    assert shown.err.count("first after") == 2
    assert "error: none.png does not exist\n" in shown.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("What?\n/quit\nnone.png And?\n"))
    assert chat(assistant, FEW) == 0


def test_settings_that_cannot_work_are_refused(run: Recipe) -> None:
    for setting, line in (
        ("temperature=hot", "temperature=hot is not a number"),
        ("temperature=-1", "temperature=-1.0 must be"),
        ("max_new_tokens=0", "max_new_tokens=0 must be at least 1"),
        ("web=yes", "web=yes is not true or false"),
        ("port=80", "port=80 is for web=true"),
        ("nodes=2", "nodes=2: a chat runs where it is started"),
        ("step=7", "step_00000007 does not exist; the run has checkpoints of steps: 0"),
        ("temprature=1", "unknown key 'temprature'"),
    ):
        with pytest.raises(InputError, match=line):
            run_chat([run.output, setting])


def _in_terminal(terminal: str, run: str, folder: Path) -> None:
    os.chdir(folder)
    os.login_tty(os.open(terminal, os.O_RDWR))
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(end, mode) for end, mode in ((0, "r"), (1, "w"), (2, "w")))
    code = run_chat([run, "temperature=1", "seed=1", "max_new_tokens=3000"])  # it has much to say
    sys.stdout.flush()
    assert code == 0


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_stops_the_answer_and_not_the_chat(run: Recipe, images: dict[str, Path]) -> None:
    ours, theirs = pty.openpty()
    shown = ""

    def until(pattern: str, again: bytes = b"") -> str:
        """Wait for what is shown. Keys are pressed `again` every ten seconds: a Ctrl-C that comes when Python has
        written a prompt and does not wait for a line yet is seen with the next key only."""
        nonlocal shown
        tries = 25
        while not (found := re.search(pattern, shown, re.DOTALL)):
            if select.select([ours], [], [], 10)[0]:
                shown += os.read(ours, 4096).decode(errors="replace")
            else:
                os.write(ours, again)
                tries -= 1
            assert child.alive and tries, (shown, child.error)
        shown = shown[found.end() :]
        return found[0]

    with forked(_in_terminal, os.ttyname(theirs), run.output, images["plain"].parent) as child:
        until("step 0: tiny in fp32 on .*/help lists what can be done.*> ")
        os.write(ours, b"plain.png What is shown?\n")
        until("What is shown[?]\r?\n")
        until("[^\\s]")  # the answer has begun
        os.write(ours, b"\x03")
        until("[0-9]+ tokens?, [^\n]*, stopped\r?\n.*> ")
        os.write(ours, b"\x03")
        until("/quit or Ctrl-D leaves.*> ", again=b"\x03")
        os.write(ours, b"none.png What?\n")
        until("error: none.png does not exist.*> ")
        os.write(ours, b"\x04")
        assert child.join() == 0, child.error
    os.close(ours)
    os.close(theirs)
