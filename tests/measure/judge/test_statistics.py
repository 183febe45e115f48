from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.measure.judge import statistics

VALUES = st.lists(st.integers(0, 10**9), min_size=1, max_size=300)


@given(VALUES, st.sampled_from(statistics.PERCENTILES))
def test_percentile_is_the_smallest_recorded_value_that_covers_the_share(values: list[int], percent: float) -> None:
    ordered = np.sort(np.array(values, dtype=np.float64))
    found = statistics.percentile(ordered, percent)
    assert found in ordered
    assert (ordered <= found).mean() * 100 >= percent - 1e-9
    below = ordered[ordered < found]
    assert len(below) / len(ordered) * 100 < percent


def test_percentile_of_round_counts_is_not_off_by_one() -> None:
    ordered = np.arange(1, 1001, dtype=np.float64)
    assert [statistics.percentile(ordered, item) for item in statistics.PERCENTILES] == [500, 900, 950, 990, 999]


@given(VALUES)
def test_summary_is_in_order_and_in_microseconds(values: list[int]) -> None:
    found = statistics.summarise(np.array(values))
    assert found is not None
    assert found.samples == len(values)
    assert found.mean_us == pytest.approx(np.mean(values) / 1000)
    levels = [found.p50_us, found.p90_us, found.p95_us, found.p99_us, found.p999_us, found.max_us]
    assert levels == sorted(levels)
    assert found.max_us == max(values) / 1000
    assert [found.percentile_us(item) for item in statistics.PERCENTILES] == levels[:5]


def test_no_latencies_have_no_summary() -> None:
    assert statistics.summarise(np.zeros(0)) is None


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_encloses_the_share_and_solves_its_equation(case: tuple[int, int]) -> None:
    successes, samples = case
    low, high = statistics.wilson(successes, samples)
    share = successes / samples
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        # the interval's ends are where the score statistic equals z
        if 0 < end < 1 and not math.isclose(end, share):
            assert abs(share - end) / math.sqrt(end * (1 - end) / samples) == pytest.approx(statistics.Z95, rel=1e-6)


def test_wilson_of_a_published_example() -> None:
    # 15 of 50, 95 %: 0.191 to 0.438 (Brown, Cai, DasGupta 2001 use this form)
    assert statistics.wilson(15, 50) == pytest.approx((0.1910, 0.4375), abs=1e-4)


def test_spread_is_relative_to_the_mean() -> None:
    assert statistics.spread([9, 10, 11]) == pytest.approx(0.1)
    assert statistics.spread([0, 0]) == math.inf
