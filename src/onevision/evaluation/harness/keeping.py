"""What our models of lmms-eval share: every answer is kept, questions are shared among ranks, failures are counted.

lmms-eval asks a model all questions of a task in one call. Here each rank answers its share of them and stores every
answer; the first rank waits for the others, and hands all answers back to be scored. So lmms-eval itself sees one
process, whatever the number of GPUs, and a run that is killed goes on, with any number of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

import onevision.evaluation.harness.library  # noqa: F401  (sets back what lmms-eval changes)
from onevision.errors import DataError, InputError
from onevision.evaluation.harness.answering import Asked, answer_all
from onevision.evaluation.harness.generation import Question, question_seed
from onevision.evaluation.harness.responses import ResponseStore, response_key
from onevision.evaluation.harness.sharing import Share
from onevision.fingerprint import value_digest
from onevision.machine import version

FAILED = "[no answer: the question failed]"  # what the scorer is given for one; never scored, see `failures`


class Keeping(lmms):
    """A chat model of lmms-eval whose answers are kept. A subclass sets `settings` and answers in `ask`.

    `settings` is a JSON value that names everything but the question that decides an answer.
    """

    is_simple = False

    def keep(
        self,
        settings: dict[str, Any],
        responses: str,
        *,
        batch_size: int,
        retries: int,
        share: Share | None = None,
        marks_failures: bool = False,
    ) -> None:
        """Prepare to keep answers in the folder `responses`.

        With `marks_failures` the caller of lmms-eval leaves the `failures` out of the scores; without, a question
        that fails is an error, once all others are answered.

        Raises:
            InputError: several processes were started that know nothing of each other.
        """
        if share is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise InputError("lmms-eval started by itself asks this model in one process: use make eval for several")
        self.settings = settings
        self.share = share or Share()
        self.store = ResponseStore(responses, self.share.rank)
        self.at_once, self.retries, self.marks_failures = batch_size, retries, marks_failures
        self.failures: dict[tuple[str, int], str] = {}  # error by task and document
        self.data_digests: dict[str, str] = {}  # by task, where the caller knows them
        self.asking = ""  # what the ranks answer together now: the caller's name for it
        self.on_answers: Callable[[], None] = lambda: None  # called before the answers of a task are scored

    def check(self, generation: dict[str, Any]) -> None:
        """Refuse generation settings that cannot be answered: asked before any question is.

        Raises:
            InputError: they are such.
        """

    def ask(self, questions: list[Question]) -> list[str]:
        """Answers to questions of one task and of the same generation settings, in order."""
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in order.

        Raises:
            DataError: questions failed, and nobody would know.
        """
        asked = self.answer_share(requests)
        self.share.wait_for_others(self.asking)
        self.store.reload()
        texts = []
        for entry in asked:
            kept = self.store.answer(entry.key)
            if kept is None:
                failure = self.store.failure(entry.key)
                self.failures[entry.task, entry.document] = failure.error if failure else "not asked"
            texts.append(kept.text if kept else FAILED)
        if self.failures and not self.marks_failures:
            (task, document), error = next(iter(self.failures.items()))
            raise DataError(
                f"{len(self.failures)} of {len(asked)} questions failed, the first one ({task} {document}) with: "
                f"{error}; the others are answered in {self.store.folder}, and the same command asks these again"
            )
        self.on_answers()
        return texts

    def answer_share(self, requests: Sequence[Instance]) -> list[Asked[Question]]:
        """Answer this rank's share of the requests; returns all of them."""
        asked = self._asked(requests)
        mine = asked[self.share.rank :: self.share.size]
        name = asked[0].task if asked else "answers"
        answer_all(mine, self.ask, self.store, batch_size=self.at_once, retries=self.retries, name=name)
        self.share.done(self.asking)
        return asked

    def _asked(self, requests: Sequence[Instance]) -> list[Asked[Question]]:
        asked = []
        numbers: dict[tuple[str, int], int] = {}
        digests: dict[str, str] = {}
        for request in requests:
            prompt, to_messages, generation, document, task, split = request.args
            if task not in digests:
                data = self.data_digests.get(task) or str(self.task_dict[task][split]._fingerprint)
                digests[task] = value_digest([self.settings, data, version("lmms_eval")])
            number = numbers[task, document] = numbers.get((task, document), -1) + 1
            key = response_key(task, int(document), number, prompt, generation, digests[task])
            group = value_digest([task, generation])
            seed = question_seed(task, int(document), number, prompt)
            question = Question(prompt, to_messages, generation, document, task, split, seed)
            asked.append(Asked(key, task, int(document), group, question))
        return asked

    def clean(self) -> None:
        """Keep the model: lmms-eval would remove it after a task, and there may be another one."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise InputError(f"task {requests[0].task_name} asks for log-likelihoods, which this model does not give")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise InputError(f"task {requests[0].task_name} asks in rounds that depend on answers, which this model cannot")
