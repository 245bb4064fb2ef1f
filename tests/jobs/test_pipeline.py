"""What a pipeline finds done already."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.cluster import Work
from jobs.pipeline import Step, refuse_others
from onevision.errors import InputError
from onevision.files import write_json
from onevision.recipe import ModelRecipe, OptimizerRecipe, Recipe
from onevision.training.run import open_run


def done(name: str, recipe: Recipe) -> Step:
    """The step of a finished run, whose settings now are `recipe`."""
    return Step(Work(name, done, (), log_folder=Path(recipe.output) / "log"), Path(recipe.output), recipe=recipe)


def test_what_was_done_with_other_settings_is_not_taken_for_done(tmp_path: Path) -> None:
    recipe = Recipe(name="stage1", stage="stage1", output=str(tmp_path / "run"), model=ModelRecipe(preset="tiny"))
    open_run(recipe, {"packs": "1"})
    refuse_others([done("stage1", recipe)], {})
    other = Recipe(**{**vars(recipe), "optimizer": OptimizerRecipe(lr=0.5)})
    with pytest.raises(InputError, match=r"other settings: optimizer\.lr=0\.5"):
        refuse_others([done("stage1", other)], {})


def test_weights_that_were_drawn_are_not_those_to_import(tmp_path: Path) -> None:
    recipe = Recipe(name="stage0", stage="stage0", output=str(tmp_path), model=ModelRecipe(preset="tiny"))
    write_json(tmp_path / "step.json", {"step": "import"})
    refuse_others([done("import", recipe)], {"exported": "folder"})
    write_json(tmp_path / "step.json", {"step": "stage0"})
    refuse_others([done("init", recipe)], {})
    with pytest.raises(InputError, match="holds weights that were drawn"):
        refuse_others([done("import", recipe)], {"exported": "folder"})
