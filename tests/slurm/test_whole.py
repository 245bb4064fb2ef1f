"""Whole jobs on a real Slurm: another number of nodes, the pipeline, unfit nodes, crash loops, divergence."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.slurm.cases import Run, submit
from benchmarks.slurm.lab import Lab
from benchmarks.slurm.whole import ends as ends_of_jobs
from benchmarks.slurm.whole import pipeline, pipeline_recipes
from jobs.cluster import ROOT
from jobs.data import run_corpus, run_pack
from jobs.place import Place
from jobs.records import Records
from jobs.scripts import script
from jobs.sites import load_site
from jobs.train import run_resume, run_train, train_work
from onevision.corpus.build import build_corpus
from onevision.corpus.index import CorpusIndex
from onevision.errors import InputError
from onevision.evaluation.harness.places import read_results
from onevision.files import read_json
from onevision.packing.build import build_packs
from onevision.recipe import load_recipe, save_recipe
from onevision.recipe_evaluation import HELDOUT_TASK
from onevision.training.history import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("disturbed")]  # which run beside these tests
SHORT = ("train.steps=4", "checkpoint.interval=2", "train.global_batch_size=2")


def ends(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.records.events() if row["event"] == "end"]


def test_a_node_that_is_not_fit_is_left_out(lab: Lab, last_nodes: Path, recipe_file: Path, tmp_path: Path) -> None:
    device = lab.node_folder("node13") / "dev" / "nvidia7"
    away = device.with_name("lost")
    while lab.slurm.ask("sinfo", "-h", "-p", "short", "-n", "node13", "-o", "%T").strip() != "idle":
        time.sleep(0.1)  # a job of another test is being cleared away, and Slurm would take other nodes
    device.rename(away)
    try:
        run = submit(lab, Place(load_site(last_nodes), nodes=2), recipe_file, tmp_path / "run", *SHORT)
        run.wait_end()
    finally:
        away.rename(device)
    assert [row["cause"] for row in ends(run)] == ["unhealthy", "finished"]
    assert list(run.records.excluded()) == ["node13"]
    assert "7 of 8" in run.records.excluded()["node13"]["reason"]
    assert [row["step"] for row in read_metrics(run.folder)] == [1, 2, 3, 4]


def test_a_run_that_diverges_or_crashes_again_and_again_is_not_started_again(
    lab: Lab, last_nodes: Path, recipe_file: Path, tmp_path: Path
) -> None:
    place = Place(load_site(last_nodes), nodes=1)
    diverged = submit(lab, place, recipe_file, tmp_path / "diverged", *SHORT, "optimizer.lr=1e30", "optimizer.min_lr=0")
    crashing = submit(lab, place, recipe_file, tmp_path / "crashing", *SHORT, "train.hang_seconds=0.01")
    diverged.wait_end()
    assert [(row["exit_code"], row["decision"]) for row in ends(diverged)] == [(4, "stop")]
    assert "nan" in ends(diverged)[0]["message"]
    crashing.wait_end()
    assert [row["decision"] for row in ends(crashing)] == ["requeue", "requeue", "stop"]
    assert "3 starts ended without a new checkpoint" in ends(crashing)[-1]["message"]


def test_the_job_of_a_run_is_refused_a_second_time(
    lab: Lab, last_nodes: Path, recipe_file: Path, tmp_path: Path
) -> None:
    run = submit(lab, Place(load_site(last_nodes), nodes=2), recipe_file, tmp_path / "run", *SHORT)
    with pytest.raises(InputError, match=f"in the queue already as job {run.job_id}"):
        submit(lab, Place(load_site(last_nodes), nodes=2), recipe_file, tmp_path / "run", *SHORT)
    lab.slurm.cancel(run.job_id)
    run.wait_end()


def test_what_cannot_work_is_not_queued(lab: Lab, site_file: Path, recipe_file: Path, tmp_path: Path) -> None:
    wrong = ["nodes=17", "time=9-00:00:00", f"output={tmp_path / 'run'}", f"data.packs={tmp_path}/none"]
    with pytest.raises(InputError) as error:
        run_train([str(recipe_file), f"site={site_file}", *wrong])
    lines = str(error.value).splitlines()
    assert lines[0].endswith("problems, nothing was queued:")
    for what in ("17", "9-00:00:00", "none", "global_batch_size"):
        assert any(what in line for line in lines[1:]), what
    assert not [job for job in lab.slurm.queue().values() if Path(job.comment).is_relative_to(tmp_path)]
    assert not (tmp_path / "run").exists()


@pytest.fixture
def recipes(recipe_file: Path, tmp_path: Path) -> Path:
    """A folder of recipes, stage 0 to 2, whose corpus, packs and runs stand in the test's own folder."""
    return pipeline_recipes(recipe_file, tmp_path)


