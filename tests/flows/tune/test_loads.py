"""The next load follows from those before, and a trial is worth what its best load within the limit has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.flows.tune.loads import Terms, next_line, saturated
from repo_builder.results.tuning import Estimate, Settings, TrialLevel


def at(concurrency: int, rate: float, p99_us: float, **more: Any) -> TrialLevel:
    exact = [Estimate(value=value, low=value, high=value) for value in (rate, p99_us / 2, p99_us)]
    made = TrialLevel(
        concurrency=concurrency, batch_size=1, requests=100, whole=True, infer_per_s=exact[0], p50_us=exact[1],
        p99_us=exact[2], mean_us=p99_us / 2,
    )  # fmt: skip
    return replace(made, **more)


LINES = Terms(objective="throughput", max_p99_us=10_000.0, batch_size=1, ladder=(1, 2, 4, 8, 16, 32), cores=2)


@pytest.mark.parametrize(
    ("levels", "line"),
    [
        ([at(8, 100, 2000)], 16),
        ([at(8, 100, 8000)], None),  # twice as many would be over the limit
        ([at(8, 100, 40_000)], 2),
        ([at(1, 100, 40_000)], None),
        ([at(4, 100, 2000), at(8, 101, 4000)], None),  # no gain
        ([at(4, 100, 2000), at(8, 150, 4000)], 16),
        ([at(4, 100, 4000), at(16, 150, 30_000)], 8),
        ([at(4, 100, 4000), at(8, 150, 30_000)], None),
        ([at(8, 100, 2000, whole=False)], None),
        ([at(8, 100, 2000, mean_batch=8.0, queue_us=900.0, compute_us=500.0)], None),
    ],
)
def test_the_next_load_follows_from_those_before(levels: list[TrialLevel], line: int | None) -> None:
    assert next_line(levels, Settings(max_batch_size=8), LINES) == line


@given(st.lists(st.tuples(st.sampled_from(LINES.ladder), st.floats(1, 1e5), st.floats(1, 1e6)), min_size=1, max_size=6))
def test_a_load_is_never_measured_twice_and_stays_between_what_holds_and_what_does_not(
    rows: list[tuple[int, float, float]],
) -> None:
    levels = [at(*row) for row in {row[0]: row for row in rows}.values()]
    found = next_line(levels, Settings(max_batch_size=8), LINES)
    assert found is None or found not in {item.concurrency for item in levels}
    held = [item.concurrency for item in levels if item.within(LINES.max_p99_us)]
    if found is not None and held:
        assert found > max(held)


def test_saturated_is_full_batches_that_wait_longer_than_they_run() -> None:
    full = at(8, 100, 2000, mean_batch=8.0, queue_us=900.0, compute_us=500.0)
    assert saturated(full, Settings(max_batch_size=8))
    assert not saturated(full, Settings(max_batch_size=64))
    assert not saturated(replace(full, queue_us=None), Settings(max_batch_size=8))
