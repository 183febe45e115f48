from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

from repo_builder.core.bounds import Bound, shown
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import Recipe


@pytest.mark.parametrize(
    ("bound", "value", "told"),
    [
        (Bound(ge=1), 0, "0 must be at least 1"),
        (Bound(ge=0), -1, "-1 must not be negative"),
        (Bound(gt=0), 0.0, "0.0 must be above 0"),
        (Bound(ge=1, le=2**31), 2**31 + 1, "2147483649 must be at most 2147483648"),
        (Bound(lt=1), 1.5, "1.5 must be below 1"),
        (Bound(ge=13, le=21, must="is not in 13 to 21"), 9, "9 is not in 13 to 21"),
        (Bound(nonempty=True), (), "() must not be empty"),
        (Bound(nonempty=True, says="there is no input"), (), "there is no input"),
        (Bound(pattern="[a-z]+"), "a1", "'a1' is not of the form [a-z]+"),
        (Bound(most_bytes=3), "\u00e9\u00e9", "is longer than 3 bytes"),
    ],
)
def test_what_breaks_a_bound_is_said(bound: Bound, value: Any, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        bound.check(value, "a.b")
    assert caught.value.where == "a.b"
    assert told in caught.value.message


def test_what_is_within_is_taken() -> None:
    Bound(ge=1, le=3, gt=0, lt=4).check(3, "")
    Bound(pattern="a.*", most_bytes=3).check("abc", "")


def test_any_value_is_shown_in_a_few_words() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    for value in (10**5000, -(10**5000), [10**5000], deep, "x" * 500, [[1] * 100], 3, "a", None, 0.5):
        assert 0 < len(shown(value)) <= 82


def leaves(kind: Any, bounded: bool, path: str) -> Iterator[tuple[str, Any, bool]]:
    """Every scalar that a recipe may hold, with whether a bound stands at it."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        yield from leaves(arguments[0], any(isinstance(item, Bound) for item in arguments[1:]), path)
    elif origin in (typing.Union, types.UnionType, tuple, list, dict):
        for item in arguments:
            if item not in (Ellipsis, type(None)):
                yield from leaves(item, bounded if origin in (typing.Union, types.UnionType) else False, path)
    elif dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        for item in dataclasses.fields(kind):
            yield from leaves(hints[item.name], False, f"{path}.{item.name}")
    else:
        yield path, kind, bounded


def test_every_number_of_a_recipe_has_a_bound() -> None:
    found = list(leaves(Recipe, False, ""))
    assert len(found) > 40
    assert [path for path, kind, bounded in found if kind in (int, float) and not bounded] == []
