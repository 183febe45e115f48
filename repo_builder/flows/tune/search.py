"""The search itself: which configuration is tried next, under which loads, and when to stop. It measures nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from repo_builder.core.errors import RepoBuilderError
from repo_builder.flows.tune.loads import Terms, next_line, saturated
from repo_builder.flows.tune.space import Space
from repo_builder.flows.tune.study import Study
from repo_builder.measure.judge import queueing
from repo_builder.results.tuning import QueueModel, Settings, Trial, TrialLevel, worth

_MOST_LEVELS = 4
_BEHIND = 0.8  # a saturated configuration that reaches less than this share of the best is left
_MOST_FAILURES = 3  # in a row before anything was measured; twice as many later
_FAILED = 0.1  # share of what the model says that a failed configuration counts as having reached
_REPEATS = 3  # proposals in a row that were measured already


class Rig(Protocol):
    """What measures: a server that takes configurations."""

    def load(self, settings: Settings) -> None:
        """Load a configuration."""

    def level(self, concurrency: int) -> TrialLevel:
        """Measure the loaded configuration under a load."""

    def revive(self) -> None:
        """Make the server fit for another trial after one failed."""

    def left_s(self) -> float:
        """Return the seconds of the budget that are left."""


class Search:
    """A search over a rig.

    Args:
        rig: What measures.
        study: Where trials are kept.
        space: What is searched.
        terms: What it goes by.
        present: The configuration that stands there.
        seen: Called with every trial that has ended.
    """

    def __init__(
        self, rig: Rig, study: Study, space: Space, terms: Terms, present: Settings, seen: Callable[[Trial], None]
    ) -> None:
        self._rig, self._study, self._space, self._terms = rig, study, space, terms
        self._present, self._seen = present, seen
        self.model: QueueModel | None = None
        self.ended = ""
        self._last: RepoBuilderError
        self._known: dict[Settings, float] = {}  # what the model says

    def run(self) -> None:
        """Try configurations until the budget, the trials or the patience are used up, or all have been tried.

        Raises:
            RepoBuilderError: Nothing can be measured at all.
        """
        failures = 0
        first = self._first()
        while self._goes_on():
            trial = first or self._propose()
            first = None
            if trial is None:
                self.ended = "every configuration was tried"
                return
            ended = self._tried(trial)
            failures = failures + 1 if ended.state == "failed" else 0
            if failures >= _MOST_FAILURES and not self._measured():
                raise self._last
            if failures >= 2 * _MOST_FAILURES:
                self.ended = f"{failures} configurations in a row failed, the last one since {self._last}"
                return

    def _goes_on(self) -> bool:
        terms, trials = self._terms, self._measured()
        levels = sum(len(item.levels) for item in trials)
        left = self._rig.left_s() - terms.reserve_s
        values = [value if (value := terms.value(item)) is not None else 0.0 for item in trials]
        best = max(range(len(values)), key=lambda place: values[place], default=0)
        for reason, over in (
            ("the budget is used up", left < (2 * terms.level_s if trials else 0)),
            ("as many configurations as asked for were tried", len(trials) >= (terms.most_trials or math.inf)),
            ("as many loads as asked for were measured", levels >= (terms.most_levels or math.inf)),
            (
                f"the last {terms.patience} configurations were no better",
                len(values) - 1 - best >= (terms.patience or math.inf),
            ),
        ):
            if over and trials:
                self.ended = reason
                return False
        return True

    def _measured(self) -> list[Trial]:
        return [item for item in self._study.trials() if item.levels and item.state in ("complete", "pruned")]

    def _first(self) -> Trial | None:
        """Return the trial of the present configuration, or fit the model where an earlier run has measured it."""
        for item in self._measured():
            if item.settings == self._present and self._fit(item):
                return None
        return self._study.ask(self._present, "present")

    def _fit(self, trial: Trial) -> bool:
        """Fit the model to a trial's lightest and heaviest load, where the first is the ladder's first."""
        levels = sorted((item for item in trial.levels if item.whole), key=lambda item: item.concurrency)
        if len(levels) < 2 or levels[0].concurrency != self._terms.ladder[0]:
            return False
        cores = 0 if self._terms.on_gpu else self._terms.cores
        self.model = queueing.fit(levels[0], levels[-1], trial.settings, cores=cores)
        return True

    def _propose(self) -> Trial | None:
        """Return the next trial; None where every configuration has been tried.

        The queueing model and Optuna's sampler take turns; what the sampler proposes a second time goes to the model.
        """
        tried = {item.settings for item in self._study.trials() if item.state != "running"}
        ranked = self._ranked(tried | {item.settings for item in self._study.trials()})
        if not ranked:
            return None
        turn = sum(item.origin != "present" for item in self._measured())
        if turn >= 2 and turn % 2 == 0:
            for _ in range(_REPEATS):
                trial = self._study.ask()
                if trial.settings not in tried:
                    return trial
                same = next(item for item in self._study.trials() if item.settings == trial.settings)
                self._study.tell_again(trial, self._terms.score(same))
        return self._study.ask(ranked[0], "queueing model")

    def _ranked(self, tried: set[Settings]) -> list[Settings]:
        """Return the configurations that were not tried, the most promising first.

        What the model says of one is corrected by how far it was wrong of those that were measured, the nearest most
        (a kernel regression of the logarithm); far from all of them a little is added, for nobody knows.
        """
        waiting = [item for item in self._space.all() if item not in tried]
        if self.model is None:
            return waiting
        known = []
        for trial in self._study.trials():
            if trial.state == "running":
                continue
            best = trial.best(self._terms.max_p99_us) if trial.state != "failed" else None
            said = self._said(trial.settings)
            seen = max(best.infer_per_s.value if best else said * _FAILED, 1e-9)
            known.append((trial.settings, math.log(seen / said)))
        return sorted(waiting, key=lambda item: -self._promise(item, known))

    def _promise(self, settings: Settings, known: Sequence[tuple[Settings, float]]) -> float:
        weights = [math.exp(-0.5 * self._space.distance(settings, other) ** 2) for other, _ in known]
        near = sum(weights)
        error = sum(weight * wrong for weight, (_, wrong) in zip(weights, known, strict=True)) / (near + 0.2)
        said = self._said(settings) * math.exp(error) * (1 + 0.1 / (1 + near))
        return worth(settings, said, self._terms.objective, self._terms.cores)

    def _said(self, settings: Settings) -> float:
        """Return the throughput that the model expects under the limit."""
        if self.model is None:
            return 1.0
        if settings not in self._known:
            terms = self._terms
            _, said = queueing.best_concurrency(self.model, settings, terms.ladder, terms.batch_size, terms.max_p99_us)
            over = said.p99_us / terms.max_p99_us if terms.max_p99_us else 0.0
            self._known[settings] = max(said.infer_per_s / max(1.0, over), 1e-9)
        return self._known[settings]

    def _tried(self, trial: Trial) -> Trial:
        started = time.monotonic()
        try:
            self._rig.load(trial.settings)
            trial = self._present_levels(trial) if self.model is None else self._levels(trial)
        except RepoBuilderError as error:
            self._last = error
            ended = replace(trial, state="failed", reason=str(error))
            self._study.tell(self._timed(ended, started), None)
            self._seen(self._timed(ended, started))
            self._rig.revive()
            return ended
        trial = self._timed(trial, started)
        self._study.tell(trial, self._terms.score(trial))
        self._seen(trial)
        return trial

    def _timed(self, trial: Trial, started: float) -> Trial:
        return replace(trial, seconds=round(time.monotonic() - started, 2))

    def _present_levels(self, trial: Trial) -> Trial:
        """Measure two loads, fit the model to them, and go on from the heavier one."""
        ladder = self._terms.ladder
        wanted = max(4, 2 * trial.settings.instances * max(1, trial.settings.max_batch_size) // self._terms.batch_size)
        heavy = max((line for line in ladder if line <= min(wanted, 64)), default=ladder[-1])
        for line in dict.fromkeys((ladder[0], heavy)):
            trial = self._with(trial, self._rig.level(line))
        if not self._fit(trial):
            return replace(trial, state="complete")
        return self._levels(trial, begin=next_line(trial.levels, trial.settings, self._terms))

    def _levels(self, trial: Trial, begin: int | None = None) -> Trial:
        """Measure a configuration's loads, from the one that the model names on, until the best is known."""
        terms = self._terms
        line = begin
        if not trial.levels and self.model is not None:
            line, _ = queueing.best_concurrency(
                self.model, trial.settings, terms.ladder, terms.batch_size, terms.max_p99_us
            )
        spent = len(trial.levels)
        while line is not None and len(trial.levels) < spent + _MOST_LEVELS:
            trial = self._with(trial, self._rig.level(line))
            reason = self._hopeless(trial)
            if reason:
                return replace(trial, state="pruned", reason=reason)
            line = next_line(trial.levels, trial.settings, terms)
        return replace(trial, state="complete")

    def _with(self, trial: Trial, level: TrialLevel) -> Trial:
        trial = replace(trial, levels=(*trial.levels, level))
        self._study.keep(trial)
        return trial

    def _hopeless(self, trial: Trial) -> str:
        """Return why no other load of a configuration is worth a look; empty where one may be."""
        terms, last = self._terms, trial.levels[-1]
        if not last.within(terms.max_p99_us):
            if last.whole and last.concurrency == terms.ladder[0]:
                return f"one request at a time has a p99 of {last.p99_us.value / 1000:.3g} ms already"
            return ""
        values = (terms.value(item) for item in self._measured())
        best = max((value for value in values if value is not None), default=0.0)
        value = worth(trial.settings, last.infer_per_s.value, terms.objective, terms.cores)
        if saturated(last, trial.settings) and value < best * _BEHIND:
            return f"saturated at {last.infer_per_s.value:,.0f} a second, {value / best:.0%} of the best"
        return ""
