"""The job that proves the suite on the GPU at hand, and says how fast it is there."""

from __future__ import annotations

import datetime
import difflib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from benchmarks.gpu.checks import gpu_key
from benchmarks.gpu.report import NAME, kept, read_report, table, write_report
from benchmarks.gpu.runner import Ended, Section, run_sections
from benchmarks.gpu.stamp import stamp
from onevision.errors import InputError
from onevision.files import remove_temporaries, storage_errors

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
EXTERNAL = "benchmarks.gpu.external"
STEPS = {"package": "benchmarks.throughput", "seconds": "150"}
# The most important first: what does not fit into the time is not checked.
SECTIONS = (
    Section("environment", "benchmarks.gpu.machine", 30, 90),
    Section("build", "benchmarks.gpu.building", 60, 240),
    Section("correctness", "benchmarks.gpu.correctness", 120, 300, least=40),
    Section("ops", EXTERNAL, 60, 150, {"package": "benchmarks.ops"}),
    Section("throughput", EXTERNAL, 150, 300, STEPS | {"rows": "stage1_5,graphs"}),
    Section("parity", "benchmarks.gpu.parity", 100, 260, least=40),
    Section("data", "benchmarks.gpu.loading", 60, 150),
    Section("calibration", EXTERNAL, 30, 90, STEPS | {"rows": "calibration"}),
    Section("peers", EXTERNAL, 200, 400, STEPS | {"rows": "language,peers"}, least=60),
)
ASKED = (Section("sanitizer", "benchmarks.gpu.sanitizer", 120, 300),)  # run where they are named, not by default
SECONDS = 1200.0  # of a call, unless told otherwise
PROBE = """
import json
try:
    import torch
except ModuleNotFoundError:
    print(json.dumps(["has no PyTorch", None]))
else:
    if torch.version.cuda is None:
        print(json.dumps([f"has PyTorch {torch.__version__}, which is for the CPU alone", None]))
    elif not torch.cuda.is_available():
        print(json.dumps(["finds no GPU", None]))
    else:
        print(json.dumps([None, torch.cuda.get_device_name(0)]))
"""


def run(arguments: list[str]) -> int:
    """python -m jobs gpu-check [out=DIR] [seconds=N] [only=SECTION,...] [again=SECTION,...] [SECTION.key=value ...]

    Checks and measures the suite on the first GPU of this machine: environment and ceilings, the ops' build, the tests
    that are marked gpu, training in BF16 against FP32, and the benchmarks. Each section runs apart; what is missing or
    does not fit into seconds (default 1200) is listed as not checked. DIR (default
    benchmarks/results/gpu-<GPU>-<date>) gets gpu-check.json, gpu-check.md, the curves and log.txt as things are found.
    Called again with the same DIR it goes on: sections that came to their end from the same code with the same settings
    stay as they are, but for those of again=. only=sanitizer runs the ops under compute-sanitizer, which takes minutes.
    Needs the repository, PyTorch with CUDA and megatron-core; exit code 2 without a GPU, 1 where something failed or
    missed its goal. SECTION.key=value sets what a section takes: parity.steps=100, throughput.model=1.7b.
    """
    settings = _settings([argument for argument in arguments if "." not in argument.partition("=")[0]])
    own = [argument for argument in arguments if "." in argument.partition("=")[0]]
    sections = with_settings(chosen("only", settings.get("only", "")), own)
    again = [one.name for one in chosen("again", settings["again"])] if settings.get("again") else []
    seconds = _seconds(settings)
    device = gpu_name()
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    out = Path(settings.get("out") or RESULTS / f"gpu-{gpu_key(device)}-{date}").absolute()
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    return check(sections, device, out, seconds, again)


def check(sections: Sequence[Section], device: str, out: Path, seconds: float, again: Sequence[str] = ()) -> int:
    """Run the sections that the report in `out` lacks or that are named in `again`, and leave the report there.

    Returns:
        The exit code: 1 where the report has something that failed or missed its goal.

    Raises:
        InputError: the report in `out` is another GPU's.
    """
    mark = stamp()
    remove_temporaries(out)  # of a check that was killed
    report = read_report(out, device, mark)
    same = kept(report, {section.name: section.settings for section in sections}, mark)
    whole = {name: one for name, one in same.items() if one.whole and name not in again}
    earlier = {name: one.findings for name, one in same.items() if not one.whole}
    names = list(dict.fromkeys([*(one.name for one in SECTIONS), *report, *(one.name for one in sections)]))
    planned = [name for name in names if name in report or name in {one.name for one in sections}]

    def in_order() -> list[Ended]:
        return [report[name] for name in names if name in report]

    def save(one: Ended) -> None:
        report[one.section] = one
        write_report(out, device, in_order(), planned, mark)

    for name, one in whole.items():
        print(f"{name}: kept, of {one.stamp}", flush=True)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        to_run = [section for section in sections if section.name not in whole]
        run_sections(to_run, out / "log.txt", seconds, save, lambda line: print(line, flush=True), earlier, mark)
    finally:
        signal.signal(signal.SIGTERM, before)
        if report:
            print(f"\n{table(in_order())}\n{out / NAME}.md", flush=True)
    outcomes = {found.outcome for one in report.values() for found in one.findings.checks}
    return 1 if outcomes & {"failed", "not met"} else 0


def chosen(setting: str, value: str) -> list[Section]:
    """The sections that the value of a setting names, in their order; without a name all of the default.

    Raises:
        InputError: an unknown name.
    """
    known = [*SECTIONS, *ASKED]
    names = [section.name for section in known]
    wanted = [name for name in value.split(",") if name]
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise InputError(f"{setting}={value}: unknown section {name!r}; the nearest is {near!r}")
    return [section for section in known if section.name in wanted] if wanted else list(SECTIONS)


def with_settings(sections: Sequence[Section], arguments: Sequence[str]) -> list[Section]:
    """The sections with the values of `SECTION.key=value`.

    Raises:
        InputError: one names no section of these.
    """
    changed = {section.name: section for section in sections}
    for argument in arguments:
        place, _, value = argument.partition("=")
        name, _, key = place.partition(".")
        if name not in changed:
            raise InputError(f"{argument}: {name!r} is not one of the sections {', '.join(changed)}")
        changed[name] = replace(changed[name], settings=changed[name].settings | {key: value})
    return list(changed.values())


def gpu_name() -> str:
    """What this machine's first GPU calls itself, asked in another process, so that none of its memory is held here.

    Raises:
        InputError: there is none, or PyTorch cannot use it.
    """
    ended = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    try:
        reason, name = json.loads(ended.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (ended.stderr.splitlines() or [f"exit code {ended.returncode}"])[-1]
        reason, name = f"cannot ask for a GPU: {last}", None
    if reason:
        raise InputError(
            f"gpu-check needs a GPU, and {sys.executable} {reason}; another Python: make gpu-check PYTHON=python3"
        )
    return str(name)


def _settings(arguments: list[str]) -> dict[str, str]:
    known = ("out", "seconds", "only", "again")
    settings = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in known:
            raise InputError(f"gpu-check takes {', '.join(f'{name}=' for name in known)}, not {argument}")
        settings[key] = value
    return settings


def _seconds(settings: dict[str, str]) -> float:
    given = settings.get("seconds") or str(SECONDS)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise InputError(f"seconds={given} is not a number above 0")
    return seconds


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
