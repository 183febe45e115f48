"""Intervals hold the truth as often as they say, and are no narrower than what they are of."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.measure.judge import estimates

VALUES = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=40)


@given(VALUES, st.sampled_from([50.0, 90.0, 99.0]))
def test_a_quantile_lies_in_its_interval_and_both_were_recorded(values: list[float], percent: float) -> None:
    found = estimates.quantile(values, percent)
    assert found.low <= found.value <= found.high
    assert {found.low, found.value, found.high} <= set(values)


def test_nineteen_intervals_of_twenty_hold_the_quantile() -> None:
    random = np.random.default_rng(0)
    truth = math.log(100)  # of an exponential distribution, 99 %
    held = 0
    for _ in range(400):
        found = estimates.quantile(random.exponential(size=1000), 99.0)
        held += found.low <= truth <= found.high
    assert 0.93 <= held / 400 <= 0.99


def test_nineteen_intervals_of_twenty_hold_a_mean() -> None:
    random = np.random.default_rng(1)
    found = [estimates.mean(list(random.normal(10, 2, size=4))) for _ in range(400)]
    assert 0.92 <= sum(item.low <= 10 <= item.high for item in found) / 400 <= 0.98


@given(st.lists(st.floats(1, 1e5), min_size=2, max_size=12), st.floats(0.5, 2))
def test_a_ratio_that_is_the_same_in_every_round_is_certain(first: list[float], factor: float) -> None:
    found = estimates.ratio(first, [item * factor for item in first])
    assert found.value == pytest.approx(factor)
    assert found.low == pytest.approx(factor)
    assert found.high == pytest.approx(factor)


def test_one_value_has_no_interval_but_itself_and_a_rate_none_below_zero() -> None:
    assert estimates.mean([3.0]) == estimates.Estimate(value=3.0, low=3.0, high=3.0)
    assert estimates.throughput(5.0, []).low == 5.0
    found = estimates.throughput(100.0, [10.0, 100.0, 190.0])
    assert found.low == 0.0
    assert found.high > 190
