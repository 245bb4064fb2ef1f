"""The rows as a table, as figures beside their references, as a JSON file and as a plot."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import results
from benchmarks.results import Row as Figure
from benchmarks.results import write_results
from onevision.files import read_json, write_json
from onevision.machine import commit, version

Row = dict[str, Any]
MFU_GOAL = 0.45  # of a step of stage 1.5 on a GPU
PACKAGES = ("torch", "triton", "megatron-core", "transformer-engine", "transformers", "liger-kernel")


def write_report(out: Path, rows: Sequence[Row]) -> None:
    """Write throughput.json, with the figures as `rows` and all that was measured as `runs`, and throughput.png."""
    beside: dict[str, Any] = {"commit": commit()}
    for row in rows:
        if row.get("device"):
            beside["device"] = row["device"]
    versions = {name: found for name in PACKAGES if (found := version(name))}
    path = write_results("throughput", figures(rows), versions, out, beside)
    content = read_json(path) | {
        "runs": list(rows),
        "not_checked": {row["name"]: row["failed"] for row in rows if "failed" in row},
        "measured": {name: value for row in rows for name, value in row.get("measured", {}).items()},
    }
    write_json(path, content)
    plot(rows, out / "throughput.png")


def figures(rows: Sequence[Row]) -> list[Figure]:
    """What was measured beside its reference: the peak of the device, packed slots, a peer in the same run."""
    done = [row for row in rows if "failed" not in row and "mfu" in row]
    found = []
    for row in done:
        path, on_gpu = title(row), row["device"] != "CPU"
        peak, speed = row["peak_tflops"], row["tokens_per_second_per_gpu"]
        goal = f">= {MFU_GOAL:g}x" if on_gpu and row.get("stage") == "stage1_5" and not row.get("text_only") else ""
        reached = row["mfu"] * peak
        met = row["mfu"] >= MFU_GOAL if goal else True
        found.append(Figure(path, "model FLOP/s (MFU)", reached, "TFLOP/s", "peak", peak, goal, met))
        if row.get("hfu"):
            found.append(Figure(path, "hardware FLOP/s (HFU)", row["hfu"] * peak, "TFLOP/s", "peak", peak, "", True))
            slots = row["slots_per_second_per_gpu"]
            found.append(Figure(path, "real tokens", speed, "tokens/s/GPU", "packed slots", slots, "", True))
        step = row["step_seconds"]
        found.append(Figure(path, "step, median", step["median"], "s", "90th percentile", step["p90"], "", True))
    ours = next((row for row in done if row.get("text_only")), None)
    for row in done:
        if ours is not None and row["what"] != "training":
            speed, reference = ours["tokens_per_second_per_gpu"], row["tokens_per_second_per_gpu"]
            goal, met = (">= 1x", speed >= reference) if row["device"] != "CPU" else ("", True)
            path = title(ours)
            found.append(Figure(path, "tokens", speed, "tokens/s/GPU", row["what"], reference, goal, met))
            if row["memory"]:
                mine, other = ours["memory"]["reserved_gb"], row["memory"]["reserved_gb"]
                found.append(Figure(path, "memory reserved", mine, "GB", row["what"], other, "", True))
    return found


def title(row: Row) -> str:
    """A short name of a row."""
    if row["what"] != "training":
        return str(row["what"])
    graphs = ", CUDA graphs" if row["layout"].get("performance", {}).get("cuda_graphs") else ""
    return f"{'language alone' if row.get('text_only') else row['stage']}, {row['model']}{graphs}"


def layout(row: Row) -> str:
    """Layout and settings of a row in a few words."""
    values = row.get("layout") or {}
    if "parallel" not in values:
        return f"packs of {values['sequence_length']} x {values['micro_batches']}" if values else ""
    model, parallel = values["model"], values["parallel"]
    unit = "CPU rank" if row["device"] == "CPU" else "GPU"
    words = [f"{values['gpus']} {unit}" + ("s" if values["gpus"] > 1 else "")]
    words += [f"{name[0].upper()}P {size}" for name, size in parallel.items() if isinstance(size, int) and size > 1]
    words += [f"MBS {values['micro_batch_size']}", f"GBS {values['global_batch_size']}"]
    words += [f"seq {values['sequence_length']}", values["precision"], f"recompute {model['recompute']}"]
    if model.get("attention", "auto") != "auto":
        words.append(f"attention {model['attention']}")
    words += [name for name, value in values.get("performance", {}).items() if value is True]
    return ", ".join(words + ([f"frozen {'+'.join(model['freeze'])}"] if model["freeze"] else []))


def show(rows: Sequence[Row]) -> None:
    """Print the table, then where the time of each row goes, then the figures beside their references."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table(title="throughput")
    for column in ("what", "layout", "tokens/s/GPU", "slots/s/GPU", "samples/s", "MFU", "HFU", "step ms", "memory GB"):
        table.add_column(column)
    for row in rows:
        if "failed" in row:
            table.add_row(row.get("name", row["what"]), f"not measured: {row['failed'][:200]}")
            continue
        if "mfu" not in row:
            continue
        step, memory = row["step_seconds"], row["memory"]
        slots, samples, hfu = (row.get(key) for key in ("slots_per_second_per_gpu", "samples_per_second", "hfu"))
        table.add_row(
            title(row),
            layout(row),
            f"{row['tokens_per_second_per_gpu']:,.0f}",
            f"{slots:,.0f}" if slots else "",
            f"{samples:.1f}" if samples else "",
            f"{row['mfu']:.1%}",
            f"{hfu:.1%}" if hfu else "",
            f"{step['median'] * 1e3:.1f} ({step['p10'] * 1e3:.1f} to {step['p90'] * 1e3:.1f})",
            " / ".join(f"{memory[key]:.1f}" for key in ("allocated_gb", "reserved_gb", "resident_gb") if key in memory),
        )
    console.print(table)
    for row in rows:
        if "failed" not in row and row.get("phases"):
            console.print(f"{title(row)}: {row['data']}; {_environment(row)}")
            console.print("  phases: " + ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in _sorted(row)))
            kernels = row.get("kernels") or {}
            if kernels:
                shares = ", ".join(f"{name} {share:.1%}" for name, share in kernels["shares"].items())
                console.print(f"  device time: {shares}")
                for kernel in kernels["top"]:
                    calls = f"{kernel['calls_per_step']:7.0f} x {kernel['mean_microseconds']:9.1f} us"
                    console.print(f"    {kernel['share']:6.1%} {calls}  {kernel['name'][:100]}")

    results.show("beside their references", figures(rows))


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of tokens a second above stacked phases of a step; nothing where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done = [row for row in rows if "failed" not in row and "mfu" in row]
    if not done:
        return
    figure, (speed, time) = pyplot.subplots(2, 1, figsize=(10, 2.5 + 0.9 * len(done)), constrained_layout=True)
    names = [title(row) for row in done]
    bars = speed.barh(names, [row["tokens_per_second_per_gpu"] for row in done])
    speed.bar_label(bars, [f" MFU {row['mfu']:.0%}" for row in done])
    speed.set_xlabel("real tokens a second and GPU")
    speed.invert_yaxis()
    phased = [row for row in done if row.get("phases")]
    left = [0.0] * len(phased)
    for name in dict.fromkeys(name for row in phased for name in row["phases"]):
        values = [row["phases"].get(name, 0.0) * 1e3 for row in phased]
        time.barh([title(row) for row in phased], values, left=left, label=name)
        left = [start + value for start, value in zip(left, values, strict=True)]
    time.set_xlabel("milliseconds a step")
    time.invert_yaxis()
    if phased:
        time.legend(fontsize="x-small", ncols=3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _sorted(row: Row) -> list[tuple[str, float]]:
    return sorted(row["phases"].items(), key=lambda item: -item[1])


def _environment(row: Row) -> str:
    found = row["environment"]
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return f"{found['device']} x {found['world_size']}, {packages}, peak {found['peak_tflops']} TFLOP/s"
