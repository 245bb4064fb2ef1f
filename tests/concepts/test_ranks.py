"""Ranks that share the concepts step: the same bytes for any number of them, also when one is killed in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.shared import RankFailed, by_mpiexec
from onevision.concepts import build
from onevision.concepts.build import build_concepts
from onevision.concepts.index import ConceptPart, part_file, write_concept_part
from onevision.files import read_json
from onevision.ranks import Ranks
from onevision.recipe import Recipe
from onevision.steps import StepResult
from tests.concepts.cases import NAMES, SHARD, make_recipe, record, write_names

PARTS = 12


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Of a corpus of 12 parts, as the substring mode needs it."""
    records = [record(i, images=1 + i % 2) for i in range(PARTS * SHARD - 2)]
    return make_recipe(tmp_path_factory.mktemp("concepts"), records, match="substring")


@pytest.fixture(scope="module")
def alone(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves, without MPI."""
    return build_concepts(recipe, tmp_path_factory.mktemp("alone") / "concepts", report=str).folder


def contents(folder: Path) -> dict[str, object]:
    """The files of a step, byte by byte; its record without what was measured: seconds, and which search is faster."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in folder.glob("*.h5")}
    record = read_json(folder / "step.json")
    for name in ("seconds", "embedded_per_second"):
        record["summary"].pop(name)
    if record["summary"]["search"]:
        record["summary"]["search"].pop("first_pass")
    return files | {"step.json": record | {"seconds": 0}}


@pytest.mark.parametrize("ranks", [1, 3])
def test_any_number_of_ranks_leaves_the_same_bytes(recipe: Recipe, alone: Path, ranks: int, tmp_path: Path) -> None:
    by_mpiexec(ranks, build_concepts, recipe, tmp_path / "concepts")
    assert contents(tmp_path / "concepts") == contents(alone)
    assert len(list(alone.glob("concepts-*.h5"))) == PARTS


@pytest.mark.slow
def test_ranks_that_embed_leave_the_same_bytes(tmp_path: Path) -> None:
    from tests.concepts.tiny_clip import save_tiny_clip  # imports torch, which ranks of the other tests do without

    weights = str(save_tiny_clip(tmp_path / "clip"))
    clip = {"encoder": "clip", "weights": weights}
    vocabulary = str(write_names(tmp_path / "names", NAMES, **clip))
    recipe = make_recipe(tmp_path, [record(i) for i in range(5 * SHARD)], vocabulary=vocabulary, **clip)
    alone = build_concepts(recipe, tmp_path / "alone", report=str).folder
    by_mpiexec(2, build_concepts, recipe, tmp_path / "ranks")
    assert contents(tmp_path / "ranks") == contents(alone)


def build_until_killed(
    parts: int, recipe: Recipe, output: Path, ranks: Ranks, report: Callable[[str], None] = print
) -> StepResult:
    """The step, in which rank 1 is killed (kill -9) while it writes a part, after `parts` others."""
    written = 0

    def write(folder: Path, k: int, part: ConceptPart) -> None:
        nonlocal written
        if ranks.rank == 1 and written == parts:
            (folder / f".{part_file(k)}.tmp").write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        write_concept_part(folder, k, part)
        written += 1

    vars(build)["write_concept_part"] = write
    return build_concepts(recipe, output, ranks, report)


def test_a_killed_rank_leaves_what_a_rerun_goes_on_with(recipe: Recipe, alone: Path, tmp_path: Path) -> None:
    output, work = tmp_path / "concepts", tmp_path / ".concepts.parts"
    for parts in (1, 1):
        with pytest.raises(RankFailed, match="was killed from outside"):
            by_mpiexec(2, build_until_killed, parts, recipe, output)
        assert not output.exists()
    done = [int(path.stem.removeprefix("part-")) for path in work.glob("part-*.json")]
    assert 2 <= len(done) < PARTS
    before = {k: (work / part_file(k)).stat().st_mtime_ns for k in done}
    by_mpiexec(2, build_concepts, recipe, output)
    assert before == {k: (output / part_file(k)).stat().st_mtime_ns for k in done}
    assert contents(output) == contents(alone)
    assert not list(output.glob(".*"))
