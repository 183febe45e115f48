"""Recipe files: the built-in ones in this folder, a user's from a path, and ``--set`` on top of either."""

from __future__ import annotations

from collections.abc import Iterable

from repo_builder.core.recipe import Recipe
from repo_builder.core.recipe.reading import built_in

__all__ = ["built_in", "change", "load"]


def load(source: str, settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe by a built-in's name or a file's path, with settings applied on top; see ``Recipe.load``."""
    return Recipe.load(source, settings)


def change(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """Return a recipe with ``key.path=value`` items applied; see ``Recipe.changed``."""
    return recipe.changed(settings)
