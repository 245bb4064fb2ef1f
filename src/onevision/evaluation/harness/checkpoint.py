"""The model `onevision` of lmms-eval: a checkpoint of a run, as training wrote it, in any layout."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lmms_eval.protocol import ChatMessages
from PIL import Image

from onevision.corpus.record import Message, Part
from onevision.data.image import patch_grid, to_rgb
from onevision.data.patcher import image_patcher
from onevision.data.template import TEMPLATE_FINGERPRINT, encode_prompt
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import InputError
from onevision.evaluation.generate import Prompt, generate
from onevision.evaluation.harness.generation import (
    SEEDS,
    Question,
    check_beams,
    finished,
    new_tokens,
    sampling_of,
)
from onevision.evaluation.harness.keeping import Keeping
from onevision.evaluation.harness.places import results_folder
from onevision.evaluation.harness.sharing import Share
from onevision.evaluation.model import answering, find_checkpoint, load_answering
from onevision.recipe import Recipe, load_recipe
from onevision.training import checkpoint_files


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
        self.folder, content = find_checkpoint(recipe, named)
        self.step: int = content["step"]
        self.recipe = answering(replace(recipe, data=data))
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
                "precision": self.recipe.train.precision,
                "sampling": SEEDS,
            },
            responses or str(results_folder(run, "onevision", self.step)),
            batch_size=int(batch_size),
            retries=int(retries),
            share=share,
            marks_failures=marks_failures,
        )
        self.network, self.device = load_answering(
            self.recipe, self.folder, content, local_rank=local_rank, processes=self.share.size
        )
        self.patcher = image_patcher(data, self.device, self.network.config.params_dtype)

    def check(self, generation: dict[str, Any]) -> None:
        """Refuse generation settings that this model does not have.

        Raises:
            InputError: they ask for beams, or a value cannot work.
        """
        check_beams(generation)
        sampling_of(generation, 0)

    def ask(self, questions: list[Question]) -> list[str]:
        """Answer questions of the same generation settings.

        Raises:
            InputError: a question is not of text and images, has more tokens than the model takes, or asks for a way of
                answering that there is not.
            ImageError: an image cannot be used.
        """
        generation = questions[0].generation or {}
        check_beams(generation)
        answers = generate(
            self.network,
            [self._prompt(question) for question in questions],
            image_pad=self.tokenizer.image_pad,
            stop_tokens=self.tokenizer.stop_tokens,
            max_new_tokens=new_tokens(generation),
            batch_tokens=self.recipe.evaluation.batch_tokens,
        )
        return [finished(self.tokenizer.decode(ids, special=False), generation) for ids in answers]

    def _prompt(self, question: Question) -> Prompt:
        chat = ChatMessages(messages=question.doc_to_messages(self._document(question)))
        messages, files = to_messages(chat)
        data = self.recipe.data
        sizes = [size for _, size in files]
        grids = [patch_grid(*size, data.min_pixels, data.max_pixels) for size in sizes]
        patches, errors = self.patcher.make([data for data, _ in files], sizes, grids)
        if error := next(filter(None, errors), None):
            raise error
        ids = encode_prompt(messages, self.tokenizer, [height * width // 4 for height, width in grids])
        longest = self.network.architecture.language.max_position_embeddings
        if len(ids) >= longest:
            raise InputError(f"a question of {len(ids)} tokens with {len(files)} images: the model takes {longest}")
        generation = question.generation or {}
        return Prompt(
            ids,
            patches,
            np.array([(1, height, width) for height, width in grids], np.int64).reshape(-1, 3),
            sampling_of(generation, question.seed),
            min(new_tokens(generation), longest - len(ids)),
        )

    def _document(self, question: Question) -> Any:
        return self.task_dict[question.task][question.split][question.document]


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
        image = to_rgb(image)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue(), image.size
