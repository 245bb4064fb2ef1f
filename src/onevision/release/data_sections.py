"""The sections of a model card on data, evaluation, rerunning and limitations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onevision.files import read_json
from onevision.release.card import NOT_RECORDED, cell, code, count_of, table
from onevision.release.chain import Chain, ChainRun
from onevision.release.data import DataFolder
from onevision.release.evaluations import HeldOut
from onevision.report.charts import percent

SOURCES_SHOWN = 12  # of a licence; data/NAME/manifest.json has all
CORPORA = ("corpus", "selection", "heldout")
TITLES = {
    "corpus": "Corpus",
    "selection": "Balanced selection",
    "packs": "Packs",
    "concepts": "Concept index",
    "vocabulary": "Vocabulary",
    "heldout": "Held-out questions",
}


def data_parts(folders: Sequence[DataFolder]) -> list[dict[str, str]]:
    """Title and text of each folder of data."""
    text = {"packs": _packs, "vocabulary": _vocabulary, "concepts": _concepts}
    parts = []
    for data in folders:
        told = text.get(data.kind, _corpus)(data)
        users = ", ".join(code(user) for user in data.used)
        title = f"{TITLES[data.kind]} {code(data.name)}"
        parts.append({"title": title, "text": f"Fingerprint {code(data.fingerprint)}, read by {users}.\n\n{told}"})
    return parts


def mixture_text(runs: Iterable[ChainRun]) -> str:
    """How the runs mix their corpora; empty where none does."""
    rows = []
    for run in runs:
        for entry in run.recipe.data.mixture:
            share = f"weight {entry.weight:g}" if entry.weight else f"{entry.epochs or 1:g} epochs of one"
            rows.append((cell(run.name), code(entry.corpus), code(entry.packs), share))
    return "Mixtures:\n\n" + table(("run", "corpus", "packs", "share"), rows, left=4) if rows else ""


def _corpus(data: DataFolder) -> str:
    found, summary = data.manifest, data.summary
    rejects = ", ".join(f"{count:,} {cell(reason)}" for reason, count in found["rejects_by_reason"].items())
    hashed = all("sha256" in shard for shard in found["shards"])
    size = sum(shard["bytes"] for shard in found["shards"])
    facts = [
        f"{found['samples']:,} samples, {found['images']:,} images, {found['text_tokens']:,} text tokens and "
        f"{found['vision_tokens']:,} image tokens; {found['rejected']:,} records rejected"
        + (f" ({rejects})" if rejects else "")
        + ".",
        f"Languages: {_listed(found['languages'])}. Categories: {_listed(found['categories'])}.",
        f"{count_of(len(found['shards']), 'shard')} of {size:,} bytes, with "
        + ("the SHA-256 of each" if hashed else "a digest of the samples of each")
        + f" in `data/{data.name}/manifest.json`.",
    ]
    if balance := summary.get("balance"):
        settings, coverage = balance["settings"], balance["coverage"]
        facts.insert(
            0,
            f"{balance['drawn']:,} of {balance['before']:,} samples were drawn, with `concepts.weighting` "
            f"{code(settings['weighting'])} and seed {settings['seed']}; they have {coverage['after']['covered']:,} of "
            f"{coverage['before']['covered']:,} concepts. Left out as near duplicates: "
            f"{sum(balance['duplicates'].values()):,}.",
        )
    rows = []
    for licence, count in found["licences"].items():
        if not count:
            continue
        sources: Counter[str] = Counter()
        for source, samples in found["sources_by_licence"][licence].items():
            for part in source.split("; "):  # a sample of several sources names them so
                sources[part] += samples
        more = f"; and {len(sources) - SOURCES_SHOWN:,} more" if len(sources) > SOURCES_SHOWN else ""
        shown = "; ".join(f"{cell(name)} ({n:,})" for name, n in sources.most_common(SOURCES_SHOWN))
        rows.append((cell(licence), f"{count:,}", shown + more))
    return "\n\n".join([*facts, table(("licence", "samples", "sources (samples that name them)"), rows, left=3)])


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{cell(name)} {count:,}" for name, count in counts.items() if count) or NOT_RECORDED


def _packs(data: DataFolder) -> str:
    summary = data.summary
    reasons = ", ".join(f"{count:,} {cell(reason)}" for reason, count in summary["overlong_by_reason"].items())
    return (
        f"{summary['samples']:,} samples in {summary['packs']:,} packs of at most "
        f"{summary['bounds']['sequence_length']:,} tokens, {percent(summary['fill'], 2)} filled; "
        f"{summary['overlong']:,} samples were too long" + (f" ({reasons})" if reasons else "") + "."
    )


def _vocabulary(data: DataFolder) -> str:
    sources = ", ".join(f"{cell(name)} {row['added']:,}" for name, row in data.summary["sources"].items())
    return f"{data.summary['concepts']:,} concepts, added by: {sources or NOT_RECORDED}."


def _concepts(data: DataFolder) -> str:
    inputs, summary = data.record["inputs"], data.summary
    how = (
        f"the nearest {inputs['top_k']} of each sample"
        if inputs["match"] == "embedding"
        else "those that captions name"
    )
    return (
        f"{summary['matches']:,} concepts of {summary['samples']:,} samples: {how}; {summary['without']:,} have none."
    )


def heldout_text(found: HeldOut | None, categories: dict[str, dict[str, Any]], folders: Sequence[DataFolder]) -> str:
    """Accuracy per category; `categories` are those of summary.json, with chance and the start weights where known."""
    if found is None:
        return f"Accuracy on held-out questions: {NOT_RECORDED}; no evaluation of this checkpoint was found."
    scores, inputs = found.record["summary"]["categories"], found.record["inputs"]
    rows, right, asked = [], 0.0, 0
    for name, score in scores.items():
        known = categories.get(name, {})
        right, asked = right + score["accuracy"] * score["n"], asked + score["n"]
        shown = [_share(known.get("before")), _share(score["accuracy"]), _share(known.get("chance"))]
        rows.append((cell(name), f"{score['n']:,}", *shown))
    rows.append(("all", f"{asked:,}", "", _share(right / asked if asked else None), ""))
    where = next((f"`data/{data.name}`" for data in folders if "evaluation" in data.used), NOT_RECORDED)
    return (
        f"Questions of {where} (corpus {code(inputs['corpus'])}), answered by greedy generation of at most "
        f"{inputs['max_new_tokens']} tokens in {cell(inputs['precision'])}; right is an answer that is the "
        "expected one but for case, outer blanks and a final full stop. Before is the model that these runs began "
        "with; chance is the best constant answer, the most frequent one in training for the same wording.\n\n"
        + table(("kind", "questions", "before", "right", "chance"), rows)
    )


def _share(value: float | None) -> str:
    return NOT_RECORDED if value is None else f"{100 * value:.1f} %"


def tasks_text(results: Sequence[dict[str, Any]]) -> str:
    """Results of lmms-eval of the released checkpoint."""
    if not results:
        return f"Tasks of lmms-eval: {NOT_RECORDED}; none was run on this checkpoint."
    rows = []
    for result in results:
        score, published = result.get("score"), result.get("published") or {}
        problem = result.get("problem") or result.get("note") or "no figure"
        rows.append(
            (
                cell(result["task"]),
                cell(result.get("model")),
                cell(score["metric"] if score else problem),
                f"{score['percent']:.1f} %" if score else "–",
                f"{result['answered']:,}",
                f"{result['failed']:,}",
                *(_beside(published.get(size)) for size in ("4b", "8b")),
                cell(_settings(result)),
            )
        )
    columns = (
        "task",
        "asked through",
        "figure",
        "score",
        "answered",
        "failed",
        "published 4B",
        "published 8B",
        "settings",
    )
    return (
        "Tasks of lmms-eval, beside what is published of LLaVA-OneVision-1.5 (An et al., arXiv 2509.23661 v3; with the "
        "difference), measured there with settings of its own:\n\n" + table(columns, rows, left=3)
    )


def _beside(entry: dict[str, float] | None) -> str:
    if not entry:
        return "–"
    return f"{entry['percent']:.1f}" + (f" ({entry['difference']:+.1f})" if "difference" in entry else "")


def _settings(result: dict[str, Any]) -> str:
    settings, versions = result["settings"], result.get("versions") or {}
    parts = [f"max_pixels={settings['max_pixels']}"] if "max_pixels" in settings else []
    parts += [f"first {result['limit']} documents only"] if result.get("limit") else []
    parts += [f"lmms-eval {versions['lmms_eval']}"] if versions.get("lmms_eval") else []
    return ", ".join(parts)


def parity_text(parity: dict[str, Any] | None) -> str:
    """Whether other loaders were compared with the checkpoint."""
    if parity is None:
        return f"Logits of these weights in other loaders against the checkpoint's: {NOT_RECORDED}."
    largest: dict[str, float] = {}
    for row in parity["rows"]:
        largest[row["consumer"]] = max(largest.get(row["consumer"], 0.0), row["difference"])
    told = ", ".join(f"{cell(name)} {value:.1e}" for name, value in largest.items())
    missing = ", ".join(cell(name) for name in parity["not_checked"])
    return (
        f"Largest difference of a logit from the checkpoint's, in {cell(parity['computed_in'])} (`export/parity.txt`): "
        f"{told}." + (f" Not checked: {missing}." if missing else "")
    )


def rerun_lines(runs: Sequence[ChainRun], commit: str | None, start_record: dict[str, Any] | None) -> list[str]:
    """The commands, from a clone of the suite on."""
    lines = [f"git checkout {commit}" if commit else f"# the commit of the suite: {NOT_RECORDED}", "make setup"]
    lines.append("BUNDLE=path/to/this/folder")
    jobs = ".venv/bin/python -m jobs"
    done: set[str] = set()

    def add(job: str, run: ChainRun, output: str, settings: str = "") -> None:
        if output and f"{job} {output}" not in done:
            done.add(f"{job} {output}")
            lines.append(f'{jobs} {job} "$BUNDLE/runs/{run.name}/recipe.yaml"{settings}')

    for source in sorted({run.recipe.data.source for run in runs if run.trained and _drawn(run.recipe.data.source)}):
        lines.append(f"make demo    # draws the records in {source} again, and goes on with all of this")
    for run in runs:
        data, concepts = run.recipe.data, run.recipe.concepts
        if run.trained:
            if data.mixture:
                lines.append(f"# the corpora and packs of the mixture of {run.name}: see Data")
            else:
                add("corpus", run, data.corpus)
                if data.balanced:
                    add("vocabulary", run, concepts.vocabulary)
                    add("concepts", run, concepts.index)
                    add("balance", run, data.balanced)
                add("pack", run, data.packs)
            add("train", run, run.recipe.output)
        elif start_record and start_record.get("step") == "import":
            names = start_record["inputs"]["sources"]
            add("import", run, run.recipe.output, "".join(f" {_SOURCES.get(name, name)}=FOLDER" for name in names))
        else:
            add("init", run, run.recipe.output)
    last = runs[-1].recipe
    lines.append(f"{jobs} export {_quoted(last.output)} step={runs[-1].steps}")
    if last.evaluation.corpus:
        lines.append(f"{jobs} evaluate {_quoted(last.output)}")
    return lines


def _drawn(source: str) -> bool:
    """Whether the records of a source were drawn by the demo: the record of that step says so."""
    record = Path(source).parent / "step.json"
    return bool(source) and record.is_file() and read_json(record).get("step") == "demo-source"


_SOURCES = {"qwen3": "language", "rice": "vision"}  # the settings of `import` by what its step.json calls the sources


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w./-]+", text) else '"' + re.sub(r'(["$`\\])', r"\\\1", text) + '"'


def limitations(
    chain: Chain,
    folders: Sequence[DataFolder],
    notes: Sequence[str],
    found: HeldOut | None,
    categories: dict[str, dict[str, Any]],
    licence: str,
    commit: str | None,
) -> list[str]:
    """What is known of what this model and these records lack."""
    last, lines = chain.runs[-1], []
    planned = last.recipe.train.steps
    if last.trained and last.steps is not None and last.steps < planned:
        lines.append(f"The checkpoint is of step {last.steps:,} of {planned:,} planned.")
    corpora = [data for data in folders if data.kind in CORPORA]
    trained_on = {data.fingerprint for data in corpora if any(user.startswith("runs/") for user in data.used)}
    languages = {
        name
        for data in corpora
        if data.fingerprint in trained_on
        for name, count in data.manifest["languages"].items()
        if count
    }
    if languages:
        lines.append(f"The training data of these runs is in: {', '.join(map(cell, sorted(languages)))}.")
    lines.append("The code beside the weights takes images and text, and no videos.")
    if found is not None:
        if found.record["inputs"]["corpus"] in trained_on:
            lines.append("The questions of the evaluation are of a corpus that was trained on: they are not held out.")
        scores = found.record["summary"]["categories"]
        known = {
            name: categories[name]["chance"] for name in scores if categories.get(name, {}).get("chance") is not None
        }
        low = [name for name, chance in known.items() if scores[name]["accuracy"] <= chance]
        if low:
            lines.append(f"Not above the best constant answer: {', '.join(map(cell, low))}.")
        lines.append(
            f"Whether settings were chosen while looking at these scores: {NOT_RECORDED}, unless the text at the top "
            "says so."
        )
    for data in corpora:
        unknown = sum(count for name, count in data.manifest["licences"].items() if not name.strip())
        if unknown:
            lines.append(f"{unknown:,} samples of `data/{data.name}` have no licence.")
    lines.append("Personal data, consent, bias and harmful content in the data: not measured by the suite.")
    lines.append(
        f"Licence of the weights: {cell(licence)}, said by who made this folder."
        if licence
        else f"Licence of the weights: {NOT_RECORDED}; the licences of the data are above."
    )
    if commit:
        lines.append(f"The commit is the repository's; whether files had been changed since: {NOT_RECORDED}.")
    return lines + [cell(note) + "." for note in (*chain.notes, *notes)]
