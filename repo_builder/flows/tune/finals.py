"""What comes into question, measured again in turns: single levels are too noisy to choose by."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from repo_builder.core import progress
from repo_builder.core.errors import RepoBuilderError
from repo_builder.flows.tune.loads import Terms
from repo_builder.flows.tune.search import Rig
from repo_builder.measure.judge import estimates
from repo_builder.results.tuning import Comparison, Finalist, Settings, Trial, TrialLevel, worth

_BEST = 3
_LEAST_ROUNDS = 2


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A configuration under its best load.

    Attributes:
        settings: The configuration.
        level: What the search measured of it.
        present: Whether it is the configuration that stood there at first.
    """

    settings: Settings
    level: TrialLevel
    present: bool = False


def entries(trials: Sequence[Trial], terms: Terms, present: Settings) -> list[Entry]:
    """Return the best configurations that keep the limit, the best first, and the present one whatever it does."""
    known: dict[Settings, tuple[float, Entry]] = {}
    for trial in trials:
        best, value = trial.best(terms.max_p99_us), terms.value(trial)
        if best is None or value is None or trial.state not in ("complete", "pruned"):
            continue
        entry = Entry(settings=trial.settings, level=best, present=trial.settings == present)
        if trial.settings not in known or known[trial.settings][0] < value:
            known[trial.settings] = value, entry
    ordered = [item for _, item in sorted(known.values(), key=lambda pair: -pair[0])]
    chosen = ordered[:_BEST]
    return chosen + [item for item in ordered[_BEST:] if item.present]


def in_turns(rig: Rig, contest: Sequence[Entry], rounds: int, level_s: float) -> list[Finalist]:
    """Measure configurations in turns, every round in another order; one that fails is out.

    Fewer rounds are made where the budget ends, but two at least.
    """
    rates: dict[int, list[float]] = {place: [] for place in range(len(contest))}
    tails: dict[int, list[float]] = {place: [] for place in rates}
    out: set[int] = set()
    for number in range(rounds):
        if number >= _LEAST_ROUNDS and rig.left_s() < level_s * len(contest):
            break
        for step in range(len(contest)):
            place = (step + number) % len(contest)
            if place in out:
                continue
            try:
                rig.load(contest[place].settings)
                level = rig.level(contest[place].level.concurrency)
            except RepoBuilderError as error:
                progress.warn(f"{contest[place].settings} failed when it was measured again: {error}")
                out.add(place)
                rig.revive()
                continue
            rates[place].append(level.infer_per_s.value)
            tails[place].append(level.p99_us.value)
    return [
        Finalist(
            settings=contest[place].settings,
            concurrency=contest[place].level.concurrency,
            infer_per_s=tuple(rates[place]),
            p99_us=tuple(tails[place]),
            present=contest[place].present,
        )
        for place in rates
        if place not in out and rates[place]
    ]


def winner(found: Sequence[Finalist], terms: Terms) -> Finalist | None:
    """Return the one of the highest median whose median p99 keeps the limit; None where none does."""

    def value(item: Finalist) -> float:
        return worth(item.settings, statistics.median(item.infer_per_s), terms.objective, terms.cores)

    held = [item for item in found if terms.max_p99_us is None or statistics.median(item.p99_us) <= terms.max_p99_us]
    return max(held, key=value, default=None)


def compare(what: str, first: Finalist, second: Finalist, terms: Terms) -> Comparison:
    """Return the second over the first, as the objective counts, by the rounds that both have."""
    count = min(len(first.infer_per_s), len(second.infer_per_s))
    one, other = (
        [worth(item.settings, rate, terms.objective, terms.cores) for rate in item.infer_per_s[:count]]
        for item in (first, second)
    )
    ratio = estimates.ratio(one, other)
    return Comparison(what=what, ratio=ratio, rounds=count, kept=ratio.low > 1.0)


def with_preferred(settings: Settings, present: Settings) -> Settings | None:
    """Return a configuration with preferred batch sizes; None where there are no batches to prefer.

    Those that stand there now where they fit; else a quarter, a half and all of the largest batch.
    """
    most = settings.max_batch_size
    if most < 2 or settings.preferred_batch_sizes:
        return None
    sizes = tuple(item for item in present.preferred_batch_sizes if item <= most)
    usual = tuple(sorted({max(2, most // 4), max(2, most // 2), most}))
    return replace(settings, preferred_batch_sizes=sizes or usual)
