"""What a search goes by, and under which load a configuration is measured next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from repo_builder.results.tuning import Objective, Settings, Trial, TrialLevel, worth

_GAIN = 1.03  # what twice as many in flight must bring to be followed further
_ROOM = 1.4  # p99 grows as the number in flight once requests wait: with less room than this twice as many are too many


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the search goes by.

    Attributes:
        objective: What is to be high.
        max_p99_us: The limit; None for none.
        batch_size: Samples a request.
        ladder: Concurrencies, ascending.
        cores: Cores of the server's machine.
        on_gpu: Whether the model runs on a GPU.
        most_trials: Most configurations; None leaves it to the budget.
        most_levels: Most loads of all of them together; None likewise.
        patience: End when so many in a row were no better; None never does.
        reserve_s: What of the budget is kept for the end.
        level_s: What a level takes about.
    """

    objective: Objective
    max_p99_us: float | None
    batch_size: int
    ladder: Sequence[int]
    cores: int
    on_gpu: bool = False
    most_trials: int | None = None
    most_levels: int | None = None
    patience: int | None = None
    reserve_s: float = 0.0
    level_s: float = 2.0

    def value(self, trial: Trial) -> float | None:
        """Return what a trial is worth; None where no load of it keeps the limit."""
        best = trial.best(self.max_p99_us)
        return None if best is None else worth(trial.settings, best.infer_per_s.value, self.objective, self.cores)

    def score(self, trial: Trial) -> float | None:
        """Return the same for the sampler: below 0 where the limit is missed, and by how much; None without a level."""
        value = self.value(trial)
        if value is not None or self.max_p99_us is None:
            return value
        least = min((item.p99_us.value for item in trial.levels if item.whole), default=None)
        return None if least is None else -least / self.max_p99_us


def saturated(level: TrialLevel, settings: Settings) -> bool:
    """Whether more in flight would only wait: requests wait longer than they run, and batches are full."""
    if level.queue_us is None or level.compute_us is None or level.mean_batch is None:
        return False
    full = level.mean_batch >= 0.8 * max(1, settings.max_batch_size)
    return full and level.queue_us > level.compute_us


def next_line(levels: Sequence[TrialLevel], settings: Settings, terms: Terms) -> int | None:
    """Return the concurrency to measure next of a configuration; None where its best load is known well enough.

    Args:
        levels: What was measured of it, at least one.
        settings: The configuration.
        terms: The limit and the ladder.
    """
    tried: Mapping[int, TrialLevel] = {item.concurrency: item for item in levels}
    if any(not item.whole for item in levels):
        return None
    good = sorted(line for line, item in tried.items() if item.within(terms.max_p99_us))
    bad = sorted(set(tried) - set(good))
    if not good:
        below = [line for line in terms.ladder if line < bad[0]]
        if not below or terms.max_p99_us is None:
            return None
        aim = bad[0] * terms.max_p99_us / tried[bad[0]].p99_us.value
        return max((line for line in below if line <= aim), default=below[0])
    top = good[-1]
    above = [line for line in terms.ladder if line > top and not (bad and line >= bad[0])]
    if not above or saturated(tried[top], settings):
        return None
    if len(good) > 1 and tried[top].infer_per_s.value < tried[good[-2]].infer_per_s.value * _GAIN:
        return None
    if terms.max_p99_us is not None and terms.max_p99_us < tried[top].p99_us.value * _ROOM:
        return None
    return above[0]
