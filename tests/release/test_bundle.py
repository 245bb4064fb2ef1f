"""The bundle of a chain of runs: what is in it, when it is made again, and what an interruption leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from onevision.convert.exporting import export
from onevision.errors import DataError, InputError
from onevision.files import read_json, write_json
from onevision.fingerprint import file_digest
from onevision.recipe import Recipe, save_recipe
from onevision.release.bundle import Asked, Release, build_release
from onevision.release.verify import verify_release
from onevision.training.checkpoint_files import step_folder
from tests.forks import forked
from tests.release.conftest import Lab

ALL = """
README.md SHA256SUMS loss.png manifest.json report.html summary.json
chat_template.jinja chat_template.json config.json configuration_llavaonevision1_5.py generation_config.json
model-00001-of-00001.safetensors model.safetensors.index.json modeling_llavaonevision1_5.py preprocessor_config.json
processing_llavaonevision1_5.py tokenizer.json tokenizer_config.json video_preprocessor_config.json export/step.json
runs/start/checkpoint.json runs/start/lineage.json runs/start/recipe.yaml runs/start/run.json runs/start/step.json
runs/first/checkpoint.json runs/first/environment.json runs/first/lineage.json runs/first/metrics.jsonl
runs/first/recipe.yaml runs/first/run.json runs/first/step.json
runs/last/checkpoint.json runs/last/environment.json runs/last/lineage.json runs/last/metrics.jsonl
runs/last/recipe.yaml runs/last/run.json runs/last/step.json runs/last/log/last-20260101-000000.log
data/corpus/manifest.json data/corpus/step.json data/packs/step.json data/heldout/manifest.json data/heldout/step.json
data/balanced/manifest.json data/balanced/step.json data/balanced/lineage.json data/balanced-packs/step.json
evaluation/answers.jsonl evaluation/step.json evaluation/lmms_eval/onevision/step_00000004/mmstar.json
"""
NAMES = ALL.split()


def never(step: int, folder: Path) -> None:
    raise AssertionError("there is an export of this checkpoint")


def test_the_bundle_is_whole_by_our_check_and_by_sha256sum(released: Release) -> None:
    names = [path.relative_to(released.folder).as_posix() for path in released.folder.rglob("*") if path.is_file()]
    assert sorted(names) == sorted(NAMES)
    found = verify_release(released.folder)
    assert (found.files, found.manifest) == (len(NAMES), released.manifest)
    assert found.bytes == sum((released.folder / name).stat().st_size for name in NAMES)
    listed = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=released.folder, capture_output=True, text=True)
    assert listed.returncode == 0 and len(listed.stdout.splitlines()) == len(NAMES) - 1  # all but itself
    assert released.told.splitlines()[-1] == f"SHA-256 of manifest.json: {released.manifest}"


def test_the_runs_go_back_to_stage_0_and_the_data_is_described(lab: Lab, released: Release) -> None:
    content = read_json(released.folder / "manifest.json")
    assert [run["name"] for run in content["runs"]] == ["start", "first", "last"]
    checkpoint = read_json(step_folder(lab.run, 4) / "checkpoint.json")
    assert content["checkpoint"] == {"step": 4, "fingerprint": checkpoint["fingerprint"], "architecture": "tiny"}
    used = {data["name"]: data["used"] for data in content["data"]}
    assert used["corpus"] == {"runs/first": "corpus", "data/balanced": "corpus"}
    assert used["balanced"] == {"runs/last": "corpus"} and used["balanced-packs"] == {"runs/last": "packs"}
    assert used["heldout"] == {"evaluation": "corpus"}
    (note,) = content["not_recorded"]
    assert "concepts" in note and "holds no finished step" in note
    for name in ("corpus", "balanced"):
        manifest = read_json(released.folder / "data" / name / "manifest.json")
        shards = [(row["name"], row["bytes"], row["sha256"]) for row in manifest["shards"]]
        expected = []
        for path in sorted((lab.root / "corpus").glob("*.tar")):
            told = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
            expected.append((path.name, path.stat().st_size, told.split()[0]))
        assert shards == expected and len(shards) == 3
        assert (
            sum(row["samples"] for row in manifest["shards"])
            == manifest["samples"]
            == {"corpus": 40, "balanced": 30}[name]
        )
    answers = (released.folder / "evaluation" / "answers.jsonl").read_text()
    assert '"output"' in answers and '"answer"' not in answers and "what is shown" not in answers


def test_nothing_is_done_twice_and_a_change_makes_it_again(moved: Lab, tmp_path: Path) -> None:
    export(step_folder(moved.run, 4), moved.stage2.data, moved.run / "export")
    output = tmp_path / "bundle"
    first = build_release(moved.asked(), output, never)
    assert not first.skipped
    weights = "model-00001-of-00001.safetensors"
    assert (output / weights).samefile(moved.run / "export" / weights)
    made = (output / "manifest.json").stat().st_mtime_ns
    (moved.run / "log" / "release-20260101-000001.log").write_text("of this command")
    second = build_release(moved.asked(), output, never)
    assert second.skipped and second.manifest == first.manifest and "unchanged" in second.told
    assert (output / "manifest.json").stat().st_mtime_ns == made
    (output / "loss.png").unlink()
    assert not build_release(moved.asked(), output, never).skipped
    (moved.run / "log" / "last-20260101-000001.log").write_text("another start")
    assert not build_release(moved.asked(), output, never).skipped
    assert (output / "runs" / "last" / "log" / "last-20260101-000001.log").exists()
    assert not build_release(moved.asked(shards="no", licence="apache-2.0"), output, never).skipped
    assert "sha256" not in read_json(output / "data" / "corpus" / "manifest.json")["shards"][0]
    assert (output / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")
    verify_release(output)


def test_an_export_of_another_checkpoint_is_neither_used_nor_replaced(moved: Lab, tmp_path: Path) -> None:
    export(step_folder(moved.run, 2), moved.stage2.data, moved.run / "export")
    before = file_digest(moved.run / "export" / "step.json")
    output = tmp_path / "bundle"
    build_release(moved.asked(), output, moved.export)
    verify_release(output)
    assert file_digest(moved.run / "export" / "step.json") == before
    earlier = build_release(moved.asked(step=2), tmp_path / "earlier", never)
    assert read_json(earlier.folder / "manifest.json")["checkpoint"]["step"] == 2
    (moved.run / "export" / "config.json").unlink()  # no export any more
    made: list[int] = []
    build_release(
        moved.asked(step=2), tmp_path / "again", lambda step, folder: (made.append(step), moved.export(step, folder))[1]
    )
    assert made == [2]


def test_logs_of_this_command_are_no_part_of_it(moved: Lab, tmp_path: Path) -> None:
    logs = moved.run / "log"
    (logs / "slurm").mkdir()
    (logs / "slurm" / "release.starts.jsonl").write_text('{"event": "start", "job_id": 7}\n{"event": "st')
    for name in ("7_0_log.out", "70_0_log.out", "release.job.json", "last.job.json"):
        (logs / "slurm" / name).write_text("{}")
    (logs / "release-notes-20260101-000000.log").write_text("a run that is called release-notes")
    (logs / "last-20260101-000002.log").symlink_to("last-20260101-000000.log")
    (logs / ".last-20260101-000002").mkdir()
    (logs / ".last-20260101-000002" / "0.json").write_text("{}")
    (logs / "result.pkl").write_bytes(b"no text")
    made = build_release(moved.asked(shards="no"), tmp_path / "bundle", moved.export)
    folder = made.folder / "runs" / "last" / "log"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "last-20260101-000000.log",
        "release-notes-20260101-000000.log",
        "slurm/70_0_log.out",
        "slurm/last.job.json",
    }


def test_weights_that_were_only_drawn_are_released_too(lab: Lab, tmp_path: Path) -> None:
    run = Path(lab.stage0.output)
    made = build_release(Asked(lab.stage0, run), tmp_path / "bundle", partial(_export_of, lab.stage0, run))
    verify_release(made.folder)
    card = (made.folder / "README.md").read_text()
    assert "Start: random weights, drawn from seed 1234 (`runs/start`)." in card
    assert "What was read: not recorded." in card and "| Loss" not in card
    assert not (made.folder / "report.html").exists() and "no report: " in made.told


def _export_of(recipe: Recipe, run: Path, step: int, folder: Path) -> None:
    export(step_folder(run, step), recipe.data, folder)


def _killed(lab: Lab, output: Path) -> None:
    def export_and_die(step: int, folder: Path) -> None:
        lab.export(step, folder)
        os.kill(os.getpid(), signal.SIGKILL)

    build_release(lab.asked(), output, export_and_die)


def test_an_interrupted_command_goes_on(moved: Lab, tmp_path: Path) -> None:
    output = tmp_path / "out" / "bundle"
    with forked(_killed, moved, output) as child:
        assert child.join() == -signal.SIGKILL
    assert not output.exists()
    (weights,) = output.parent.glob(".bundle.weights/*.safetensors")
    first = weights.stat()
    build_release(moved.asked(), output, moved.export)
    verify_release(output)
    found = (output / weights.name).stat()
    assert (found.st_ino, found.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)  # it was not exported again
    assert [path.name for path in output.parent.iterdir()] == ["bundle"]


def test_a_failed_command_leaves_the_earlier_bundle(moved: Lab, bundle: Path) -> None:
    def fail(step: int, folder: Path) -> None:
        raise DataError("the checkpoint is broken")

    with pytest.raises(DataError, match="the checkpoint is broken"):
        build_release(moved.asked(licence="mit"), bundle, fail)
    verify_release(bundle)
    assert {path.name for path in bundle.parent.iterdir()} == {"bundle", "last"}


def test_what_is_no_bundle_is_not_replaced(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("my own")
    with pytest.raises(InputError, match="mine holds something else than a release, and would be replaced"):
        build_release(lab.asked(), tmp_path / "mine", never)
    with pytest.raises(InputError, match=r"\. has no name of its own"):
        build_release(lab.asked(), Path(), never)
    with pytest.raises(InputError, match="the run has checkpoints of steps: 2, 4"):
        build_release(lab.asked(step=3), tmp_path / "bundle", never)


def test_a_link_leads_to_where_the_bundle_is_made(moved: Lab, bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "home" / "release"
    link.parent.mkdir()
    link.symlink_to(bundle)
    assert build_release(moved.asked(), link, never).skipped
    (bundle / "loss.png").unlink()
    made = build_release(moved.asked(), link, moved.export)
    assert made.folder == link and made.told.startswith(f"{link}: step 4,")
    verify_release(bundle)
    assert list(link.parent.iterdir()) == [link] and link.is_symlink()
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(InputError, match="release is a link that leads back to itself"):
        build_release(moved.asked(), link, never)


def test_what_a_person_put_into_a_bundle_or_changed_is_not_lost(moved: Lab, bundle: Path) -> None:
    (bundle / "README.md").write_text("my own card")
    (bundle / "figures").mkdir()
    (bundle / "figures" / "one.png").write_bytes(b"mine")
    (bundle / "adapter.safetensors").symlink_to("model-00001-of-00001.safetensors")
    with pytest.raises(InputError) as refused:
        build_release(moved.asked(licence="mit"), bundle, never)
    (line,) = refused.value.args
    assert "lost: README.md, figures/one.png, adapter.safetensors: a link" in line and line.endswith(" with to=")
    assert (bundle / "README.md").read_text() == "my own card" and (bundle / "figures" / "one.png").exists()
    assert {path.name for path in bundle.parent.iterdir()} == {"bundle", "last"}
    write_json(bundle / "manifest.json", read_json(bundle / "manifest.json") | {"version": 99})
    with pytest.raises(InputError, match="bundle would be replaced, and cannot be read: manifest.json: has version 99"):
        build_release(moved.asked(licence="mit"), bundle, never)


def test_a_run_that_was_replaced_is_not_taken_for_the_one_before(lab: Lab, tmp_path: Path) -> None:
    for name in ("first", "last"):
        shutil.copytree(lab.root / name, tmp_path / name)
    first = tmp_path / "first"
    stage2 = replace(lab.stage2, output=str(tmp_path / "last"), train=replace(lab.stage2.train, init_from=str(first)))
    save_recipe(stage2, tmp_path / "last" / "recipe.yaml")
    shutil.rmtree(first / "checkpoints")
    lineage = read_json(first / "lineage.json")
    write_json(first / "lineage.json", lineage | {"fingerprint": "0" * 32})
    moved = replace(lab, stage2=stage2)
    made = build_release(moved.asked(), tmp_path / "bundle", moved.export)
    content = read_json(made.folder / "manifest.json")
    assert [run["name"] for run in content["runs"]] == ["last"]
    assert "where another run or checkpoint stands now" in content["not_recorded"][0]
    card = (made.folder / "README.md").read_text()
    assert "The weights that `runs/last` started from: not recorded" in card
    write_json(first / "lineage.json", lineage)  # it is that run, without the checkpoint
    made = build_release(moved.asked(), tmp_path / "bundle", moved.export)
    content = read_json(made.folder / "manifest.json")
    assert [run["name"] for run in content["runs"]] == ["start", "first", "last"]
    assert "does not keep that checkpoint any more" in content["not_recorded"][0]
