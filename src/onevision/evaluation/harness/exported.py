"""The model `onevision_exported` of lmms-eval: an exported folder, through lmms-eval's own class for the architecture.

That class catches what goes wrong in generation and goes on with an empty answer; here it is a failure of the question.
And it has each image resized by qwen_vl_utils before the folder's processor does it again; here the processor alone
does, as in training, and neither that package nor torchvision is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmms_eval.models.chat.llava_onevision1_5 as lmms_eval_class
import torch
from lmms_eval.models.chat.llava_onevision1_5 import Llava_OneVision1_5

from onevision.errors import InputError
from onevision.evaluation.harness.generation import SEEDS, Question, finished, sampling_of
from onevision.evaluation.harness.keeping import Keeping
from onevision.evaluation.harness.quiet import quiet
from onevision.evaluation.harness.sharing import Share, not_launched
from onevision.files import read_json
from onevision.fingerprint import file_digest

NOT_ASKED = ("parity.json", "parity.txt")  # what `make export` may leave beside the weights later
STEP = "step.json"
LARGE = 1 << 28  # bytes: of larger files (weights) name and size are enough, config.json and step.json tell the rest


class OneVisionExported(Keeping, Llava_OneVision1_5):
    """`--model onevision_exported --model_args pretrained=FOLDER[,max_pixels=N][,min_pixels=N]`."""

    def __init__(
        self,
        pretrained: str,
        max_pixels: int = 0,
        min_pixels: int = 0,
        batch_size: int | str = 1,
        retries: int = 1,
        responses: str = "",
        device: str | None = None,
        share: Share | None = None,
        marks_failures: bool = False,
        threads: int = 0,
    ) -> None:
        """Pixel limits of 0 are those of the folder's processor.

        Raises:
            InputError: it is no exported folder.
        """
        folder = Path(pretrained)
        limits = read_json(folder / "preprocessor_config.json")
        pixels = {
            "max_pixels": int(max_pixels) or int(limits["max_pixels"]),
            "min_pixels": int(min_pixels) or int(limits["min_pixels"]),
        }
        device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        if int(batch_size) != 1:
            raise InputError(f"batch_size={batch_size}: lmms-eval's class is asked one question at a time, set it to 1")
        if threads:
            torch.set_num_threads(threads)
        quiet(lmms_eval_class)
        lmms_eval_class.process_vision_info = images_of
        with not_launched():
            Llava_OneVision1_5.__init__(
                self, pretrained=str(folder), device=device, device_map=device, batch_size=1, **pixels
            )
        # lmms-eval deletes `_model` after a task; this one answers several.
        self.network = self._model
        del self._model
        self._generation_error: Exception | None = None
        self.network.generate = self._telling(self.network.generate)
        self.keep(
            {"model": "onevision_exported", "folder": folder_digests(folder), **pixels, "sampling": SEEDS},
            responses or str(folder / "lmms_eval"),
            batch_size=1,
            retries=int(retries),
            share=share,
            marks_failures=marks_failures,
        )

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._model if hasattr(self, "_model") else self.network

    def ask(self, questions: list[Question]) -> list[str]:
        """Answers by lmms-eval's class; what it caught is raised.

        Raises:
            InputError: a question is not of text and images, or a generation setting cannot work.
        """
        return [self._answer(question) for question in questions]

    def _answer(self, question: Question) -> str:
        generation = dict(question.generation or {})
        sampling = sampling_of(generation, question.seed)
        # The class draws wherever there is a temperature, and leaves top_k to the folder, whose default is 50.
        generation["temperature"] = sampling.temperature
        self.network.generation_config.top_k = sampling.top_k if sampling.temperature else None
        if sampling.temperature:
            torch.manual_seed(sampling.seed)
        self._generation_error = None
        request = SimpleNamespace(args=question._replace(generation=generation)[:-1])
        (found,) = Llava_OneVision1_5.generate_until(self, [request])
        error, self._generation_error = self._generation_error, None  # kept, it would keep the tensors of its frames
        if error is not None:
            raise error
        return finished(str(getattr(found, "text", found)), generation)

    def _telling(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def told(*args: Any, **kwargs: Any) -> Any:
            try:
                return generate(*args, **kwargs)
            except Exception as error:
                self._generation_error = error
                raise

        return told


def images_of(conversations: list[list[dict[str, Any]]]) -> tuple[list[Any] | None, None]:
    """The images of conversations in their order, as they are; there are no videos.

    Raises:
        InputError: there are.
    """
    parts = [part for messages in conversations for message in messages for part in message["content"]]
    if any(part["type"] not in ("text", "image") for part in parts):
        raise InputError("a question with a video: this model is given text and images only")
    return [part["image"] for part in parts if part["type"] == "image"] or None, None


def folder_digests(folder: Path) -> dict[str, str]:
    """Digest of each file that decides an answer by name; of a large one its size."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in NOT_ASKED)
    sizes = {path: path.stat().st_size for path in files}
    found = {path.name: file_digest(path) if size < LARGE else f"{size} bytes" for path, size in sizes.items()}
    if STEP in found:  # it tells how long the export took, too
        found[STEP] = read_json(folder / STEP)["key"]
    return found
