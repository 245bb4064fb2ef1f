"""`python -m jobs NAME …`: the front door of every job."""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from onevision.errors import InputError, OneVisionError


@dataclass(frozen=True)
class Job:
    """Where a job's `run(arguments: list[str]) -> exit code` stands, and what it does."""

    target: str  # module:function, imported only when it is asked for
    help: str


JOBS = {
    "demo": Job("jobs.demo:run", "the whole pipeline on this machine, small, with a report at the end"),
    "corpus": Job("jobs.data:run_corpus", "records and their images -> shards and corpus.h5"),
    "vocabulary": Job("jobs.concepts:run_vocabulary", "names of concepts -> vocabulary.h5 with their embeddings"),
    "concepts": Job("jobs.concepts:run_concepts", "the concepts of every sample of a corpus -> concepts.h5"),
    "balance": Job("jobs.concepts:run_balance", "a selection in which rare concepts have their place -> a corpus"),
    "concepts-report": Job("jobs.concepts:run_report", "coverage before and after, as text and report.html"),
    "pack": Job("jobs.data:run_pack", "corpus -> packs.h5, full sequences"),
    "pack-report": Job("jobs.pack_report:run", "the packs as text and report.html: fill, compression, cost balance"),
    "plan": Job("jobs.plan:run", "predicted memory and step time of every parallel layout, and what matters most"),
    "init": Job("jobs.train:run_init", "a stage-0 checkpoint with random weights"),
    "import": Job("jobs.convert:run_import", "a stage-0 checkpoint of Hugging Face directories"),
    "train": Job("jobs.train:run_train", "one stage; the same command continues it"),
    "resume": Job("jobs.train:run_resume", "continue a run from its folder alone"),
    "pipeline": Job("jobs.pipeline:run", "all steps from records to an exported model, by dependencies"),
    "status": Job("jobs.status:run", "what each run is doing: nodes, step, loss, tokens/s, ETA, why it waits"),
    "logs": Job("jobs.logs:run_logs", "the log of a run, while it grows"),
    "samples": Job("jobs.samples:run", "the samples of a step of a run, or whether each step had those planned"),
    "cancel": Job("jobs.logs:run_cancel", "end the job of a run, saved"),
    "evaluate": Job("jobs.evaluate:run", "accuracy per category on held-out questions"),
    "chat": Job("jobs.chat:run", "ask a checkpoint about images, in the terminal or on a page"),
    "export": Job("jobs.convert:run_export", "a checkpoint -> a Hugging Face directory"),
    "release": Job("jobs.release:run", "a checkpoint with all that others need to rerun and check it, hashed"),
    "verify-release": Job("jobs.release:run_verify", "is a release what its manifest says?"),
    "report": Job("jobs.report:run", "report.html of a run folder"),
    "bench": Job("jobs.benchmark:run", "throughput of the stages of a model, beside peers: table, JSON, plot"),
    "cuda": Job("jobs.cuda:run", "compile the ops of cuda/ for the GPUs of this machine, or their twins"),
    "cuda-check": Job("jobs.cuda:run_check", "compile the kernels for sm_80 and sm_90, run their source on the CPU"),
    "gpu-check": Job("jobs.gpu_check:run", "on any GPU: correctness, parity and speed of the suite, and a report"),
    "scripts": Job("jobs.scripts:run", "write the plain sbatch scripts of sbatch/ anew"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named job; exit code of the job, or that of the error whose line was printed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding must not end a job
    parser = argparse.ArgumentParser(
        prog="python -m jobs",
        usage="%(prog)s NAME [argument] [key=value ...]",
        description="Jobs (python -m jobs NAME --help tells more about one):\n\n"
        + "\n".join(f"  {name:<15} {job.help}" for name, job in JOBS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)
    if not given or given[0] in ("-h", "--help"):
        parser.print_help()
        return 0 if given else 2
    name = given[0]  # what follows belongs to the job
    try:
        code = _run(name, given[1:])
        sys.stdout.flush()
        return code
    except OneVisionError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    except BrokenPipeError:  # whoever read our output is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        handle, log = tempfile.mkstemp(prefix=f"onevision-{name}-", suffix=".log")
        os.write(handle, traceback.format_exc().encode())
        os.close(handle)
        what = ": ".join([type(error).__name__, *str(error).split("\n")[:1]])
        return _fail(f"{name} failed: {what}; see {log}", 1)


def _run(name: str, arguments: list[str]) -> int:
    if name not in JOBS:
        near = difflib.get_close_matches(name, JOBS, n=1, cutoff=0.0)
        raise InputError(f"unknown job {name!r}; the nearest is {near[0]!r}")
    module, _, function = JOBS[name].target.partition(":")
    run = getattr(importlib.import_module(module), function)
    if {"-h", "--help"} & set(arguments):
        print(inspect.getdoc(run) or JOBS[name].help)
        return 0
    return int(run(arguments))


def _fail(line: str, exit_code: int) -> int:
    print(f"error: {line}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
