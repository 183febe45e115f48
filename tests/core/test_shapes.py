"""One rule for a model's sizes against config.pbtxt's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core import shapes

_sizes = st.lists(st.integers(-1, 4), max_size=4)


def test_names_and_unknown_sizes_vary() -> None:
    assert shapes.stated(["N", None, 3, 0, -5]) == (-1, -1, 3, 0, -1)


@pytest.mark.parametrize(
    ("dims", "model", "batched", "like", "exactly"),
    [
        ([4], [-1, 4], True, True, True),
        ([4], [2, 4], True, False, False),
        ([-1], [-1, 4], True, False, False),
        ([4], [-1, -1], True, True, False),
        ([-1], [-1, -1], True, True, True),
        ([-1, 4], [-1, 4], False, True, True),
        ([4], [-1, 4], False, False, False),
        ([1], [], False, True, True),
        ([1, 1], [], False, True, True),
        ([2], [], False, False, False),
        ([1], [], True, False, False),
        ([-1], [0], False, True, False),
        ([3], [0], False, False, False),
    ],
)
def test_dims_against_a_model(dims: list[int], model: list[int], batched: bool, like: bool, exactly: bool) -> None:
    assert shapes.unlike(dims, model, batched=batched, exact=False) is not like
    assert shapes.unlike(dims, model, batched=batched, exact=True) is not exactly


@given(_sizes, _sizes, st.booleans())
def test_what_is_exactly_alike_is_alike(dims: list[int], model: list[int], batched: bool) -> None:
    if not shapes.unlike(dims, model, batched=batched, exact=True):
        assert not shapes.unlike(dims, model, batched=batched, exact=False)


@given(_sizes.filter(lambda sizes: 0 not in sizes), st.booleans())
def test_what_the_model_states_is_alike_in_every_server(model: list[int], batched: bool) -> None:
    if batched:
        assert not shapes.unlike(model, [-1, *model], batched=True, exact=True)
    elif model:
        assert not shapes.unlike(model, model, batched=False, exact=True)
