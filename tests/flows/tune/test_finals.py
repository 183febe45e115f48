"""Who comes into the end, in which turns, who wins, and what a comparison may claim."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repo_builder.core.errors import MeasureError
from repo_builder.flows.tune import finals
from repo_builder.flows.tune.search import Terms
from repo_builder.results.tuning import Estimate, Finalist, Settings, Trial, TrialLevel

TERMS = Terms(objective="throughput", max_p99_us=10_000.0, batch_size=1, ladder=(1, 2, 4), cores=2)


def level(rate: float, p99_us: float = 5000.0) -> TrialLevel:
    exact = [Estimate(value=value, low=value, high=value) for value in (rate, p99_us)]
    return TrialLevel(
        concurrency=4, batch_size=1, requests=9, whole=True, infer_per_s=exact[0], p50_us=exact[1], p99_us=exact[1],
        mean_us=1.0,
    )  # fmt: skip


def trial(number: int, rate: float, **more: object) -> Trial:
    return replace(
        Trial(number=number, settings=Settings(instances=number, max_batch_size=8), levels=(level(rate),)), **more
    )


def finalist(*rates: float, p99_us: float = 5000.0, **more: object) -> Finalist:
    made = Finalist(
        settings=Settings(max_batch_size=8), concurrency=4, infer_per_s=rates, p99_us=(p99_us,) * len(rates)
    )
    return replace(made, **more)


class Rig:
    """Answers 100 a second for each instance; one with three fails."""

    def __init__(self, seconds: float = 1e9) -> None:
        self.order: list[int] = []
        self._left = seconds

    def load(self, settings: Settings) -> None:
        self.order.append(settings.instances)
        if settings.instances == 3:
            raise MeasureError("no")

    def level(self, concurrency: int) -> TrialLevel:
        self._left -= 1
        return level(100.0 * self.order[-1])

    def revive(self) -> None: ...

    def left_s(self) -> float:
        return self._left


def test_the_best_three_come_in_and_the_present_one_whatever_it_does() -> None:
    trials = [trial(number, 100.0 * number) for number in range(1, 6)]
    trials += [trial(6, 900.0, levels=(level(900.0, p99_us=20_000.0),)), trial(7, 950.0, state="failed")]
    found = finals.entries(trials, TERMS, trials[0].settings)
    assert [item.settings.instances for item in found] == [5, 4, 3, 1]
    assert [item.present for item in found] == [False, False, False, True]


def test_rounds_turn_and_what_fails_is_out() -> None:
    contest = [finals.Entry(settings=Settings(instances=number), level=level(1.0)) for number in (1, 2, 3)]
    rig = Rig()
    found = finals.in_turns(rig, contest, 3, 1.0)
    assert rig.order == [1, 2, 3, 2, 1, 1, 2]
    assert [(item.settings.instances, item.infer_per_s) for item in found] == [(1, (100.0,) * 3), (2, (200.0,) * 3)]


def test_two_rounds_are_made_though_the_budget_is_used_up() -> None:
    contest = [finals.Entry(settings=Settings(instances=number), level=level(1.0)) for number in (1, 2)]
    found = finals.in_turns(Rig(seconds=0.0), contest, 5, 1.0)
    assert [len(item.infer_per_s) for item in found] == [2, 2]


def test_the_highest_median_under_the_limit_wins() -> None:
    slow, fast = finalist(90, 100, 500), finalist(110, 120, 130)
    assert finals.winner([slow, fast], TERMS) == fast
    assert finals.winner([slow, finalist(900, 900, p99_us=11_000.0)], TERMS) == slow
    assert finals.winner([finalist(900, p99_us=11_000.0)], TERMS) is None


@pytest.mark.parametrize(
    ("second", "kept"), [((110, 111, 109, 110), True), ((100, 120, 80, 101), False), ((90, 91, 90, 89), False)]
)
def test_what_no_round_can_tell_is_not_kept(second: tuple[float, ...], kept: bool) -> None:
    found = finals.compare("x", finalist(100, 101, 99, 100), finalist(*second), TERMS)
    assert found.kept is kept
    assert found.ratio.low <= found.ratio.value <= found.ratio.high
    assert found.rounds == 4


def test_preferred_sizes_are_those_that_stand_there_or_parts_of_the_largest_batch() -> None:
    present = Settings(max_batch_size=64, preferred_batch_sizes=(8, 64))
    assert finals.with_preferred(Settings(max_batch_size=32), present) == Settings(
        max_batch_size=32, preferred_batch_sizes=(8,)
    )
    plain = finals.with_preferred(Settings(max_batch_size=32), Settings())
    assert plain is not None
    assert plain.preferred_batch_sizes == (8, 16, 32)
    assert finals.with_preferred(Settings(max_batch_size=1), present) is None
    assert finals.with_preferred(present, present) is None
