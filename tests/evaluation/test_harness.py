"""lmms-eval asks a checkpoint what our own evaluation asks it, keeps the answers, and counts what fails."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("lmms_eval", reason="needs lmms-eval: pip install --no-deps -r envs/eval.lock")

from lmms_eval.protocol import ChatMessages
from loguru import logger
from PIL import Image

from onevision.convert.exporting import export
from onevision.data.image import ImageError, decode_image
from onevision.errors import DataError, InputError
from onevision.evaluation.accuracy import evaluate
from onevision.evaluation.harness.checkpoint import OneVision, to_messages
from onevision.evaluation.harness.generation import Question, check_beams, finished, question_seed, sampling_of
from onevision.evaluation.harness.loading import KNOWN
from onevision.evaluation.harness.places import MODELS, TaskRun, read_result, result_file
from onevision.evaluation.harness.published import TASKS, beside, score
from onevision.evaluation.harness.responses import ResponseStore
from onevision.evaluation.harness.run import run_tasks
from onevision.evaluation.harness.sharing import Share
from onevision.evaluation.harness.tasks import leaves
from onevision.evaluation.sampling import GREEDY, Sampling
from onevision.recipe import Recipe
from onevision.recipe_evaluation import HELDOUT_TASK
from tests.fixtures import image_bytes


def _asked(recipe: Recipe, tmp_path: Path, *tasks: str, **more: Any) -> TaskRun:
    """Tasks for the run of a recipe, whose checkpoints are there and whose results go into the test's own folder."""
    run = tmp_path / "run"
    if not run.exists():
        run.mkdir()
        (run / "checkpoints").symlink_to(Path(recipe.output) / "checkpoints")
    return TaskRun(str(run), recipe.train.steps, tasks, **more)


def _texts(folder: Path) -> dict[int, str]:
    lines = [line for path in folder.glob("responses.*") for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["document"]: row["text"] for row in map(json.loads, lines) if not row["error"]}


def test_the_plug_in_is_found_by_its_name() -> None:
    from lmms_eval.models import get_model

    assert get_model(MODELS[0]) is OneVision


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_grey_of_16_bits_is_shown_as_in_training(mode: str) -> None:
    deep = Image.frombytes(mode, (2, 1), np.array([0, 40_000], ">u2" if mode.endswith("B") else "<u2").tobytes())
    chat = ChatMessages(messages=[{"role": "user", "content": [{"type": "image", "url": deep}]}])
    _, ((data, size),) = to_messages(chat)
    assert size == (2, 1)
    assert np.asarray(decode_image(data))[0, :, 0].tolist() == [0, 40_000 >> 8]


