"""Bad inputs by the hundred: each ends as the program promises, in a process of its own kind, under watch.

A *campaign* is a function that gets generated values and a `Box`, makes an input of them, and has the program read it
by `Box.attempt`. It runs in a forked process with bounded memory, because what it reads may crash or hang a library.
Of every input is asked:

    how it ends     accepted, or an error of the allowed kinds, whose message is one printable line
    how long        a few seconds of computing; a process that hangs is ended, with its stack and the input
    what it writes  nothing but what lies below the folder that it may write to; seen by the interpreter's audit events,
                    and by a look at the whole folder around it before and after
    what it runs    nothing is unpickled that names a class or function; no program is started, no address looked up

Campaigns are seeded, so they are the same at every run. `--fuzz-times N` runs N times as many inputs, other ones each
time.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.configuration import set_hypothesis_home_dir

from onevision.errors import DataError, InputError
from tests.forks import forked

Function = TypeVar("Function", bound=Callable[..., None])
MEMORY = 3 << 30  # bytes that a campaign may map beyond what is mapped when it begins
CPU_SECONDS = 20.0  # for one input
SECONDS = 150.0  # for one that waits; a machine that tests run on is busy
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.utime"}
STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "socket.connect"}
UNPICKLED = "pickle.find_class"
ENDED: dict[str, Counter[str]] = {}  # of every campaign that has run here: how many inputs ended in which way


def campaign(
    examples: int, prepare: Callable[[Box], object] = lambda box: None, **strategies: Any
) -> Callable[[Function], Function]:
    """Have a function be called as `function(box, **values)` with so many values of these strategies, after
    `prepare(box)`, which is not watched and may take its time.
    """

    def mark(function: Function) -> Function:
        function.examples, function.strategies = examples, strategies  # type: ignore[attr-defined]
        function.prepare = prepare  # type: ignore[attr-defined]
        return function

    return mark


class Box:
    """What a campaign is given: a folder a input, and the watch over what the program does with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.counts: Counter[str] = Counter()  # of inputs, by how they ended
        self.notes: Counter[str] = Counter()  # what else was seen
        self.shared: dict[str, Any] = {}  # what a campaign makes once
        self._watch = _Watch()
        self._number = 0

    def folder(self) -> Path:
        """An empty folder for the next input; that of the one before is removed."""
        shutil.rmtree(self.root / f"{self._number:06d}", ignore_errors=True)
        self._number += 1
        folder = self.root / f"{self._number:06d}"
        folder.mkdir(parents=True)
        return folder

    def attempt(
        self,
        call: Callable[[], Any],
        may_write: Path | None = None,
        errors: tuple[type[Exception], ...] = (InputError, DataError),
        count: bool = True,
    ) -> tuple[Any, Exception | None]:
        """What a call returns, or the error that it ends with; all that is asked of an input is checked here."""
        with self._watch.over(self.root, may_write):
            try:
                value, error = call(), None
            except errors as caught:
                value, error = None, caught
        if error is not None:
            line = str(error)
            assert line and line.isprintable(), f"not one printable line: {line!r}"
            assert len(line) < 3000, f"a line of {len(line)} characters: {line[:200]} ..."
        if count:
            self.counts["accepted" if error is None else type(error).__name__] += 1
        return value, error


class _Watch:
    """Sees by the interpreter's audit events what the block of `over` does."""

    def __init__(self) -> None:
        self._on = False
        self._allowed = ""
        self._found: list[str] = []
        sys.addaudithook(self._hook)

    @contextmanager
    def over(self, around: Path, may_write: Path | None) -> Iterator[None]:
        allowed = "" if may_write is None else f"{os.path.abspath(may_write)}/"  # noqa: PTH100 (".." counts)
        before = _tree(around, may_write)
        self._found, self._allowed, self._on = [], allowed, True
        try:
            yield
        finally:
            self._on = False
        assert not self._found, f"the input had the program do this: {self._found}"
        assert _tree(around, may_write) == before, "files outside changed"

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open":
            path, mode, flags = args
            written = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if written and not isinstance(path, int):
                self._see(f"write {mode}", path)
        elif event in WRITES:
            for path in args[: 2 if event in ("os.rename", "os.link") else 1]:
                if not isinstance(path, int):
                    self._see(event, path)
        elif event in STARTS or event == UNPICKLED:
            self._found.append(f"{event} {args!r}")

    def _see(self, what: str, path: Any) -> None:
        place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        compiled = "/__pycache__" in place  # of the program, by Python and by Numba
        if place != os.devnull and not compiled and not (self._allowed and f"{place}/".startswith(self._allowed)):
            self._found.append(f"{what} {place}")


def _tree(folder: Path, without: Path | None) -> dict[str, tuple[int, int, int]]:
    """Every file and folder below `folder`, but for what is in `without`: its size, inode and time of change."""
    found: dict[str, tuple[int, int, int]] = {}
    for place, folders, files in os.walk(folder):
        if without is not None and Path(place) == without:
            folders[:], files = [], []
            continue  # and its own time changes with what is in it
        for name in files:
            state = os.lstat(f"{place}/{name}")
            found[f"{place}/{name}"] = (state.st_size, state.st_ino, state.st_mtime_ns)
        found |= {f"{place}/{name}/": (0, 0, 0) for name in folders}
    return found


def _body(name: str, times: int, root: Path) -> None:
    """The process of a campaign: leaves how many inputs ended in which way in root/counts.json."""
    module, _, function_name = name.rpartition(".")
    function = getattr(import_module(module), function_name)
    sys.dont_write_bytecode = True
    set_hypothesis_home_dir(root / "hypothesis")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    box = Box(root / "box")
    function.prepare(box)
    with (root / "stack").open("w") as stack:
        faulthandler.enable(stack)
        faulthandler.register(signal.SIGPROF, stack, chain=True)  # which ends the process

        def one(**values: Any) -> None:
            (root / "last").write_text(repr(values)[:20_000], errors="backslashreplace")
            faulthandler.dump_traceback_later(SECONDS, exit=True, file=stack)
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            try:
                function(box, **values)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                faulthandler.cancel_dump_traceback_later()

        once = settings(
            max_examples=function.examples * times,
            derandomize=times == 1,
            database=None,
            deadline=None,
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        )
        once(given(**function.strategies)(one))()
    (root / "counts.json").write_text(json.dumps([box.counts, box.notes, time.process_time()]))


def run(function: Callable[..., None], root: Path, times: int) -> Counter[str]:
    """Run a campaign; returns how many of its inputs ended in which way, and its notes."""
    name = f"{function.__module__}.{function.__name__}"
    with forked(_body, name, times, root) as child:
        code = child.join(1200.0 * times)
        if code != 0:
            stack, last = ((root / file).read_text() if (root / file).exists() else "" for file in ("stack", "last"))
            what = "hangs" if code is None else f"ended with {code}"
            pytest.fail(f"{name} {what}\n{child.error}\n{stack}\nthe last input: {last[:4000]}", pytrace=False)
    *found, seconds = json.loads((root / "counts.json").read_text())
    counts, notes = map(Counter, found)
    ENDED[name] = counts
    print(f"{name}: {sum(counts.values())} inputs: {dict(counts.most_common())} {dict(notes) or ''} {seconds:.1f} s")
    return counts | notes
