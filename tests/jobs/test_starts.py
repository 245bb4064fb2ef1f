"""The decisions of the batch script: go on, again, or stop; from what ranks, srun and nodes have left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.records import Records, leave_record
from jobs.starts import AGAIN, begin, end, fit, judge, main
from onevision.errors import Hung
from onevision.training.bad_steps import BadSteps

JOB = 1234


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Records:
    """Records of a job that begins its first start on two nodes."""
    for name, value in {
        "SLURM_JOB_ID": JOB,
        "SLURM_JOB_NODELIST": "node[01-02]",
        "SLURM_JOB_NUM_NODES": 2,
        "SLURM_NTASKS_PER_NODE": 1,
        "SLURM_RESTART_COUNT": 0,
    }.items():
        monkeypatch.setenv(name, str(value))
    return Records(tmp_path / "log" / "slurm", "stage1_5")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def start(records: Records, run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Begin start number n, with srun's lines of the log written by `log`."""

    def go(number: int) -> None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        begin(records, run)

    return go


def log(records: Records, text: str) -> None:
    with records.log(JOB).open("a") as file:
        file.write(text)


def ended(records: Records, rank: int, code: int, message: str, when: float) -> None:
    leave_record(records.rank(rank), code, message)
    row = json.loads(records.rank(rank).read_text())
    records.rank(rank).write_text(json.dumps(row | {"rank": rank, "time": when, "node": f"node0{rank + 1}"}))


def checkpoint(run: Path, step: int) -> None:
    (run / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)


EXIT_75 = (
    "srun: error: node01: task 0: Exited with exit code 75\n"
    "srun: error: node02: task 1: Exited with exit code 75\n"
)  # fmt: skip
KILLED = (
    "srun: error: node02: task 1: Killed\nsrun: launch/slurm: _step_signal: Terminating StepId=1234.1\n"
    "srun: error: node01: task 0: Exited with exit code 75\n"
)


@pytest.mark.parametrize(
    ("text", "ranks", "code", "cause", "says"),
    [
        (EXIT_75, [(0, 75, "saved")], 75, "interrupted", "saved"),
        (KILLED, [(0, 75, "saved, asked by srun")], 137, "crashed", "node02: task 1: Killed"),
        (KILLED.replace("Killed", "Segmentation fault"), [], 139, "crashed", "node02: task 1: Segmentation fault"),
        ("srun: error: node01: task 0: User defined signal 2\n", [], 140, "interrupted", "User defined signal 2"),
        (EXIT_75.replace("75", "1"), [(1, 1, "boom")], 1, "crashed", "rank 1 on node02: boom"),
        (EXIT_75, [(0, 75, "saved"), (1, 4, "step 7: loss is nan")], 75, "failed", "step 7: loss is nan"),
        (KILLED, [(1, 74, "disk full")], 137, "failed", "disk full"),
        (KILLED, [(0, Hung.exit_code, "step 7 takes longer")], 137, "hung", "step 7 takes longer"),
        ("", [], 1, "crashed", "srun ended with exit code 1"),
    ],
)
def test_judge(
    records: Records,
    start: Callable[[int], None],
    text: str,
    ranks: list[tuple[int, int, str]],
    code: int,
    cause: str,
    says: str,
) -> None:
    start(0)
    log(records, text)
    for when, (rank, rank_code, message) in enumerate(ranks):
        ended(records, rank, rank_code, message, when)
    found = judge(records, code)
    assert found[0] == cause
    assert says in found[2]


def test_lines_of_an_earlier_start_do_not_count(records: Records, start: Callable[[int], None]) -> None:
    start(0)
    log(records, KILLED)
    start(1)
    log(records, EXIT_75)
    ended(records, 0, 75, "saved", 1)
    assert judge(records, 75)[0] == "interrupted"


def test_a_finished_job_is_done(records: Records, start: Callable[[int], None], run: Path) -> None:
    start(0)
    assert end(records, 0, 3, run) == 0
    assert records.events()[-1]["decision"] == "done"


