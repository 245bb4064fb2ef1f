"""What the concepts step says of its result: how many concepts samples have, what is damaged, what the search did."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import numpy as np

from onevision.concepts.index import ConceptPart
from onevision.concepts.matching import Matches
from onevision.concepts.search.stats import SearchStats

NAMED = 10  # damaged samples that are named
_COUNTS = [field.name for field in fields(SearchStats) if field.name != "first_pass"]


def part_facts(part: ConceptPart, damage: list[str], found: Matches) -> dict[str, Any]:
    """What is known of one part; `damage` has a line for each damaged sample."""
    return {
        "by_matches": np.bincount(part.matches, minlength=1).tolist(),
        "damaged": len(damage),
        "damage": damage[:NAMED],
        "hashes": len(part.image_hash),
        "hashes_nothing": int(np.count_nonzero(part.image_hash == 0)),
        "search": asdict(found.search) if found.search else None,
        "seconds": found.seconds,
    }


def summarise(known: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of all parts.

    samples, matches (of all), without (samples that have none), by_matches (how many samples have 0, 1, … concepts),
    damaged, damage (the first ones), hashes, hashes_nothing (that tell nothing), search (the counts of `SearchStats`,
    with the scored fraction and the recall; None in substring mode), seconds (of all ranks, by kind of work),
    embedded_per_second (of one rank; None in substring mode).
    """
    by_matches = np.zeros(max(len(facts["by_matches"]) for facts in known), np.int64)
    seconds: dict[str, float] = {}
    for facts in known:
        by_matches[: len(facts["by_matches"])] += facts["by_matches"]
        for name, value in facts["seconds"].items():
            seconds[name] = seconds.get(name, 0.0) + value
    samples = int(by_matches.sum())
    return {
        "samples": samples,
        "matches": int(by_matches @ np.arange(len(by_matches))),
        "without": int(by_matches[0]),
        "by_matches": by_matches.tolist(),
        **{name: sum(facts[name] for facts in known) for name in ("damaged", "hashes", "hashes_nothing")},
        "damage": [line for facts in known for line in facts["damage"]][:NAMED],
        "search": _search([facts["search"] for facts in known]),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "embedded_per_second": round(samples / seconds["encode"], 1) if seconds.get("encode") else None,
    }


def _search(parts: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    found = [SearchStats(**part) for part in parts if part]
    if not found:
        return None
    counts = {name: sum(getattr(one, name) for one in found) for name in _COUNTS}
    total = SearchStats(found[0].first_pass, **counts)
    return {**asdict(total), "scored_fraction": total.scored_fraction, "recall": total.recall}
