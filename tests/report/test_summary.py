from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest

from onevision.corpus.reader import CorpusReader
from onevision.errors import InputError
from onevision.evaluation.accuracy import questions
from onevision.files import read_json, read_json_lines, write_json
from onevision.report.results import PipelineFolders, make_command
from onevision.report.summary import build_summary, write_summary
from tests.report.pipeline import ENVIRONMENT, folders, write_stage


def rows_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_written_file_is_the_summary(copied: PipelineFolders) -> None:
    summary = write_summary(copied)
    assert read_json(copied.root / "summary.json") == summary
    assert datetime.fromisoformat(summary["created"]).tzinfo is not None
    assert summary["notes"] == []
    assert summary["commit"] == ENVIRONMENT["commit"]
    assert summary["versions"]["torch"] == "2.0"
    assert summary["hardware"]["processor"] == "A processor"
    assert summary["model"] == {"preset": "tiny", "parameters": 2_400_000}


def test_categories_are_those_of_the_answers(finished: PipelineFolders) -> None:
    summary = build_summary(finished)
    asked = questions(CorpusReader(finished.heldout))
    assert set(summary["categories"]) == {question.category for question in asked}
    answers = read_json_lines(finished.after / "answers.jsonl")
    for name, entry in summary["categories"].items():
        scores = [answer["correct"] for answer in answers if answer["category"] == name]
        assert entry["n"] == len(scores)
        assert entry["after"] == pytest.approx(sum(scores) / len(scores))
        assert entry["before"] == 0
        assert 0 <= entry["chance"] <= 1
    assert summary["overall"]["n"] == len(asked) == len(answers)
    assert summary["overall"]["after"] == pytest.approx(
        sum(answer["correct"] for answer in answers) / len(answers)
    )


def test_data_figures(finished: PipelineFolders) -> None:
    summary = build_summary(finished)
    packs = read_json(finished.packs / "step.json")["summary"]
    assert summary["samples"] == {
        "in": 60,
        "packed": 60,
        "rejected": 0,
        "overlong": 0,
        "rejects_by_reason": {},
    }
    assert summary["packs"]["fill"] == packs["tokens"] / (packs["packs"] * 512)
    assert summary["packs"]["sequence_length"] == 512


def test_stage_figures(finished: PipelineFolders) -> None:
    summary = build_summary(finished)
    assert list(summary["stages"]) == ["stage1", "stage1_5", "stage2"]
    for name, stage in summary["stages"].items():
        rows = rows_of(finished.stages[name])
        seconds = sum(row["step_seconds"] for row in rows)
        assert stage["steps"] == len(rows)
        assert (stage["loss_first"], stage["loss_last"]) == (rows[0]["loss"], rows[-1]["loss"])
        assert stage["tokens_per_second"] == pytest.approx(sum(row["tokens"] for row in rows) / seconds)
        assert stage["samples_per_second"] == pytest.approx(90 * len(rows) / seconds)
        assert min(row["mfu"] for row in rows) < stage["mfu"] < max(row["mfu"] for row in rows)
        assert stage["hfu"] > stage["mfu"]
        assert stage["seconds"] == pytest.approx(seconds)
        assert (stage["skipped"], stage["resumed"]) == (0, 0)
    data = sum(
        read_json(finished.root / name / "step.json")["seconds"] for name in ("corpus", "heldout", "packs")
    )
    trained = sum(stage["seconds"] for stage in summary["stages"].values())
    assert summary["seconds"] == pytest.approx(data + trained + 2 * 3.5)


def test_time_before_a_resume_counts(copied: PipelineFolders) -> None:
    shutil.rmtree(copied.stages["stage2"])
    write_stage(copied.root, "stage2", 30, 0.9, 0.3, resumed=12)
    stage = build_summary(copied)["stages"]["stage2"]
    assert stage["resumed"] == 12
    assert stage["seconds"] == pytest.approx(
        sum(row["step_seconds"] for row in rows_of(copied.stages["stage2"]))
    )