@pytest.mark.parametrize(("code", "exit_code"), [(4, 4), (2, 2), (3, 3), (74, 74), (130, 130)])
def test_what_another_start_would_repeat_is_not_started_again(
    records: Records, start: Callable[[int], None], run: Path, code: int, exit_code: int
) -> None:
    start(0)
    ended(records, 0, code, "why", 0)
    assert end(records, code, 3, run) == exit_code
    assert records.events()[-1] | {"time": 0} == {
        "event": "end", "job_id": JOB, "restart": 0, "time": 0, "cause": "failed", "exit_code": exit_code,
        "message": "why", "decision": "stop",
    }  # fmt: skip


def test_a_crash_loop_stops_and_says_why(records: Records, start: Callable[[int], None], run: Path) -> None:
    codes = []
    for number in range(3):
        start(number)
        log(records, KILLED)
        codes.append(end(records, 137, 3, run))
    assert codes == [AGAIN, AGAIN, 137]
    last = records.events()[-1]
    assert last["decision"] == "stop"
    assert "3 starts ended without a new checkpoint" in last["message"]
    assert "node02: task 1: Killed" in last["message"]


def test_a_new_checkpoint_or_an_interruption_ends_the_count(
    records: Records, start: Callable[[int], None], run: Path
) -> None:
    for number, step in enumerate((0, 0, 20, 20, 40)):
        start(number)
        log(records, KILLED)
        if step and not (run / "checkpoints" / f"step_{step:08d}").exists():
            checkpoint(run, step)
        assert end(records, 137, 3, run) == AGAIN
    start(5)
    log(records, EXIT_75)
    ended(records, 0, 75, "saved", 0)
    assert end(records, 75, 3, run) == AGAIN
    for number in (6, 7):
        start(number)
        log(records, KILLED)
        assert end(records, 137, 3, run) == AGAIN


def test_starts_that_end_without_a_word_count_too(
    records: Records, start: Callable[[int], None], run: Path
) -> None:
    start(0)
    start(1)
    start(2)
    log(records, KILLED)
    assert [row["cause"] for row in records.events() if row["event"] == "end"] == ["lost", "lost"]
    assert end(records, 137, 3, run) == 137


def test_another_job_counts_anew(
    records: Records, start: Callable[[int], None], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        start(number)
        log(records, KILLED)
        end(records, 137, 3, run)
    monkeypatch.setenv("SLURM_JOB_ID", str(JOB + 1))
    begin(records, run)
    records.log(JOB + 1).write_text(KILLED)
    assert end(records, 137, 3, run) == AGAIN


def test_begin_tells_where_it_goes_on(records: Records, run: Path) -> None:
    checkpoint(run, 40)
    (run / "metrics.jsonl").write_text('{"loss": 1, "step": 46}\n{"loss": 1, "step": 47}\n{"loss": 1, "st')
    begin(records, run)
    row = records.events()[-1]
    assert (row["checkpoint"], row["step"], row["nodes"]) == (40, 47, "node[01-02]")
    assert json.loads(records.job.read_text())["job_id"] == JOB  # for status, of a plain script


def nodes(*states: str) -> str:
    """What Slurm says of the partition's nodes, which have these states."""
    return "\n".join(f"node{number:02d} {state}" for number, state in enumerate(states, 1))


def health(records: Records, node: str, *problems: str) -> None:
    records.health.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"node": node, "problems": problems, "measured": {}, "time": 0})
    (records.health / f"{node}.json").write_text(text)


