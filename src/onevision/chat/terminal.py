"""Chat on a terminal, or with lines from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TextIO

from onevision.chat.assistant import Assistant, Settings
from onevision.chat.conversation import Conversation, Picture
from onevision.chat.paths import at_home, image_path, read_file, read_line
from onevision.errors import InputError, OneVisionError

HELP = """\
Ask by typing a line. An image is named in it by its path, or dropped onto the terminal; several are fine.
A line that is only an image waits for the question. Earlier questions, answers and images stay known.

  /image PATH …   images for the next question; alone: the images so far
  /clear          forget everything that was said
  /help           this text
  /quit           leave (so does Ctrl-D)

Ctrl-C stops an answer."""


class Stop(Exception):
    """The person leaves."""


class TerminalChat:
    """A conversation, a line at a time."""

    def __init__(
        self, assistant: Assistant, settings: Settings, out: TextIO, notes: TextIO, *, stoppable: bool = True
    ) -> None:
        """Answers are written to `out`, all else to `notes`. Ctrl-C ends an answer alone if it is `stoppable`."""
        self._assistant, self._settings, self._stoppable = assistant, settings, stoppable
        self._out, self._notes = out, notes
        self._conversation = Conversation()
        self._waiting: list[Picture] = []  # images that no question has been asked about yet
        self._commands: dict[str, Callable[[str], None]] = {
            "/image": self._image,
            "/clear": self._clear,
            "/help": lambda _: self._note(HELP),
            "/quit": self._quit,
        }

    def handle(self, line: str) -> None:
        """Do what a line says.

        Ctrl-C ends an answer where it is; that much of it was said.

        Raises:
            Stop: it was /quit.
            OneVisionError: it cannot be done; the conversation is as before.
        """
        line = line.strip()
        word, _, rest = line.partition(" ")
        if word in self._commands:
            self._commands[word](rest)
        elif line.startswith("/") and "/" not in word[1:] and image_path_of(word) is None:
            raise InputError(f"{word} is no command; there are {', '.join(self._commands)}")
        elif line:
            self._say(line)

    def _say(self, line: str) -> None:
        content = [self._load(piece) if isinstance(piece, Path) else piece for piece in read_line(line).pieces]
        pictures = [piece for piece in content if isinstance(piece, Picture)]
        if len(pictures) == len(content):
            self._wait(pictures)
            return
        conversation = self._conversation.ask([*self._waiting, *content])
        answer = self._assistant.answer(conversation, self._settings)
        stopped = False
        try:
            with closing(iter(answer)) as pieces:
                for piece in pieces:
                    self._out.write(safe(piece))
                    self._out.flush()
        except KeyboardInterrupt:
            if not self._stoppable:
                raise
            stopped = True
        self._out.write("\n")
        self._out.flush()
        self._note(answer.facts)
        if answer.text or not stopped:
            self._conversation, self._waiting = conversation.answered(answer.text), []

    def _load(self, path: Path) -> Picture:
        return self._assistant.picture(str(path), read_file(path))

    def _wait(self, pictures: list[Picture]) -> None:
        for picture in pictures:
            self._waiting.append(picture)
            self._note(self._described(len(self._conversation.pictures) + len(self._waiting), picture))

    def _image(self, rest: str) -> None:
        if rest.strip():
            line = read_line(rest)
            others = [piece for piece in line.pieces if isinstance(piece, str)]
            # A name without an image's ending, with blanks in it or not, is a path all the same.
            paths = line.paths if not others else [at_home(rest.strip())]
            self._wait([self._load(path) for path in paths])
            return
        pictures = [*self._conversation.pictures, *self._waiting]
        for number, picture in enumerate(pictures, start=1):
            self._note(self._described(number, picture))
        if not pictures:
            self._note("no images so far: /image PATH, or a path in a question")

    @staticmethod
    def _described(number: int, picture: Picture) -> str:
        width, height = picture.size
        return f"image {number}: {picture.name}, {width} x {height} pixels, {picture.tokens} tokens"

    def _clear(self, _: str) -> None:
        self._conversation, self._waiting = Conversation(), []
        self._note("a new conversation")

    def _quit(self, _: str) -> None:
        raise Stop

    def _note(self, text: str) -> None:
        self._notes.write(f"{text}\n")
        self._notes.flush()


def image_path_of(word: str) -> Path | None:
    """The image that a line's first word names; None for a word with an unpaired quote, too."""
    with suppress(ValueError):
        return image_path(word)
    return None


def safe(text: str) -> str:
    """Text of a model as it is written to a terminal: what could control one is escaped."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def chat(assistant: Assistant, settings: Settings) -> int:
    """Chat on this process' terminal, or answer the lines of its input and end; exit code of the first error then."""
    interactive = sys.stdin.isatty()
    notes = sys.stdout if interactive else sys.stderr
    session = TerminalChat(assistant, settings, sys.stdout, notes, stoppable=interactive)
    if interactive:
        with suppress(ImportError):
            import readline  # noqa: F401  # input() then has history and keys to move with
        print(f"{assistant.label}\n/help lists what can be done.")
    code = 0
    for line in _typed() if interactive else _piped():
        try:
            session.handle(line)
        except Stop:
            break
        except OneVisionError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            code = code or error.exit_code
        except KeyboardInterrupt:  # while an image was read
            if not interactive:
                raise
            print("\nstopped")
    return 0 if interactive else code


def _typed() -> Iterator[str]:
    """Lines from the keyboard, until Ctrl-D."""
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D leaves.")
        except UnicodeDecodeError:
            print("that was not UTF-8")
        except EOFError:
            print()
            return


def _piped() -> Iterator[str]:
    """Lines of standard input.

    Raises:
        InputError: it is not text.
    """
    try:
        for number, line in enumerate(sys.stdin):
            yield line if number else line.removeprefix("\ufeff")  # an editor's mark that the file is UTF-8
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8: {error.reason}") from None