def test_a_plain_script_trains(
    lab: Lab, last_nodes: Path, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_file, [*SHORT, "name=plain", f"output={tmp_path / 'plain'}"])
    save_recipe(recipe, tmp_path / "plain.yaml")
    path = tmp_path / "plain.sbatch"
    monkeypatch.chdir(ROOT)
    path.write_text(script(tmp_path / "plain.yaml", load_site(last_nodes)))
    records = train_work(recipe, 2).records
    records.folder.mkdir(parents=True)
    job_id = int(lab.slurm.ask("sbatch", "--parsable", "--nodes=2", str(path), "optimizer.lr=2e-3"))
    run = Run(lab, recipe, job_id)
    run.wait_end()
    assert [row["cause"] for row in ends(run)] == ["finished"]
    assert [row["step"] for row in read_metrics(run.folder)] == [1, 2, 3, 4]
    assert read_metrics(run.folder)[1]["lr"] == 2e-3
    assert records.log(job_id, 1).exists()


def test_a_checkpoint_is_evaluated_by_a_job_that_its_run_queues(
    lab: Lab, last_nodes: Path, recipe_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lmms_eval", reason="needs lmms-eval: pip install --no-deps -r envs/eval.lock")
    corpus = load_recipe(recipe_file).data.corpus
    tasks = [f"evaluation.tasks=[{HELDOUT_TASK}]", f"evaluation.corpus={corpus}", "evaluation.max_new_tokens=2"]
    run = submit(lab, Place(load_site(last_nodes), nodes=2), recipe_file, tmp_path / "run", *SHORT, *tasks)
    run.wait_end()
    assert [row["cause"] for row in ends(run)] == ["finished"]
    records = Records(run.folder / "log" / "slurm", "evaluate-4")
    run.wait(lambda: any(row["event"] == "end" for row in records.events()), "its evaluation", ended_is_wrong=False)
    assert [row["cause"] for row in records.events() if row["event"] == "end"] == ["finished"]
    (result,) = read_results(run.folder)
    assert isinstance(result, dict)
    assert (result["task"], result["step"], result["failed"]) == (HELDOUT_TASK, 4, 0)
    assert result["answered"] == 60


def test_the_pipeline_runs_to_its_end(lab: Lab, last_nodes: Path, recipes: Path, tmp_path: Path) -> None:
    states = pipeline(lab, last_nodes, recipes, 2)
    assert list(states.values()) == ["COMPLETED"] * 12
    for name in ("stage1", "stage1_5", "stage2"):
        assert len(read_metrics(tmp_path / name)) == 2
    assert len(CorpusIndex.open(tmp_path / "balanced")) == 40
    lineage = read_json(tmp_path / "stage1_5" / "lineage.json")
    assert lineage["inputs"]["corpus"] == CorpusIndex.open(tmp_path / "balanced").fingerprint
    assert (tmp_path / "stage2" / "export" / "config.json").exists()
    assert (tmp_path / "stage2" / "evaluation" / "answers.jsonl").exists()


def test_a_failing_step_cancels_what_depends_on_it(
    lab: Lab, last_nodes: Path, recipes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs.status import run as run_status

    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "records.jsonl").write_text("not a record\n" * 3)
    states = pipeline(lab, last_nodes, recipes, 2, f"data.source={tmp_path}/broken")
    assert Counter(states.values()) == {"FAILED": 1, "COMPLETED": 1, "CANCELLED": 10}  # corpus; init; what needs packs
    capsys.readouterr()
    run_status([str(tmp_path), *(str(tmp_path / name) for name in ("stage1", "stage1_5", "stage2"))])
    shown = " ".join(capsys.readouterr().out.split())
    assert "failed: bad data" in shown
    assert "dependency failed" in shown
    assert "needs corpus (job" in shown
    assert "3 of 3 records rejected" in shown


def test_ranks_on_several_nodes_share_the_data_steps(
    lab: Lab, last_nodes: Path, recipe_file: Path, tmp_path: Path
) -> None:
    data = load_recipe(recipe_file).data
    one, many = tmp_path / "one", tmp_path / "many"
    small = replace(data, shard_samples=10, pack_part_samples=20)
    build_corpus(replace(small, corpus=str(one / "corpus")), one / "corpus")
    build_packs(replace(small, corpus=str(one / "corpus")), one / "packs")

    place = [f"site={last_nodes}", "nodes=2", "ranks=4", "data.shard_samples=10", "data.pack_part_samples=20"]
    folders = [f"data.corpus={many}/corpus", f"data.packs={many}/packs"]
    for name, run in (("corpus", run_corpus), ("pack", run_pack)):
        assert run([str(recipe_file), *place, *folders]) == 0
        job = json.loads((many / "log" / "slurm" / f"{name}.job.json").read_text())["job_id"]
        assert ends_of_jobs(lab, {name: job}) == {name: "COMPLETED"}
    for folder in ("corpus", "packs"):
        names = {path.name for path in (one / folder).iterdir()}
        assert len(names) > 4 and names == {path.name for path in (many / folder).iterdir()}
        for name in names - {"step.json"}:
            assert (one / folder / name).read_bytes() == (many / folder / name).read_bytes()


def test_a_rank_that_fails_ends_the_data_step(lab: Lab, last_nodes: Path, recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "records.jsonl").write_text("not a record\n" * 9)
    settings = [f"data.source={tmp_path}/broken", f"data.corpus={tmp_path}/out/corpus", "data.shard_samples=1"]
    run_corpus([str(recipe_file), f"site={last_nodes}", "nodes=2", "ranks=4", *settings])
    job = json.loads((tmp_path / "out" / "log" / "slurm" / "corpus.job.json").read_text())["job_id"]
    assert ends_of_jobs(lab, {"corpus": job}) == {"corpus": "FAILED"}
    events = Records(tmp_path / "out" / "log" / "slurm", "corpus").events()
    *before, end = [row for row in events if row["event"] == "end"]
    assert all(row["decision"] == "requeue" for row in before), before  # a start that was lost
    assert (end["exit_code"], end["decision"]) == (3, "stop")
    assert "9 of 9 records rejected" in end["message"]


def test_resume_needs_no_more_than_the_run(lab: Lab, last_nodes: Path, recipe_file: Path, tmp_path: Path) -> None:
    run = submit(lab, Place(load_site(last_nodes), nodes=2), recipe_file, tmp_path / "run", *SHORT)
    run.wait_end()
    run_resume([str(run.folder), "nodes=1", f"site={last_nodes}"])
    again = Run(lab, run.recipe, json.loads(run.records.job.read_text())["job_id"])
    again.wait_end()
    assert ends(again)[-1]["decision"] == "done"
    assert [row["step"] for row in read_metrics(run.folder)] == [1, 2, 3, 4]