def test_unfit_nodes_are_left_out(
    records: Records, start: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    start(0)
    for node in ("node01", "node02", "node03"):
        health(records, node, *(["7 of 8 GPUs"] if node == "node02" else []))
    capsys.readouterr()
    assert main(["fit", str(records.folder), records.name, "node01\nnode02\nnode03"]) == AGAIN
    assert capsys.readouterr().out == "node02\n"
    start(1)
    for node in ("node01", "node03"):
        health(records, node)
    assert fit(records, ["node01", "node03", "node04"]) == AGAIN  # node04 did not answer
    assert sorted(records.excluded()) == ["node02", "node04"]
    assert "7 of 8 GPUs" in records.excluded()["node02"]["reason"]


def test_a_profile_that_asks_too_much_is_not_the_nodes_fault(records: Records, start: Callable[[int], None]) -> None:
    start(0)
    for node in ("node01", "node02"):
        health(records, node, "0 of 8 InfiniBand ports are ACTIVE")
    assert fit(records, ["node01", "node02"]) == 1
    assert records.events()[-1]["decision"] == "stop"
    assert not records.excluded()


NAN = {"what": "loss", "value": "nan", "action": "elsewhere"}


def suspect(records: Records, run: Path, states: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """A start ends with what another node is to check: exit code and what the batch script gets."""
    for rank in range(2):
        ended(records, rank, 77, "step 7: loss is nan, and the same when it was computed again", rank)
    capsys.readouterr()
    code = main(["end", str(records.folder), records.name, "77", "3", states, str(run)])
    return code, capsys.readouterr().out


def test_what_another_node_is_to_check_starts_again_without_the_one_that_computed_it(
    records: Records,
    start: Callable[[int], None],
    run: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = BadSteps(run, 0)
    steps.put({"step": 9, **NAN, "time": 1, "nodes": ["node04"]})  # of an earlier start
    steps.put({"step": 7, **NAN, "time": 2, "nodes": ["node02.cluster.site"]})
    found = []
    for number in range(3):
        start(number)
        found.append(suspect(records, run, nodes("alloc", "alloc", "idle"), capsys))
    assert found == [(AGAIN, "node02\n"), (AGAIN, "node02\n"), (77, "")]
    assert records.excluded()["node02"]["reason"] == "computed step 7 with loss nan, to be checked"
    assert [row["cause"] for row in records.events() if row["event"] == "end"] == ["suspect"] * 3


@pytest.mark.parametrize(
    ("states", "why"),
    [
        (["alloc", "alloc", "down*", "drain"], "of its partition 1 others are up, and the job needs 2"),
        ([], "Slurm does not say how many others are up"),
    ],
)
def test_where_nodes_would_be_too_few_the_one_that_computed_it_checks_itself(
    records: Records,
    start: Callable[[int], None],
    run: Path,
    capsys: pytest.CaptureFixture[str],
    states: list[str],
    why: str,
) -> None:
    BadSteps(run, 0).put({"step": 7, **NAN, "time": 2, "nodes": ["node02"]})
    start(0)
    assert suspect(records, run, nodes(*states), capsys) == (AGAIN, "")
    assert not records.excluded()
    assert "node02 not left out" in records.events()[-1]["message"] and why in records.events()[-1]["message"]


@pytest.mark.parametrize("unfit", [True, False])
def test_a_node_whose_value_came_again_on_another_is_taken_back(
    records: Records,
    start: Callable[[int], None],
    run: Path,
    capsys: pytest.CaptureFixture[str],
    unfit: bool,
) -> None:
    start(0)
    for node in ("node01", "node02"):
        health(records, node, *(["7 of 8 GPUs"] if unfit and node == "node01" else []))
    assert fit(records, ["node01", "node02"]) == (AGAIN if unfit else 0)
    steps = BadSteps(run, 0)
    for step, action in ((7, "skip"), (8, "stop")):
        start(step)
        steps.put({"step": step, **NAN, "time": step, "nodes": ["node02"]})
        found = suspect(records, run, nodes(*["idle"] * 5), capsys)
        assert found == (AGAIN, "node01,node02\n" if unfit else "node02\n")
        steps.put({"step": step, **NAN, "action": action, "time": step, "nodes": ["node02"]})
        checkpoint(run, step)
        start(step + 100)
        log(records, EXIT_75)
        ended(records, 0, 75, "saved", 0)
        capsys.readouterr()
        assert end(records, 75, 3, run) == AGAIN
        assert capsys.readouterr().out == ("node01\n" if unfit else "-\n")
        assert list(records.excluded()) == (["node01"] if unfit else [])


def test_where_it_is_not_known_which_node_erred_none_is_left_out(
    records: Records, start: Callable[[int], None], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"what": "gradient norm", "value": "inf", "action": "elsewhere", "nodes": []}
    BadSteps(run, 0).put({"step": 7, **row, "time": 2})
    start(0)
    ended(records, 0, 77, "to be checked", 0)
    capsys.readouterr()
    assert end(records, 77, 3, run) == AGAIN
    assert capsys.readouterr().out == "" and not records.excluded()


def test_a_checkpoint_that_was_put_aside_is_none(records: Records, run: Path, start: Callable[[int], None]) -> None:
    checkpoint(run, 10)
    (run / "checkpoints" / "step_00000020.bad").mkdir()
    start(0)
    assert records.events()[-1]["checkpoint"] == 10
