"""One test a campaign, and the last one counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import harness


@pytest.fixture
def fuzz(tmp_path: Path, pytestconfig: pytest.Config) -> Callable[[Callable[..., None]], Counter[str]]:
    """Run a campaign: all inputs that it promises have ended well. Returns how many ended in which way."""

    def run(function: Callable[..., None]) -> Counter[str]:
        counts = harness.run(function, tmp_path, pytestconfig.getoption("--fuzz-times"))
        name = f"{function.__module__}.{function.__name__}"
        assert sum(harness.ENDED[name].values()) >= function.examples  # type: ignore[attr-defined]
        return counts

    return run
