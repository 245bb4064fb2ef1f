"""The check against the published run, redone with a pocket calculator's steps."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from onevision.planning.by_hand import arithmetic, operations
from onevision.planning.hardware import GPUS, with_figures
from onevision.planning.published import check

FOUND = check(GPUS["a800"])


def test_days_by_hand() -> None:
    step = FOUND.prediction.seconds
    assert FOUND.days == pytest.approx(85e6 / 9.4 / 128 * step / 86400)
    assert FOUND.error == pytest.approx(math.sqrt(sum(effect**2 for effect in FOUND.causes.values())))
    assert FOUND.packs.samples * FOUND.packs.sample_tokens * 85e6 / 9.4 == pytest.approx(64e9)


def test_the_published_days_lie_within_an_error_that_means_something() -> None:
    assert FOUND.reproduced
    assert FOUND.error < 0.25


def test_the_readme_says_what_the_check_says() -> None:
    text = " ".join(Path("README.md").read_text(encoding="utf-8").split())
    assert f"the model says {FOUND.days:.1f} days, with an error of {100 * FOUND.error:.0f} %" in text


def test_it_fits_where_it_ran() -> None:
    assert FOUND.prediction.memory.total < GPUS["a800"].memory.value * 1e9


def test_a_wrong_model_does_not_reproduce_them() -> None:
    assert not check(with_figures(GPUS["a800"], {"peak": 989.0}, "test")).reproduced
    assert not check(with_figures(GPUS["a800"], {"network": 5.0}, "test")).reproduced


def test_the_operations_that_are_shown_are_those_that_are_timed() -> None:
    shown = {
        line.partition(":")[0]: float(line.rpartition("= ")[2]) for line in operations(FOUND) if line[-1].isdigit()
    }
    timed = {term.what: term.amount * term.times for term in FOUND.prediction.terms}
    assert shown["layers"] == pytest.approx(timed["language layers"], rel=1e-3)
    assert shown["head"] == pytest.approx(timed["head"], rel=1e-3)
    assert shown["attention"] == pytest.approx(timed["attention of language"], rel=1e-3)
    assert shown["attention of vision"] == pytest.approx(timed["attention of vision"], rel=1e-3)
    vision = shown["vision"] + shown["adapter"] + shown["patch embedding"]
    assert vision == pytest.approx(timed["vision and adapter"], rel=1e-3)


def test_every_product_that_is_shown_is_right() -> None:
    """`a x b x c / (d x e) = f` in the lines of seconds, computed anew from the text."""
    redone = 0
    for line in arithmetic(FOUND):
        found = re.search(r": ([\d.e+]+) (?:FLOP|B) / \(([^)]*)\) = ([\d.]+) s$", line)
        if found:
            rate = math.prod(float(number) for number in found[2].split(" x "))
            assert float(found[1]) / rate == pytest.approx(float(found[3]), abs=2e-4), line
            redone += 1
    assert redone == len(FOUND.prediction.terms)
