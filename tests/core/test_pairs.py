from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core.pairs import paired


def test_the_interval_is_of_the_turns_ratios_and_one_disturbed_turn_hardly_moves_it() -> None:
    quiet = paired(8, [2.0, 2.1, 1.9, 2.0, 2.05, 1.95, 2.0, 2.0, 2.0, 2.0], [1.0] * 10)
    assert quiet.batch_size == 8
    assert quiet.speedup == pytest.approx(2.0)
    assert quiet.verdict == "faster"
    disturbed = paired(8, [2.0, 2.1, 1.9, 2.0, 2.05, 1.95, 2.0, 2.0, 2.0, 50.0], [1.0] * 10)
    assert disturbed.high is not None
    assert disturbed.high < 2.2


def test_what_the_interval_does_not_tell_apart_is_alike() -> None:
    assert paired(1, [1.0, 1.1, 0.9, 1.05, 0.95, 1.0, 1.02, 0.98], [1.0] * 8).verdict == "alike"
    assert paired(1, [0.5] * 8, [1.0] * 8).verdict == "slower"


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(*[st.lists(st.floats(1e-6, 1.0), min_size=n, max_size=n)] * 2)))
def test_the_interval_holds_the_figure_that_is_shown(times: tuple[list[float], list[float]]) -> None:
    row = paired(1, *times)
    assert row.low is not None
    assert row.high is not None
    assert row.low <= row.speedup <= row.high
