"""How concepts and selection were made: settings, what the search did, damage, and what was made from what."""

from __future__ import annotations

from typing import Any

from onevision.progress import duration
from onevision.report.charts import percent
from onevision.report.concept_content import STEPS, provenance
from onevision.report.concept_facts import ConceptFacts
from onevision.report.page import Lineage

FORMULAS = {
    "sum": "1/f of each of its concepts, summed; f is the number of samples that have the concept",
    "mean": "the mean of 1/f over its concepts; f is the number of samples that have the concept",
    "metaclip": "1 - (1 - p) (1 - p) … over its concepts, p = min(1, t/f); f is the number of samples that have the "
    "concept, t is {threshold:,}",
}
MATCHES = {
    "embedding": "the {top_k} concepts nearest to the sample's embedding, of {concepts:,}",
    "substring": "every one of {concepts:,} concepts that the caption names",
}


def settings(facts: ConceptFacts) -> list[tuple[str, str]]:
    """What was set, and what the steps say of their work, line by line."""
    index, summary = facts.index, facts.records["concepts"]["summary"]
    rows = [("Vocabulary", provenance(facts))]
    if facts.vocabulary:
        rows.append(("Templates", ", ".join(map(repr, facts.vocabulary.templates))))
    if index.encoder:
        rows.append(("Encoder", f"{index.encoder}, {index.dimension:,} values"))
    taken = MATCHES[index.match].format(top_k=index.top_k, concepts=index.concepts)
    least = f", with a score of at least {index.min_score:g}" if index.min_score > -1 else ""
    rows.append(("Concepts of a sample", taken + least))
    if summary["search"]:
        rows.append(("Search", _search(index.search, summary["search"])))
    if index.image_hashes:
        rows.append(("Image hashes", f"{summary['hashes']:,}, of which {summary['hashes_nothing']:,} tell nothing"))
    rows.append(("Damaged samples", _damaged(summary)))
    if facts.drawn:
        rows += _selection(facts.drawn["settings"])
    return rows


def lineage(facts: ConceptFacts) -> list[Lineage]:
    """The steps that led here, each with what it was made from."""
    index, balance = facts.index, facts.balance
    made_from = {
        "corpus": "",
        "vocabulary": f"encoder {facts.vocabulary.encoder[:12]}" if facts.vocabulary else "",
        "concepts": f"corpus {index.corpus[:12]}, vocabulary {index.vocabulary[:12]}",
        "balance": f"corpus {balance.corpus[:12]}, concepts {balance.index[:12]}" if balance else "",
    }
    rows = []
    for step, title in STEPS.items():
        if record := facts.records.get(step):
            seconds = record["seconds"]
            took = duration(seconds) if seconds >= 1 else "< 1 s"
            fingerprint = record["summary"]["fingerprint"]
            rows.append(Lineage(title, str(facts.folders[step]), fingerprint, made_from[step], took))
    return rows


def _search(search: str, stats: dict[str, Any]) -> str:
    told = f"{search}, first pass in {stats['first_pass']}; {percent(stats['scored_fraction'], 3)} of "
    told += f"{stats['pairs']:,} pairs of sample and concept needed an exact score"
    if stats["whole"]:
        told += f", {stats['whole']:,} of {stats['queries']:,} samples one with more than half of the concepts"
    if stats["recall"] is not None:
        told += (
            f"; it found {percent(stats['recall'], 2)} of the concepts that an exact search found for "
            f"{stats['sampled']:,} samples"
        )
    return told


def _damaged(summary: dict[str, Any]) -> str:
    if not summary["damaged"]:
        return "none"
    first = "; ".join(summary["damage"])
    return f"{summary['damaged']:,}, without concepts; the first: {first}"


def _selection(values: dict[str, Any]) -> list[tuple[str, str]]:
    wanted = f"{values['samples']:,}" if values["samples"] else "all that are no duplicates"
    if values["weighting"] == "metaclip" and not values["samples"]:
        wanted = "each by a coin of its own, with its weight as the chance"
    similarity, bits = values["duplicate_similarity"], values["duplicate_bits"]
    same = [f"embeddings with a cosine of at least {similarity:g} that share their first concept"] if similarity else []
    same += [f"all image hashes differ by at most {bits} bits each"] if bits >= 0 else []
    return [
        ("Weight of a sample", FORMULAS[values["weighting"]].format(threshold=values.get("threshold", 0))),
        ("Drawn", f"{wanted}, seed {values['seed']}"),
        ("Quotas", ", ".join(values["quotas"]) or "none"),
        ("Duplicates", "; ".join(same) or "not looked for"),
    ]
