"""The rows as a table, a JSON file and a plot."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onevision.files import write_json

Row = dict[str, Any]


def write_report(out: Path, rows: Sequence[Row]) -> None:
    """Write `out`.json and `out`.png."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    write_json(out.with_suffix(".json"), {"date": date, "rows": list(rows)})
    plot(rows, out.with_suffix(".png"))


def title(row: Row) -> str:
    """A short name of a row."""
    if row["what"] != "training":
        return str(row["what"])
    return f"{row['stage']}, {row['model']}" + (", language alone" if row.get("text_only") else "")


def layout(row: Row) -> str:
    """Layout and settings of a row in a few words."""
    values = row.get("layout") or {}
    if "parallel" not in values:
        return f"packs of {values['sequence_length']} x {values['micro_batches']}" if values else ""
    model, parallel = values["model"], values["parallel"]
    words = [f"{values['gpus']} GPU" + ("s" if values["gpus"] > 1 else "")]
    words += [f"{name[0].upper()}P {size}" for name, size in parallel.items() if isinstance(size, int) and size > 1]
    words += [f"MBS {values['micro_batch_size']}", f"GBS {values['global_batch_size']}"]
    words += [f"seq {values['sequence_length']}", values["precision"], f"recompute {model['recompute']}"]
    return ", ".join(words + ([f"frozen {'+'.join(model['freeze'])}"] if model["freeze"] else []))


def show(rows: Sequence[Row]) -> None:
    """Print the table, then where the time of each row goes."""
    console = Console(width=None if sys.stdout.isatty() else 170, highlight=False)
    table = Table(title="throughput")
    for column in ("what", "layout", "tokens/s/GPU", "slots/s/GPU", "samples/s", "MFU", "HFU", "step ms", "memory GB"):
        table.add_column(column)
    for row in rows:
        if "failed" in row:
            table.add_row(row.get("name", row["what"]), f"not measured: {row['failed'][:200]}")
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


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bars of tokens a second beside stacked phases of a step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done = [row for row in rows if "failed" not in row]
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
