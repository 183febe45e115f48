from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from repo_builder.measure.judge import accuracy, baseline
from repo_builder.measure.judge.statistics import summarise
from repo_builder.results import Level, LevelResult, PerfRun, ServerInfo


@given(st.integers(0, 80), st.integers(0, 80))
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int) -> None:
    expected = scipy_stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert baseline.mcnemar(lost, won) == pytest.approx(expected, abs=1e-9)


def test_mcnemar_of_many_pairs_goes_over_smoothly() -> None:
    exact = scipy_stats.binomtest(560, 1100).pvalue
    assert baseline.mcnemar(560, 540) == pytest.approx(exact, rel=0.01)


def test_bootstrap_interval_holds_the_truth_and_narrows() -> None:
    generator = np.random.default_rng(1)
    before = generator.lognormal(0, 0.3, 2000)
    wide = baseline.ratio_interval(before[:200], before[200:400] * 1.2, 50)
    narrow = baseline.ratio_interval(before[:1000], before[1000:] * 1.2, 50)
    assert narrow[1] <= 1.2 <= narrow[2]
    assert narrow[2] - narrow[1] < wide[2] - wide[1]
    assert narrow[1] <= narrow[0] <= narrow[2]


def test_dependent_latencies_widen_the_interval() -> None:
    generator = np.random.default_rng(2)
    steps = generator.lognormal(0, 0.3, 50).repeat(40)  # the same values in slow waves
    mixed = generator.permutation(steps)
    waves, shuffled = (baseline.ratio_interval(item, item, 50) for item in (steps, mixed))
    assert waves[2] - waves[1] > 1.5 * (shuffled[2] - shuffled[1])


def run(*, right: str, latencies: np.ndarray, fingerprint: str = "a") -> PerfRun:
    labels = np.zeros(len(right), dtype=np.int64)
    logits = np.array([[1.0, 0.0] if item == "1" else [0.0, 1.0] for item in right])
    level = LevelResult(
        level=Level(concurrency=4),
        stable=True,
        windows=(),
        merged=3,
        seconds=3,
        requests=len(latencies),
        errors=0,
        requests_per_s=100,
        infer_per_s=100,
        latency=summarise(latencies * 1000),
        latency_sample_us=tuple(latencies.tolist()),
    )
    return PerfRun(
        model="m",
        model_version="1",
        backend="b",
        server=ServerInfo(url="u", protocol="grpc", name="triton", version="1"),
        date="2024-01-01",
        data_fingerprint=fingerprint,
        accuracy=accuracy.score(logits, labels),
        levels=(level,),
    )


LATENCIES = np.random.default_rng(0).lognormal(6, 0.2, 2000)


def compared(before: PerfRun, after: PerfRun) -> list[str]:
    found = baseline.compare(before, after, accuracy_tolerance=0.01, latency_tolerance=0.1)
    return [item.what for item in found.worse]


def test_the_same_run_is_not_worse() -> None:
    one = run(right="1110" * 50, latencies=LATENCIES)
    found = baseline.compare(one, one, accuracy_tolerance=0.01, latency_tolerance=0.1)
    assert [item.what for item in found.findings] == [
        "top-1",
        "p50 at concurrency 4 × batch 1",
        "p99 at concurrency 4 × batch 1",
    ]
    assert not found.worse


def test_lost_samples_are_a_regression_and_an_even_exchange_is_not() -> None:
    before = run(right="1" * 180 + "0" * 20, latencies=LATENCIES)
    lost = run(right="1" * 165 + "0" * 35, latencies=LATENCIES)
    swapped = run(right="0" * 10 + "1" * 180 + "0" * 10, latencies=LATENCIES)
    assert compared(before, lost) == ["top-1"]
    assert compared(before, swapped) == []
    assert compared(lost, before) == []


def test_a_fall_within_chance_is_no_regression() -> None:
    before = run(right="1" * 190 + "0" * 10, latencies=LATENCIES)
    few = run(right="1" * 187 + "0" * 13, latencies=LATENCIES)
    assert compared(before, few) == []


def test_slower_by_more_than_the_tolerance_is_a_regression() -> None:
    before = run(right="1" * 100, latencies=LATENCIES)
    assert len(compared(before, run(right="1" * 100, latencies=LATENCIES * 1.3))) == 2
    assert compared(before, run(right="1" * 100, latencies=LATENCIES * 1.05)) == []
    assert compared(before, run(right="1" * 100, latencies=LATENCIES * 0.5)) == []


@pytest.mark.parametrize("change", [{"errors": 1}, {"refused": 1}, {"stopped": "gone"}, {"requests": 0}])
def test_levels_that_are_not_of_the_model_alone_are_not_compared(change: dict[str, object]) -> None:
    before = dataclasses.replace(run(right="1" * 100, latencies=LATENCIES), accuracy=None)
    broken = dataclasses.replace(before, levels=(dataclasses.replace(before.levels[0], **change),))  # type: ignore[arg-type]
    for old, new in ((before, broken), (broken, before)):
        found = baseline.compare(old, new, accuracy_tolerance=0.01, latency_tolerance=0.1)
        assert found.findings == ()
        assert "nothing could be compared" in found.notes[-1]


def test_other_samples_are_compared_by_interval_and_said_so() -> None:
    before = run(right="1" * 190 + "0" * 10, latencies=LATENCIES)
    after = run(right="1" * 120 + "0" * 80, latencies=LATENCIES, fingerprint="b")
    found = baseline.compare(before, after, accuracy_tolerance=0.01, latency_tolerance=0.1)
    assert [item.what for item in found.worse] == ["top-1"]
    assert "not those of the baseline" in found.notes[0]


def test_what_cannot_be_compared_is_named() -> None:
    one = run(right="1" * 20, latencies=LATENCIES)
    other = dataclasses.replace(
        one, accuracy=None, levels=(dataclasses.replace(one.levels[0], level=Level(concurrency=9)),)
    )
    found = baseline.compare(one, other, accuracy_tolerance=0.01, latency_tolerance=0.1)
    assert not found.findings
    assert any("concurrency 9" in note for note in found.notes)
    assert any("one of the two runs has none" in note for note in found.notes)