def test_answers_and_accuracy_are_those_of_our_own_evaluation(
    colours: tuple[Recipe, Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = colours[1]
    own = evaluate(recipe, recipe.output, tmp_path / "own")
    asked = _asked(recipe, tmp_path, HELDOUT_TASK)
    (result,) = run_tasks(recipe, asked, Share(), 0)
    accuracy = own.summary["categories"]["colours"]["accuracy"]
    assert result["score"] == {"metric": "accuracy", "percent": 100 * accuracy}
    rows = [json.loads(line) for line in (own.folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert _texts(asked.folder) == {number: row["output"] for number, row in enumerate(rows)}
    written = read_result(result_file(asked.folder, HELDOUT_TASK))
    assert (written["answered"], written["failed"], written["problem"]) == (20, 0, "")
    assert written["settings"]["max_pixels"] == recipe.data.max_pixels
    assert written["parts"][HELDOUT_TASK]["generation"]["max_new_tokens"] == recipe.evaluation.max_new_tokens
    assert written["versions"]["lmms_eval"] == "0.7.3"
    assert f"{100 * accuracy:.1f} %" in capsys.readouterr().out


def test_the_exported_folder_answers_alike_under_the_class_of_lmms_eval(
    colours: tuple[Recipe, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = colours[1]
    (own,) = run_tasks(recipe, _asked(recipe, tmp_path, HELDOUT_TASK), Share(), 0)
    export(recipe.output, recipe.data, tmp_path / "export")
    asked = _asked(recipe, tmp_path, HELDOUT_TASK, model=MODELS[1], exported=str(tmp_path / "export"))
    (result,) = run_tasks(recipe, asked, Share(), 0)
    assert result["score"] == own["score"]
    assert _texts(asked.folder) == _texts(replace(asked, model=MODELS[0]).folder)

    from onevision.evaluation.harness.exported import OneVisionExported

    def fails(*args: Any, **settings: Any) -> Any:
        raise RuntimeError("out of memory")

    model = OneVisionExported(str(tmp_path / "export"), responses=str(tmp_path / "other"))
    together = _drawn(model, [0, 1, 2, 3])
    assert len(set(together)) > 1 and _drawn(model, [3, 1]) == [together[1], together[3]]
    monkeypatch.setattr(model.network, "generate", model._telling(fails))
    model.task_dict = {"task": {"test": [{}]}}

    def said(doc: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "text", "text": "a"}]}]

    question = Question("a", said, {}, 0, "task", "test", 0)
    with pytest.raises(RuntimeError, match="out of memory"):  # which the class itself answers with nothing
        model.ask([question])


def test_a_question_that_fails_is_counted_and_left_out_and_asked_again(
    colours: tuple[Recipe, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = colours[1]
    asked = _asked(recipe, tmp_path, HELDOUT_TASK)
    prompts: list[int] = []
    whole = OneVision._prompt

    def breaks(self: OneVision, question: tuple[Any, ...]) -> Any:
        prompts.append(question[3])
        if question[3] in broken:
            raise MemoryError("no memory left for document 5")
        return whole(self, question)

    broken = {5}
    monkeypatch.setattr(OneVision, "_prompt", breaks)
    with pytest.raises(DataError, match="1 of 20 questions failed, .* such as 5: MemoryError: no memory left"):
        run_tasks(recipe, asked, Share(), 0)
    result = read_result(result_file(asked.folder, HELDOUT_TASK))
    assert (result["answered"], result["failed"]) == (19, 1)
    assert result["failures"] == [
        {"task": HELDOUT_TASK, "document": 5, "error": "MemoryError: no memory left for document 5"}
    ]
    right = sum(text == ("blue" if number % 5 else "red") for number, text in _texts(asked.folder).items())
    assert result["score"]["percent"] == pytest.approx(100 * right / 19, abs=1e-3)

    generous = replace(recipe, evaluation=replace(recipe.evaluation, max_failed=0.05, retries=0))
    prompts.clear()
    (again,) = run_tasks(generous, asked, Share(), 0)
    assert prompts == [5] and again["failed"] == 1  # as many as may
    broken.clear()
    prompts.clear()
    (healed,) = run_tasks(recipe, asked, Share(), 0)
    assert prompts == [5] and healed["failed"] == 0
    other = replace(recipe, data=replace(recipe.data, max_pixels=28 * 28 * 9))
    prompts.clear()
    run_tasks(other, asked, Share(), 0)
    assert sorted(prompts) == list(range(20))  # answers of other settings are not theirs


def test_ranks_answer_their_share_and_the_first_one_scores(colours: tuple[Recipe, Recipe], tmp_path: Path) -> None:
    recipe = colours[1]
    asked = _asked(recipe, tmp_path, HELDOUT_TASK)
    (part,) = run_tasks(recipe, replace(asked, limit=3), Share(), 0)
    assert (part["answered"], part["limit"]) == (3, 3) and not list(asked.folder.glob("responses.*"))
    assert run_tasks(recipe, asked, Share(1, 2), 0) == []
    assert sorted(_texts(asked.folder)) == list(range(1, 20, 2))
    (result,) = run_tasks(recipe, asked, Share(0, 2), 0)
    assert result["answered"] == 20
    names = [path.name for path in sorted(asked.folder.glob("responses.*"))]
    assert names == ["responses.rank0.jsonl", "responses.rank1.jsonl"]
    assert len(ResponseStore(asked.folder, 2)) == 20


def _mmstar(folder: Path) -> None:
    """Four questions in the columns of MMStar."""
    names = ("coarse perception", "math", "math", "instance reasoning")
    rows = [
        {
            "index": i,
            "question": f"Which colour is number {i}?\nOptions: A: blue, B: red",
            "image": {"bytes": image_bytes(60, 60, seed=i), "path": f"{i}.png"},
            "answer": "A",
            "category": name,
            "l2_category": name,
            "meta_info": {"source": "test"},
        }
        for i, name in enumerate(names)
    ]
    text = {"dtype": "string", "_type": "Value"}
    described = {
        **dict.fromkeys(("question", "answer", "category", "l2_category"), text),
        "index": {"dtype": "int64", "_type": "Value"},
        "image": {"_type": "Image"},
        "meta_info": {"source": text},
    }
    table = pa.Table.from_pylist(rows)
    ordered = {name: described[name] for name in table.column_names}
    metadata = {"huggingface": json.dumps({"info": {"features": ordered}})}
    folder.mkdir(parents=True)
    pq.write_table(table.replace_schema_metadata(metadata), folder / "val.parquet")


def test_a_standard_task_asks_data_of_this_disk(colours: tuple[Recipe, Recipe], tmp_path: Path) -> None:
    recipe = colours[1]
    _mmstar(tmp_path / "data" / "mmstar")
    local = replace(recipe, evaluation=replace(recipe.evaluation, data=str(tmp_path / "data"), max_new_tokens=4))
    asked = _asked(recipe, tmp_path, "mmstar")
    (result,) = run_tasks(local, asked, Share(), 0)
    assert (result["answered"], result["problem"]) == (4, "")
    assert result["score"]["metric"] == "average"
    percent = result["score"]["percent"]
    assert result["published"]["8b"] == {"percent": 67.7, "difference": round(percent - 67.7, 2)}
    assert "option's letter" in result["parts"]["mmstar"]["prompts"]["post_prompt"]
    assert result["parts"]["mmstar"]["split"] == "val"
    assert set(_texts(asked.folder)) == set(range(4))


def test_data_that_is_not_there_is_told(colours: tuple[Recipe, Recipe], tmp_path: Path) -> None:
    recipe = colours[1]
    (tmp_path / "data" / "mmstar").mkdir(parents=True)
    (tmp_path / "data" / "charxiv_val_reasoning").mkdir()
    local = replace(recipe, evaluation=replace(recipe.evaluation, data=str(tmp_path / "data")))
    with pytest.raises(InputError, match="mmstar has no Parquet files of split val"):
        run_tasks(local, _asked(recipe, tmp_path, "mmstar"), Share(), 0)
    with pytest.raises(InputError, match="charxiv is made of 2 tasks, and there is no data for some: .*descriptive"):
        run_tasks(local, _asked(recipe, tmp_path, "charxiv"), Share(), 0)
    with pytest.raises(InputError, match="lmms-eval has no task mmstarr"):
        run_tasks(local, _asked(recipe, tmp_path, "mmstarr"), Share(), 0)


def test_the_published_tasks_are_those_of_lmms_eval() -> None:
    assert len(TASKS) == 15
    for name, known in TASKS.items():
        parts = [HELDOUT_TASK] if name == HELDOUT_TASK else [part for part, _ in leaves(name, KNOWN)]
        assert (known.part or name) in parts or known.note, name
    assert score("vstar_bench", {"vstar_bench": {"vstar_overall_acc": 78.0}}) == {
        "metric": "vstar_overall_acc",
        "percent": 78.0,
    }
    assert score("mmstar", {"mmstar": {"math": 0.1, "average": 0.649}}) == {"metric": "average", "percent": 64.9}
    assert score("docvqa_test", {"docvqa_test": {}}) is None
    assert beside("mmstar", 64.9)["4b"] == {"percent": 64.9, "difference": 0.0}
    assert beside("docvqa_test", None) == {"4b": {"percent": 94.4}, "8b": {"percent": 95.0}}
    assert beside("scienceqa", 90.0) == {}


def _drawn(model: Any, order: list[int], seeds: int = 0) -> list[str]:
    """Answers to four questions that are drawn, asked together in an order."""
    settings = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 6}
    model.task_dict = {"task": {"test": [{}] * 4}}

    def said(doc: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "text", "text": "Which colour?"}]}]

    asked = [
        Question("", said, settings, i, "task", "test", question_seed("task", i, seeds, "Which colour?")) for i in order
    ]
    answers = dict(zip(order, model.ask(asked), strict=True))
    return [answers[i] for i in sorted(answers)]


def test_a_drawn_answer_depends_on_its_question_alone(colours: tuple[Recipe, Recipe], tmp_path: Path) -> None:
    recipe = colours[1]
    model = OneVision(recipe.output, recipe=recipe, responses=str(tmp_path))
    together = _drawn(model, [0, 1, 2, 3])
    assert len(set(together)) > 1  # the same text, and other documents
    assert _drawn(model, [3, 1]) == [together[1], together[3]]
    assert _drawn(model, [0, 1, 2, 3], seeds=1) != together  # another request to the same documents


def test_how_tokens_are_chosen_is_the_tasks_own() -> None:
    assert sampling_of({"temperature": 0, "do_sample": True, "top_p": None}, 7) == GREEDY
    assert sampling_of({"temperature": 0.7, "do_sample": False}, 7) == GREEDY
    assert sampling_of({"temperature": 0.2, "top_p": 0}, 7) == GREEDY
    assert sampling_of({"temperature": 0.7, "top_p": 0.9, "top_k": 20}, 7) == Sampling(0.7, 0.9, 20, 7)
    with pytest.raises(InputError, match=r"top_p=1\.5 is not above 0"):
        sampling_of({"temperature": 0.7, "top_p": 1.5}, 7)
    with pytest.raises(InputError, match="temperature=warm is not a number"):
        sampling_of({"temperature": "warm"}, 7)
    check_beams({"num_beams": 1})
    with pytest.raises(InputError, match="ask for beams"):
        check_beams({"num_beams": 3})
    assert finished(" B\n\nno ASSISTANT: more", {"until": ["\n\n", "ASSISTANT:"]}) == "B\n\nno"
    assert finished(" B ", {}) == finished("B", {"until": "\n\n"}) == "B"


@pytest.mark.parametrize("word", ["All 5 attempts failed", "Failed to get response"])
def test_a_scorer_whose_judge_fails_gives_no_score(
    colours: tuple[Recipe, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    recipe = colours[1]
    asked = _asked(recipe, tmp_path, HELDOUT_TASK, limit=3)

    def judged(answer: str) -> str:  # called twice a question
        if word.startswith("All"):
            logger.error(f"{word}\nat the judge")
        else:
            print(f"{word} for prompt: T1")
        return answer

    monkeypatch.setattr("onevision.evaluation.accuracy.normalise", judged)
    with pytest.raises(DataError, match=f"not scored: the scorer reported 6 errors, .* first: {word}"):
        run_tasks(recipe, asked, Share(), 0)
    result = read_result(result_file(asked.folder, HELDOUT_TASK))
    assert result["score"] is None and result["answered"] == 3


def test_a_task_that_these_models_cannot_answer_is_refused_before_any_is_asked(
    colours: tuple[Recipe, Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = colours[1]
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match="charxiv is scored by a judge: set OPENAI_API_KEY"):
        run_tasks(recipe, _asked(recipe, tmp_path, HELDOUT_TASK, "charxiv"), Share(), 0)
    assert not list((tmp_path / "run" / "lmms_eval").rglob("responses.*"))


def test_half_an_image_is_none_beside_lmms_eval() -> None:
    whole = image_bytes(64, 64)
    with pytest.raises(ImageError, match="image_undecodable"):
        decode_image(whole[: len(whole) // 2])


def test_images_keep_their_pixels_on_the_way(tmp_path: Path) -> None:
    from lmms_eval.protocol import ChatMessages

    from onevision.evaluation.harness.checkpoint import to_messages

    picture = Image.open(io.BytesIO(image_bytes(31, 17)))
    content = [{"type": "text", "text": "a"}, {"type": "image", "url": picture}, {"type": "text", "text": "b"}]
    messages, files = to_messages(ChatMessages(messages=[{"role": "user", "content": content}]))
    assert [part.type for part in messages[0].content] == ["text", "image", "text"]
    ((data, size),) = files
    assert size == (31, 17)
    assert Image.open(io.BytesIO(data)).tobytes() == picture.tobytes()
    video = [{"type": "video", "url": "a.mp4"}]
    with pytest.raises(InputError, match="text and images only"):
        to_messages(ChatMessages(messages=[{"role": "user", "content": video}]))
