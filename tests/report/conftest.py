from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from onevision.report.results import PipelineFolders
from tests.report.pipeline import build_pipeline, folders


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> PipelineFolders:
    """A finished pipeline, to be read only."""
    return build_pipeline(tmp_path_factory.mktemp("pipeline") / "demo")


@pytest.fixture
def copied(finished: PipelineFolders, tmp_path: Path) -> PipelineFolders:
    """A copy of it, to be damaged."""
    root = tmp_path / "demo"
    shutil.copytree(finished.root, root)
    return folders(root)
