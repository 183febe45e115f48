"""Two runs of one model compared: accuracy on the same samples, latency with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from repo_builder.core.tensors import Array
from repo_builder.measure.judge.statistics import percentile
from repo_builder.results import Comparison, LevelResult, PerfRun, Regression

_RESAMPLES = 400
_LEAST = 20
ROUNDING = 1e-9  # a fall of exactly the tolerance is accepted


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (binomial with p = 1/2 on the discordant pairs).

    Args:
        lost: Samples that only the first classified right.
        won: Samples that only the second did.
    """
    total = lost + won
    if not total:
        return 1.0
    low = min(lost, won)
    if total > 1000:  # the normal approximation with continuity correction is good to three digits here
        return math.erfc(max(0.0, (abs(lost - won) - 1) / math.sqrt(total)) / math.sqrt(2))
    tail: float = sum(math.comb(total, count) for count in range(low + 1)) / 2**total
    return min(1.0, 2 * tail)


def ratio_interval(
    before: Sequence[float], after: Sequence[float], percent: float, *, seed: int = 0
) -> tuple[float, float, float]:
    """Return the ratio after / before of a latency percentile, and its 95 % bootstrap interval.

    Neighbouring latencies depend on each other, so that blocks are resampled and not single values (Künsch 1989).

    Args:
        before: Latencies in the order of completion, ``n ≥ 1``.
        after: The same of the other run.
        percent: The percentile.
        seed: Seed of the resampling.
    """
    generator = np.random.default_rng(seed)
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    point = percentile(np.sort(new), percent) / percentile(np.sort(old), percent)
    olds, news = (_resampled(values, percent, generator) for values in (old, new))
    low, high = np.quantile(news / olds, [0.025, 0.975])
    return point, float(min(low, point)), float(max(high, point))


def _resampled(values: Array, percent: float, generator: np.random.Generator) -> Array:
    """Return the percentile of each of many moving-block resamples."""
    count = len(values)
    block = max(1, round(count ** (1 / 3)))
    starts = generator.integers(0, max(1, count - block + 1), size=(_RESAMPLES, -(-count // block)))
    picks = (starts[:, :, None] + np.arange(block)).reshape(_RESAMPLES, -1)[:, :count] % count
    ordered = np.sort(values[picks], axis=1)
    return np.array([percentile(row, percent) for row in ordered])


def compare(
    before: PerfRun, after: PerfRun, *, accuracy_tolerance: float, latency_tolerance: float, seed: int = 0
) -> Comparison:
    """Compare a run with a baseline.

    Accuracy has regressed when top-1 fell by more than the tolerance, and McNemar's test on the same samples finds it
    beyond chance (p < 0.05); where the samples are not the same, when it fell below the baseline's interval too.
    Latency has regressed when the whole interval of the ratio lies beyond the tolerance.

    Args:
        before: The baseline.
        after: The run.
        accuracy_tolerance: Fall of top-1 that is accepted, as a fraction.
        latency_tolerance: Rise of p50 or p99 that is accepted, as a fraction.
        seed: Seed of the resampling.
    """
    found: list[Regression] = []
    notes: list[str] = []
    _compare_accuracy(before, after, accuracy_tolerance, found, notes)
    old_levels = {_key(item): item for item in before.levels if item.whole and item.latency}
    for level in after.levels:
        if not level.whole:
            notes.append(f"'{level.level}' is not compared: its figures are not those of the model alone")
            continue
        old = old_levels.get(_key(level))
        if old is None:
            notes.append(f"the baseline has no level '{level.level}'")
        else:
            found.extend(_compare_latency(old, level, latency_tolerance, seed))
    if not found:
        notes.append("nothing could be compared: the two runs share no accuracy and no level with enough answers")
    return Comparison(baseline_date=before.date, findings=tuple(found), notes=tuple(notes))


def _compare_accuracy(
    before: PerfRun, after: PerfRun, tolerance: float, found: list[Regression], notes: list[str]
) -> None:
    old, new = before.accuracy, after.accuracy
    if old is None or new is None:
        notes.append("accuracy is not compared: one of the two runs has none")
        return
    fall = old.top1 - new.top1
    same = before.data_fingerprint == after.data_fingerprint and len(old.correct) == len(new.correct)
    if same:
        pairs = list(zip(old.correct, new.correct, strict=True))
        lost, won = pairs.count(("1", "0")), pairs.count(("0", "1"))
        p_value = mcnemar(lost, won)
        how = f"McNemar p = {p_value:.3g} ({lost} lost, {won} won on the same {len(pairs)} samples)"
        worse = fall > tolerance + ROUNDING and p_value < 0.05
    else:
        notes.append("the held-out samples are not those of the baseline: intervals are compared, not pairs")
        how = f"95 % intervals [{old.low:.4f}, {old.high:.4f}] and [{new.low:.4f}, {new.high:.4f}]"
        worse = fall > tolerance + ROUNDING and new.top1 < old.low
    found.append(
        Regression(
            what="top-1",
            before=old.top1,
            after=new.top1,
            low=-fall,
            high=-fall,
            tolerance=tolerance,
            how=how,
            worse=worse,
        )
    )


def _compare_latency(old: LevelResult, new: LevelResult, tolerance: float, seed: int) -> list[Regression]:
    found = []
    for percent in (50.0, 99.0):
        samples = [item.raw_latencies_us or item.latency_sample_us for item in (old, new)]
        if min(len(item) for item in samples) < _LEAST or old.latency is None or new.latency is None:
            continue
        _, low, high = ratio_interval(samples[0], samples[1], percent, seed=seed)
        found.append(
            Regression(
                what=f"p{percent:g} at {new.level}",
                before=old.latency.percentile_us(percent),
                after=new.latency.percentile_us(percent),
                low=low - 1,
                high=high - 1,
                tolerance=tolerance,
                how=f"bootstrap interval of the change [{low - 1:+.1%}, {high - 1:+.1%}]",
                worse=low - 1 > tolerance,
            )
        )
    return found


def _key(result: LevelResult) -> str:
    return f"{result.level} {result.level.shared_memory}"
