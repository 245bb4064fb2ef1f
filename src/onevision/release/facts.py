"""What a model card is filled with: the sections of README.md, from records that lie in the bundle."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from onevision import __version__
from onevision.files import read_json
from onevision.release import card
from onevision.release.card import NOT_RECORDED, cell, code
from onevision.release.chain import Chain
from onevision.release.data import FoundData
from onevision.release.data_sections import (
    data_parts,
    heldout_text,
    limitations,
    mixture_text,
    parity_text,
    rerun_lines,
    tasks_text,
)
from onevision.release.evaluations import HeldOut
from onevision.release.sections import (
    Trained,
    architecture_table,
    bad_steps_text,
    environment_table,
    recipe_table,
    start_text,
)
from onevision.report.results import Stage

ARCHITECTURE = "llava-onevision-1.5"


@dataclass(frozen=True)
class Facts:
    """All that the card tells of. `stages` are those of the runs that left metrics, by name; `export` is the step.json
    of the weights, `categories` those of summary.json, `tasks` results of lmms-eval on this checkpoint."""

    run_id: str
    chain: Chain
    data: FoundData
    stages: dict[str, Stage]
    export: dict[str, Any]
    parity: dict[str, Any] | None
    heldout: HeldOut | None
    categories: dict[str, dict[str, Any]]
    tasks: list[dict[str, Any]]
    contents: list[tuple[str, str]]
    licence: str
    complete: bool  # whether the first run of the chain is where the weights began

    @property
    def trained(self) -> list[Trained]:
        """The trained runs, with their rows up to the checkpoint that is used of each."""
        return [Trained(run, _until(self.stages.get(run.name), run.steps)) for run in self.chain.runs if run.trained]

    @property
    def commit(self) -> str | None:
        """The commit at which the released run was trained last."""
        trained = self.trained
        return trained[-1].parts.get("commit") if trained else None


def write_card(facts: Facts) -> str:
    """The text of README.md."""
    chain, last = facts.chain, facts.chain.runs[-1]
    first = chain.runs[0]
    record_path = first.folder / "step.json"
    start_record = read_json(record_path) if record_path.exists() else None
    title = f"{last.content['architecture']['name'] if last.content else last.name}: {last.name}, step {last.steps:,}"
    mixture = mixture_text(run for run in chain.runs if run.trained)
    context = {
        "front_matter": card.front_matter(_front_matter(facts)),
        "title": title,
        "summary": _summary(facts),
        "description": last.recipe.description,
        "architecture": architecture_table(last.content or {}, facts.export),
        "parity": parity_text(facts.parity),
        "start": start_text(first, start_record, facts.complete),
        "recipes": recipe_table(facts.trained) if facts.trained else "",
        "curves": bool(facts.stages),
        "bad_steps": bad_steps_text(facts.trained),
        "data_intro": "\n\n".join(part for part in (_data_intro(facts), mixture) if part),
        "data": data_parts(facts.data.folders),
        "heldout": heldout_text(facts.heldout, facts.categories, facts.data.folders),
        "tasks": tasks_text(facts.tasks),
        "environment": environment_table(facts.trained),
        "rerun_intro": (
            "In a clone of OneVision HPC, from a folder in which the paths of the recipes are right (`data.source`, "
            "`data.tokenizer` and so on; any of them can be given as `key=value`). What is done already is skipped:"
        ),
        "rerun": rerun_lines(chain.runs, facts.commit, start_record),
        "rerun_check": (
            "The same input has the same fingerprints (`fingerprint` in `data/*/step.json`, `inputs` in "
            "`runs/*/lineage.json`), and a run with the same seed reads the same samples at a step (`samples_digest` "
            "in `runs/*/metrics.jsonl`)."
        ),
        "contents": facts.contents,
        "limitations": limitations(
            chain, facts.data.folders, facts.data.notes, facts.heldout, facts.categories, facts.licence, facts.commit
        ),
    }
    return card.render(context)


def _until(stage: Stage | None, step: int | None) -> Stage | None:
    """The stage as it was at a step of it."""
    if stage is None or step is None or stage.rows[-1]["step"] <= step:
        return stage
    rows = [row for row in stage.rows if row["step"] <= step]
    return replace(stage, rows=rows, summary=None) if rows else None


def _front_matter(facts: Facts) -> dict[str, Any]:
    last = facts.chain.runs[-1]
    return {
        **({"license": facts.licence} if facts.licence else {}),
        **({"language": languages} if (languages := _languages(facts)) else {}),
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": [ARCHITECTURE, "onevision-hpc"],
        "onevision": {
            "run": facts.run_id,
            "step": last.steps,
            "checkpoint": last.fingerprint,
            "suite": __version__,
            "commit": facts.commit,
        },
    }


def _languages(facts: Facts) -> list[str]:
    """Languages of what was trained on, as far as they are named by ISO 639."""
    found: set[str] = set()
    for data in facts.data.folders:
        if any(user.startswith("runs/") for user in data.used):
            found |= {name for name, count in data.manifest.get("languages", {}).items() if count}
    return sorted(name for name in found if re.fullmatch("[a-z]{2,3}", name))


def _summary(facts: Facts) -> str:
    last = facts.chain.runs[-1]
    runs = " -> ".join(code(run.name) for run in facts.chain.runs)
    return (
        "A model of the architecture of LLaVA-OneVision-1.5 (RICE-ViT, patch-merging adapter, Qwen3), trained with "
        f"OneVision HPC {__version__} in the runs {runs}. Run id {cell(facts.run_id)}, checkpoint "
        f"{code(last.fingerprint)} of step {last.steps:,}."
    )


def _data_intro(facts: Facts) -> str:
    if not facts.data.folders:
        return f"What was read: {NOT_RECORDED}."
    return (
        "The data itself is not in this folder. For each folder of it, `data/NAME/step.json` is the record of the step "
        "that made it, and for corpora `data/NAME/manifest.json` counts licences, sources and rejects, and lists the "
        "shards."
    )


def contents(names: Sequence[str]) -> list[tuple[str, str]]:
    """What stands where, of those files that are there."""
    told = [
        (
            "*.safetensors, config.json, …",
            "the model in the Hugging Face layout, with its code and tokenizer",
            "config.json",
        ),
        ("export/", "which checkpoint the weights are of, and their logits in other loaders", "export/step.json"),
        ("runs/*/recipe.yaml", "the resolved recipe of each run", ""),
        (
            "runs/*/run.json, lineage.json",
            "its id, and the fingerprints of what it read, down to the source's images",
            "",
        ),
        ("runs/*/metrics.jsonl, bad_steps.jsonl", "a row a step, and the bad steps with their samples", ""),
        ("runs/*/environment.json, log/", "versions, commit and hardware; what the jobs printed", ""),
        ("data/", "records, licences, sources, rejects and shards of the data", "data/"),
        ("evaluation/", "accuracy and the model's answers by question id, results of lmms-eval", "evaluation/"),
        (
            "report.html, summary.json",
            "the report of these runs: for people (with some held-out samples), and in numbers",
            "report.html",
        ),
        ("manifest.json, SHA256SUMS", "every file with its size and SHA-256", ""),
    ]
    return [(name, text) for name, text, needs in told if not needs or any(own.startswith(needs) for own in names)]
