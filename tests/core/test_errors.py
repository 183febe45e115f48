from __future__ import annotations

import re

import pytest

from repo_builder.core import errors


def branches() -> list[type[errors.RepoBuilderError]]:
    return list(errors.RepoBuilderError.__subclasses__())


def test_every_branch_has_its_own_exit_code() -> None:
    codes = [branch.exit_code for branch in branches()]
    assert len(set(codes)) == len(codes)
    assert 2 not in codes  # click's own


def test_the_docstring_draws_the_tree_that_is_there() -> None:
    drawn = dict(re.findall(r"[├└]── (\w+)\s+(\d+)", errors.__doc__ or ""))
    assert {name: int(code) for name, code in drawn.items()} == {item.__name__: item.exit_code for item in branches()}


def test_a_message_says_where_and_what_next() -> None:
    error = errors.RecipeError("unknown key 'foo'", where="model.foo", hint="did you mean 'source'?")
    assert str(error) == "model.foo: unknown key 'foo' → did you mean 'source'?"


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("vg", ["vgg", "jsc"], "did you mean 'vgg'?"),
        ("zzz", ["vgg", "jsc"], "there are: jsc, vgg"),
        ("zzz", [], "there are none"),
        ("zzz", [f"name{i}" for i in range(20)], "and 8 more"),
    ],
)
def test_did_you_mean(word: str, known: list[str], expected: str) -> None:
    assert expected in errors.did_you_mean(word, known)
