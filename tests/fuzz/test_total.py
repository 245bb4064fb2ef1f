"""How many generated inputs there were, and how they ended. It is the last test of its folder."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fuzz import harness, test_checkpoints, test_hdf5, test_images, test_recipes, test_records, test_tars

MODULES = (test_checkpoints, test_hdf5, test_images, test_records, test_recipes, test_tars)
CAMPAIGNS = {
    f"{module.__name__}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if hasattr(value, "examples") and getattr(value, "__module__", "") == module.__name__
}
ERRORS = {"InputError", "DataError", "ImageError"}
OTHERS = {"accepted", "help", "exit code 2", "no Parquet"}


def test_a_thousand_bad_inputs_end_well(request: pytest.FixtureRequest) -> None:
    for name, counts in sorted(harness.ENDED.items()):
        print(f"{sum(counts.values()):5} {name.removeprefix('tests.fuzz.test_'):32} {dict(counts.most_common())}")
    ended: Counter[str] = sum(harness.ENDED.values(), Counter())
    print(f"{sum(ended.values()):5} in all: {dict(ended.most_common())}")
    assert set(ended) <= ERRORS | OTHERS
    assert sum(campaign.examples for campaign in CAMPAIGNS.values()) >= 1000
    asked = {item.path.stem for item in request.session.items if item.path.parent.name == "fuzz"}
    if {module.__name__.rpartition(".")[2] for module in MODULES} <= asked:  # all, and not some by name
        assert set(harness.ENDED) == set(CAMPAIGNS), "a campaign did not come to its end"
        assert sum(ended.values()) - ended["no Parquet"] >= 1000