def test_bad_steps_are_left_out_and_noted(copied: PipelineFolders) -> None:
    run = copied.stages["stage1"]
    rows = rows_of(run)
    bad = {"bad": "loss is nan", "action": "skip", "loss": rows[-2]["loss"], "loss_by_category": {}}
    lines = [json.dumps(row) + "\n" for row in [*rows[:-1], rows[-1] | bad]]
    (run / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    summary = build_summary(copied)
    assert summary["stages"]["stage1"]["steps"] == len(rows) - 1
    (note,) = summary["notes"]
    assert note == (
        "stage1: bad steps, whose updates were not applied: 1; they are left out here, and "
        f"{run / 'bad_steps.jsonl'} has them"
    )


def test_rejects_are_named(copied: PipelineFolders) -> None:
    record = read_json(copied.corpus / "step.json")
    record["summary"] |= {"rejected": 3, "rejects_by_reason": {"image_undecodable": 2, "empty_answer": 1}}
    write_json(copied.corpus / "step.json", record)
    samples = build_summary(copied)["samples"]
    assert (samples["in"], samples["rejected"]) == (63, 3)
    assert samples["rejects_by_reason"] == {"image_undecodable": 2, "empty_answer": 1}


def test_what_is_missing_is_null_and_noted(copied: PipelineFolders) -> None:
    for folder in (copied.before, copied.after, copied.stages["stage2"], copied.packs, copied.stage0):
        shutil.rmtree(folder)
    summary = build_summary(copied)
    assert summary["categories"] == {}
    assert summary["overall"] == {"before": None, "after": None, "chance": None, "n": 0}
    assert summary["packs"] is None
    assert list(summary["stages"]) == ["stage1", "stage1_5"]
    assert summary["model"]["parameters"] is None
    assert [note.split(":")[0] for note in summary["notes"]] == [
        "packs",
        "stage 0",
        "stage2",
        "evaluation before training",
        "evaluation after training",
    ]
    assert all("\n" not in note for note in summary["notes"])


def test_an_evaluation_of_an_earlier_step_is_noted(copied: PipelineFolders) -> None:
    shutil.rmtree(copied.stages["stage2"])
    write_stage(copied.root, "stage2", 50, 0.9, 0.3)
    (note,) = build_summary(copied)["notes"]
    assert note == (
        "evaluation after training: the checkpoint of step 30 was asked, and stage2 went on to step 50"
    )


def test_before_alone(copied: PipelineFolders) -> None:
    shutil.rmtree(copied.after)
    summary = build_summary(copied)
    assert {entry["after"] for entry in summary["categories"].values()} == {None}
    assert {entry["before"] for entry in summary["categories"].values()} == {0}
    assert summary["overall"]["after"] is None and summary["overall"]["before"] == 0


def test_unfinished_stage_says_how_to_go_on(copied: PipelineFolders) -> None:
    shutil.rmtree(copied.stages["stage2"])
    write_stage(copied.root, "stage2", 30, 0.9, 0.3, stop_at=7)
    summary = build_summary(copied)
    assert summary["stages"]["stage2"]["steps"] == 7
    (note,) = summary["notes"]
    assert note.startswith("stage2: not finished, step 7 of 30")
    assert note.endswith(f"-m jobs resume {copied.stages['stage2']}")


def test_results_of_other_inputs_are_noted(copied: PipelineFolders) -> None:
    for folder in (copied.packs, copied.heldout):
        record = read_json(folder / "step.json")
        record["summary"]["fingerprint"] = "f" * 32
        write_json(folder / "step.json", record)
    notes = build_summary(copied)["notes"]
    assert [note.split(":")[0] for note in notes] == [
        "stage1",
        "stage1_5",
        "stage2",
        "evaluation before training",
        "evaluation after training",
    ]
    assert "other packs" in notes[0] and "ffffffffffff" in notes[0]


@pytest.mark.parametrize("damaged", ["corpus/step.json", "stage2/environment.json", "after/answers.jsonl"])
def test_damaged_file_is_noted(copied: PipelineFolders, damaged: str) -> None:
    (copied.root / damaged).write_text("{", encoding="utf-8")
    summary = build_summary(copied)
    assert len(summary["notes"]) == 1
    assert damaged in summary["notes"][0]


def test_missing_shard_leaves_chance_out(copied: PipelineFolders) -> None:
    next(copied.corpus.glob("*.tar")).unlink()
    summary = build_summary(copied)
    assert {entry["chance"] for entry in summary["categories"].values()} == {None}
    assert summary["overall"]["chance"] is None and summary["overall"]["after"] > 0
    assert any(".tar is missing" in note for note in summary["notes"])


def test_changed_shard_leaves_chance_out(copied: PipelineFolders) -> None:
    shard = next(copied.corpus.glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[600] ^= 1
    shard.write_bytes(bytes(data))
    summary = build_summary(copied)
    assert {entry["chance"] for entry in summary["categories"].values()} == {None}
    assert any(note.startswith("chance levels:") for note in summary["notes"])


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no finished step"):
        build_summary(folders(tmp_path / "none"))


def test_commands_name_the_run() -> None:
    assert make_command("resume", Path("runs/demo/stage2")) == "make resume RUN=demo/stage2"
    assert (
        make_command("export", Path("/data/runs/first")) == ".venv/bin/python -m jobs export /data/runs/first"
    )
