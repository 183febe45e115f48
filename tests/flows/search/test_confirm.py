"""What samples that chose nothing decide: whether a choice holds, and which is asked next."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.flows.search.accuracy import CALMER
from repo_builder.flows.search.confirm import Step, holds, reach, steps
from repo_builder.flows.search.looks import drop

SIDES = st.integers(0, 60)
COUNT = st.integers(200, 20000)


@given(SIDES, SIDES, COUNT, st.floats(0, 3))
def test_what_holds_keeps_the_limit_with_all_the_margin_that_the_limit_has_room_for(
    lost: int, won: int, count: int, limit: float
) -> None:
    found = drop(lost, won, count, labelled=True)
    sure = found.points + reach(found) <= limit
    assert holds(found, limit) == (sure or found.points <= 1e-9)
    if holds(found, limit):
        assert found.points <= limit + 1e-9
        assert lost == 0 or holds(drop(lost - 1, won, count, labelled=True), limit)


@given(SIDES, SIDES, COUNT)
def test_the_margin_is_never_less_than_what_no_change_at_all_leaves_open(lost: int, won: int, count: int) -> None:
    assert reach(drop(lost, won, count, labelled=True)) >= reach(drop(0, 0, count, labelled=True)) - 1e-9


@pytest.mark.parametrize("changed", [0.01, 0.07])
def test_a_choice_that_loses_twice_the_limit_seldom_holds_and_one_that_loses_nothing_often_does(changed: float) -> None:
    count, limit, chance = 3000, 0.3, np.random.default_rng(0)

    def share(points: float) -> float:
        sides = [(changed + sign * points / 100) / 2 for sign in (1, -1)]
        drawn = chance.multinomial(count, [*sides, 1 - sum(sides)], 400)
        return float(np.mean([holds(drop(int(a), int(b), count, labelled=True), limit) for a, b, _ in drawn]))

    assert share(2 * limit) < 0.15
    assert share(0.0) > 0.4


CANDIDATES = st.lists(
    st.tuples(st.builds(Step, gain=st.floats(0.5, 4), noise=st.floats(1e-9, 10)), st.booleans()), max_size=20
)


@given(CANDIDATES)
def test_the_fastest_that_holds_is_taken_and_each_step_is_calmer_and_no_faster(
    drawn: list[tuple[Step, bool]],
) -> None:
    rows, said, order = [item for item, _ in drawn], [holding for _, holding in drawn], list[int]()

    def asked(at: int) -> bool:
        order.append(at)
        return said[at]

    found = steps(rows, asked)
    assert len(set(order)) == len(order)
    for before, after in itertools.pairwise(order):
        assert rows[after].gain <= rows[before].gain
        assert rows[after].noise < CALMER * rows[before].noise
    if found is None:
        quietest = min((item.noise for item in rows), default=0.0)
        assert not rows or min(rows[at].noise for at in order) * CALMER <= quietest
        assert not any(said[at] for at in order)
    else:
        assert order[-1] == found
        assert [said[at] for at in order] == [*[False] * (len(order) - 1), True]
        failed = [rows[at].noise for at in order[:-1]]
        calm = [at for at, item in enumerate(rows) if all(item.noise < CALMER * noise for noise in failed)]
        assert rows[found].gain == max(rows[at].gain for at in calm)


def test_with_what_is_exact_at_the_end_something_is_always_taken() -> None:
    rows = [Step(gain=2.0, noise=0.1), Step(gain=1.5, noise=0.05), Step(gain=1.0, noise=0.0)]
    assert steps(rows, lambda at: at == 2) == 2
    assert steps([], lambda _: True) is None
