"""A checkpoint that answers: a conversation in, text out as it is made."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from onevision.chat.conversation import Conversation, Picture
from onevision.data.image import ImageError, image_size, patch_grid
from onevision.data.patcher import image_patcher
from onevision.data.template import encode_prompt
from onevision.data.tokenizer import Tokenizer, load_tokenizer
from onevision.errors import InputError
from onevision.evaluation.generate import LENGTH, STOP, Event, Prompt, stream
from onevision.evaluation.memory import Memory
from onevision.evaluation.model import answering, find_checkpoint, load_answering
from onevision.evaluation.sampling import GREEDY, Sampling
from onevision.model.onevision import OneVisionModel
from onevision.recipe import DataRecipe, Recipe


@dataclass(frozen=True)
class Settings:
    """How answers are made.

    Raises:
        InputError: an answer could have no token.
    """

    sampling: Sampling = GREEDY
    max_new_tokens: int = 512

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={self.max_new_tokens} must be at least 1")


class Answer:
    """An answer while it is made: iterate over it for its text, piece by piece, in whole characters. Who stops before
    its end closes the iterator.

    Raises while it is iterated over:
        InputError: the GPU has no memory left.
    """

    def __init__(self, events: Generator[Event, None, None], tokenizer: Tokenizer, prompt_tokens: int) -> None:
        self._events, self._tokenizer = events, tokenizer
        self.prompt_tokens = prompt_tokens
        self.text = ""
        self.tokens = 0
        self.end = ""  # STOP or LENGTH when it is finished
        self.first = 0.0  # seconds to the first token, or to the end of an empty answer
        self.seconds = 0.0  # in all

    def __iter__(self) -> Generator[str, None, None]:
        with closing(self._ids()) as ids:
            for piece in self._tokenizer.pieces(ids):
                self.text += piece
                yield piece

    def _ids(self) -> Generator[int, None, None]:
        with closing(self._events) as events:
            yield from self._timed(events)

    def _timed(self, events: Iterator[Event]) -> Iterator[int]:
        began = time.perf_counter()
        try:
            for event in events:
                self.seconds = time.perf_counter() - began
                self.first = self.first or self.seconds
                self.end = event.end
                if event.token is not None:
                    self.tokens += 1
                    yield event.token
        except torch.OutOfMemoryError:
            raise InputError(
                f"no memory left on the GPU after {self.prompt_tokens} tokens of question and {self.tokens} of answer: "
                "/clear starts anew, a smaller data.max_pixels makes images smaller"
            ) from None

    @property
    def rate(self) -> float:
        """Tokens a second after the first one; 0 where there is none."""
        return (self.tokens - 1) / (self.seconds - self.first) if self.tokens > 1 else 0.0

    @property
    def facts(self) -> str:
        """How many tokens, and how fast, in words."""
        facts = [f"{self.tokens} token{'s' * (self.tokens != 1)}"]
        if self.rate:
            facts.append(f"{self.rate:.1f} tokens/s")
        facts.append(f"first after {self.first:.2f} s")
        facts.append(f"prompt {self.prompt_tokens} tokens")
        if self.end == LENGTH:
            facts.append("cut at max_new_tokens")
        elif self.end != STOP:
            facts.append("stopped")
        return ", ".join(facts)


class Assistant:
    """A model with what it needs to be asked. It remembers the conversation that it answered last."""

    def __init__(
        self, model: OneVisionModel, tokenizer: Tokenizer, data: DataRecipe, device: torch.device, label: str
    ) -> None:
        self.model, self.tokenizer, self.data, self.label = model, tokenizer, data, label
        self._memory = Memory()
        self._patcher = image_patcher(data, device, model.config.params_dtype)
        self._longest = model.architecture.language.max_position_embeddings

    def picture(self, name: str, content: bytes) -> Picture:
        """An image file, ready to be asked about.

        Raises:
            InputError: it is not an image, or one that the model cannot take.
        """
        try:
            size = image_size(content)
            grid = patch_grid(*size, self.data.min_pixels, self.data.max_pixels)
            patches, (error,) = self._patcher.make([content], [size], [grid])
        except ImageError as problem:
            error = problem
        if error is not None:
            what = "is not an image that can be read" if error.reason == "image_undecodable" else "cannot be used"
            raise InputError(f"{name} {what}: {error.detail}")
        return Picture(name, size, grid, patches)

    def check_room(self, pictures: Sequence[Picture]) -> None:
        """Refuse more images than a question may have, before they fill the memory.

        Raises:
            InputError: they have more tokens than the model takes.
        """
        tokens = sum(picture.tokens for picture in pictures)
        if tokens >= self._longest:
            raise InputError(f"{len(pictures)} images have {tokens} tokens, and the model takes {self._longest}")

    def answer(self, conversation: Conversation, settings: Settings) -> Answer:
        """The answer to the last message of a conversation; the model begins when it is iterated over.

        Raises:
            InputError: the conversation has more tokens than the model takes.
        """
        pictures = conversation.pictures
        ids = encode_prompt(conversation.messages, self.tokenizer, [picture.tokens for picture in pictures])
        room = self._longest - len(ids)
        if room < 1:
            raise InputError(
                f"too many tokens: {len(ids)} with this question, {sum(picture.tokens for picture in pictures)} of "
                f"them of {len(pictures)} images, and the model takes {self._longest}: /clear starts anew; a smaller "
                f"data.max_pixels (now {self.data.max_pixels}) makes images smaller"
            )
        patches = [picture.patches for picture in pictures]
        prompt = Prompt(
            ids,
            torch.cat(patches) if patches else self._patcher.make([], [], [])[0],
            np.array([(1, *picture.grid) for picture in pictures], np.int64).reshape(-1, 3),
            settings.sampling,
        )
        events = stream(
            self.model,
            [prompt],
            image_pad=self.tokenizer.image_pad,
            stop_tokens=self.tokenizer.stop_tokens,
            max_new_tokens=min(settings.max_new_tokens, room),
            batch_tokens=len(ids),
            memory=self._memory,
        )
        return Answer(events, self.tokenizer, len(ids))


def load_assistant(recipe: Recipe, run: str | Path) -> Assistant:
    """The newest checkpoint of a run folder, or a checkpoint's own folder, on the GPU where there is one.

    Raises:
        InputError: checkpoint or tokenizer is missing, or the checkpoint is of another size than the recipe's model.
        DataError: the checkpoint is broken.
    """
    tokenizer = load_tokenizer(recipe.data.tokenizer)
    folder, content = find_checkpoint(recipe, run)
    recipe = answering(recipe)
    model, device = load_answering(recipe, folder, content)
    label = f"{folder}, step {content['step']}: {recipe.model.preset} in {recipe.train.precision} on {_name(device)}"
    return Assistant(model, tokenizer, recipe.data, device, label)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
