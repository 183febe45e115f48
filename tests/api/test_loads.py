"""Loads as Python's values: the grid of all that is asked for, and how long each takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.api import loads
from repo_builder.core.errors import MeasureError

NOTHING: dict[str, Any] = dict.fromkeys(("concurrency", "batch_size", "request_rate", "max_p99_ms", "shapes"))
NOTHING |= {"poisson": False, "shared_memory": "none"}


def test_what_is_not_asked_for_is_left_to_the_recipe() -> None:
    assert loads.levels(**NOTHING) == ()
    (one,) = loads.levels(**NOTHING | {"shapes": {"ids": (128,)}})
    assert (one.concurrency, one.batch_size, one.shapes) == (1, 1, {"ids": (128,)})


counts = st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True)


@given(counts, counts)
def test_every_combination_is_a_level_once(lines: list[int], sizes: list[int]) -> None:
    found = loads.levels(**NOTHING | {"concurrency": lines, "batch_size": sizes})
    assert {(item.concurrency, item.batch_size) for item in found} == {(a, b) for a in lines for b in sizes}
    assert len(found) == len(lines) * len(sizes)
    assert {item.mode for item in found} == {"concurrency"}


@pytest.mark.parametrize(("poisson", "mode"), [(False, "rate"), (True, "poisson")])
def test_rates_are_open_loops(poisson: bool, mode: str) -> None:
    found = loads.levels(**NOTHING | {"request_rate": (2.5, 100), "poisson": poisson})
    assert [(item.mode, item.request_rate) for item in found] == [(mode, 2.5), (mode, 100.0)]


def test_one_end_is_taken_and_two_are_refused() -> None:
    assert loads.pace(None, None) != loads.pace(2.0, None) != loads.pace(None, 7)
    with pytest.raises(MeasureError, match="different ends"):
        loads.pace(2.0, 7)
    with pytest.raises(MeasureError, match="whole"):
        loads.pace(None, 1.5)  # type: ignore[arg-type]
