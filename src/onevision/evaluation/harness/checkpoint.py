"""The model `onevision` of lmms-eval: a checkpoint of a run, as training wrote it, in any layout."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lmms_eval.protocol import ChatMessages
from PIL import Image

from onevision.corpus.record import Message, Part
from onevision.data.image import patch_grid
from onevision.data.patcher import image_patcher
from onevision.data.template import TEMPLATE_FINGERPRINT, encode_prompt
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import InputError
from onevision.evaluation.generate import Prompt, generate
from onevision.evaluation.harness.keeping import Keeping
from onevision.evaluation.harness.places import results_folder
from onevision.evaluation.harness.sharing import Share
from onevision.model.device import Ranks, runtime_context, set_threads, start
from onevision.model.presets import PRESETS
from onevision.recipe import Recipe, load_recipe
from onevision.training import checkpoint, checkpoint_files
from onevision.training.parts import build_model

DEFAULT_NEW_TOKENS = 128  # where a task names no limit, as in lmms-eval's own class
NO_STOP = "\n\n"  # the default of tasks; lmms-eval's own class ignores it too, so that answers are whole


class OneVision(Keeping):
    """`--model onevision --model_args run=FOLDER[,step=N][,max_pixels=N][,min_pixels=N]`."""

    def __init__(
        self,
        run: str,
        step: int = 0,
        max_pixels: int = 0,
        min_pixels: int = 0,
        batch_size: int | str = 16,
        retries: int = 1,
        responses: str = "",
        device: str | None = None,  # lmms-eval names one; ours is the GPU of the rank, or the CPU
        recipe: Recipe | None = None,
        share: Share | None = None,
        local_rank: int = 0,
        marks_failures: bool = False,
    ) -> None:
        """`step` 0 is the newest checkpoint; pixel limits of 0 are the recipe's, by default that of the run.

        Raises:
            InputError: no such run, checkpoint or tokenizer, or they do not fit together.
            DataError: the checkpoint is broken.
        """
        super().__init__()
        recipe = recipe or load_recipe(Path(run) / "recipe.yaml")
        data = replace(
            recipe.data,
            max_pixels=int(max_pixels) or recipe.data.max_pixels,
            min_pixels=int(min_pixels) or recipe.data.min_pixels,
        )
        named = checkpoint_files.step_folder(run, int(step)) if step else Path(run)
        self.folder, content = checkpoint_files.find(named)
        self.step: int = content["step"]
        checkpoint_files.check_architecture(self.folder, content, PRESETS[recipe.model.preset])
        # Prompts have any number of tokens, which FP8 products do not take.
        precision = "bf16" if recipe.train.precision == "fp8" else recipe.train.precision
        self.recipe = replace(recipe, data=data, train=replace(recipe.train, precision=precision))
        self.tokenizer = load_tokenizer(data.tokenizer)
        self.keep(
            {
                "model": "onevision",
                "checkpoint": content["fingerprint"],
                "tokenizer": self.tokenizer.fingerprint,
                "template": TEMPLATE_FINGERPRINT,
                "min_pixels": data.min_pixels,
                "max_pixels": data.max_pixels,
                "decoder": data.decoder,
                "precision": precision,
            },
            responses or str(results_folder(run, "onevision", self.step)),
            batch_size=int(batch_size),
            retries=int(retries),
            share=share,
            marks_failures=marks_failures,
        )
        self.device = start(Ranks(local_rank=local_rank), recipe.seed)
        set_threads(recipe.train.threads, self.share.size)
        with runtime_context(self.device):
            self.network = build_model(self.recipe, self.device, generates=True)
            checkpoint.load_model(self.folder, content, self.network)
        self.network.eval()
        self.patcher = image_patcher(data, self.device, self.network.config.params_dtype)

    def ask(self, questions: list[tuple[Any, ...]]) -> list[str]:
        """Answer questions of the same generation settings.

        Raises:
            InputError: a question is not of text and images, or asks for a way of answering that there is not.
            ImageError: an image cannot be used.
        """
        settings = questions[0][2] or {}
        check_greedy(settings)
        stops = stop_texts(settings)
        answers = generate(
            self.network,
            [self._prompt(question) for question in questions],
            image_pad=self.tokenizer.image_pad,
            stop_token=self.tokenizer.im_end,
            max_new_tokens=int(settings.get("max_new_tokens") or DEFAULT_NEW_TOKENS),
            batch_tokens=self.recipe.evaluation.batch_tokens,
        )
        return [cut(self.tokenizer.decode(ids).strip(), stops) for ids in answers]

    def _prompt(self, question: tuple[Any, ...]) -> Prompt:
        _, doc_to_messages, _, document, task, split = question
        chat = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][document]))
        messages, files = to_messages(chat)
        data = self.recipe.data
        sizes = [size for _, size in files]
        grids = [patch_grid(*size, data.min_pixels, data.max_pixels) for size in sizes]
        patches, errors = self.patcher.make([data for data, _ in files], sizes, grids)
        if error := next(filter(None, errors), None):
            raise error
        return Prompt(
            encode_prompt(messages, self.tokenizer, [height * width // 4 for height, width in grids]),
            patches,
            np.array([(1, height, width) for height, width in grids], np.int64).reshape(-1, 3),
        )


def to_messages(chat: ChatMessages) -> tuple[list[Message], list[tuple[bytes, tuple[int, int]]]]:
    """lmms-eval's messages as ours, and for each image its file (PNG: the same pixels) and its width and height.

    Raises:
        InputError: one is neither text nor an image.
    """
    messages, files = [], []
    for message in chat.messages:
        parts = []
        for content in message.content:
            if content.type == "text":
                parts.append(Part("text", content.text))
            elif content.type == "image":
                parts.append(Part("image"))
                files.append(_file(content.url))
            else:
                raise InputError(f"a question with {content.type}: this model is given text and images only")
        messages.append(Message(message.role, tuple(parts)))
    return messages, files


def _file(image: Any) -> tuple[bytes, tuple[int, int]]:
    if not isinstance(image, Image.Image):
        raise InputError(f"a question whose image is a {type(image).__name__}: this model is given pictures only")
    if image.mode not in ("RGB", "RGBA", "L", "LA", "P"):  # PNG has no others with the same meaning
        image = image.convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue(), image.size


def check_greedy(settings: dict[str, Any]) -> None:
    """Refuse what greedy generation would silently answer otherwise.

    Raises:
        InputError: the settings ask for sampling or beams.
    """
    if settings.get("do_sample") and (settings.get("temperature") or 0) > 0:
        raise InputError(f"generation settings {settings} ask for sampling: this model answers greedily")
    if (settings.get("num_beams") or 1) > 1:
        raise InputError(f"generation settings {settings} ask for beams: this model answers greedily")


def stop_texts(settings: dict[str, Any]) -> list[str]:
    """Texts at which an answer ends."""
    until = settings.get("until") or []
    texts: Iterable[str] = [until] if isinstance(until, str) else until
    return [text for text in texts if text and text != NO_STOP]


def cut(answer: str, stops: list[str]) -> str:
    """The answer up to the first of the stop texts."""
    for stop in stops:
        answer = answer.split(stop)[0]
    return answer
