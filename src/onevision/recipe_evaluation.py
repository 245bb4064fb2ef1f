"""The recipe's section `evaluation`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

HELDOUT_TASK = "onevision_heldout"


@dataclass(frozen=True)
class EvaluationRecipe:
    """Questions that training never sees, answered by greedy generation."""

    corpus: str = ""  # corpus of the held-out questions
    max_new_tokens: int = 16
    batch_tokens: int = 8192  # prompt tokens answered at once
    # Tasks of lmms-eval that a run's checkpoints answer while it trains (onevision_heldout: those of the corpus above)
    tasks: list[str] = field(default_factory=list)
    interval: int = 0  # steps from one answering checkpoint to the next, which is kept until then; 0: only the last one
    data: str = ""  # folder with a folder of Parquet files for each task whose data is on this disk
    batch_size: int = 16  # questions of a task that are prepared together
    retries: int = 1  # of a question that raised an exception
    max_failed: float = 0.0  # share of a task's questions that may fail in the end


def evaluated(evaluation: EvaluationRecipe, step: int, steps: int) -> bool:
    """Whether the checkpoint of a step of a run of `steps` answers the recipe's tasks."""
    if not evaluation.tasks:
        return False
    return step == steps or bool(evaluation.interval and step and step % evaluation.interval == 0)


def evaluated_steps(evaluation: EvaluationRecipe, steps: int) -> list[int]:
    """The steps of a run of `steps` whose checkpoints answer the recipe's tasks, oldest first."""
    if not evaluation.tasks:
        return []
    return sorted({*range(evaluation.interval, steps, evaluation.interval or steps), steps} - {0})


def task_problems(names: list[str], corpus: str) -> list[str]:
    """What is wrong with names of tasks, beside that lmms-eval may not know them."""
    problems = [
        f"evaluation.tasks: {name!r} is not the name of a task"
        for name in names
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name)
    ]
    if HELDOUT_TASK in names and not corpus:
        problems.append(f"evaluation.tasks: {HELDOUT_TASK} asks the questions of evaluation.corpus, which is empty")
    return problems


def evaluation_problems(evaluation: EvaluationRecipe, saved: int) -> list[str]:
    """What is wrong with the section, where a checkpoint is saved every `saved` steps."""
    problems = task_problems(evaluation.tasks, evaluation.corpus)
    if evaluation.interval and not evaluation.tasks:
        problems.append(f"evaluation.interval={evaluation.interval} has nothing to ask: name evaluation.tasks")
    if evaluation.interval % saved:
        problems.append(
            f"evaluation.interval={evaluation.interval} is not a multiple of checkpoint.interval={saved}: only a "
            "checkpoint can be asked"
        )
    if not 0 <= evaluation.max_failed <= 1:
        problems.append(f"evaluation.max_failed={evaluation.max_failed} is not between 0 and 1")
    return problems
