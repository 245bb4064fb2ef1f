"""The corpus fixture of the training tests serves evaluation too."""

from tests.training.conftest import data_values, make_recipe, recipe_values

__all__ = ["data_values", "make_recipe", "recipe_values"]
