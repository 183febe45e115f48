"""The order of a search: server, trials, the best ones in turns, preferred sizes, the same answers, what is written."""

from __future__ import annotations

import datetime
import os
import time
from dataclasses import replace
from typing import Any

from repo_builder.core import codec, environment, files, progress
from repo_builder.core.errors import MeasureError, ObjectiveMissed
from repo_builder.flows.perf import built
from repo_builder.flows.tune import apply, finals, hosts, study
from repo_builder.flows.tune import space as spaces
from repo_builder.flows.tune.bench import Bench, difference
from repo_builder.flows.tune.hosts import Host
from repo_builder.flows.tune.loads import Terms
from repo_builder.flows.tune.meter import unmeasured
from repo_builder.flows.tune.options import Collected, TuneOptions
from repo_builder.flows.tune.search import Search
from repo_builder.flows.tune.space import Space
from repo_builder.flows.tune.study import Study, url_of
from repo_builder.repository import serving
from repo_builder.results.tuning import Finalist, SameOutputs, Settings, Trial, TrialLevel, TuneRun

_LEAST_LEVELS = 6  # that a budget must have room for: two to fit the model, one more configuration, and the end
_ROOM = 0.8  # of the limit, where what kept it once misses it when it is measured again
_END = 0.35  # share of the budget for the best ones in turns, at the most


def tune(options: TuneOptions, collected: Collected) -> None:
    """Search the serving configuration of a model; what is found stands in ``collected`` from the moment it is known.

    Args:
        options: What was asked for.
        collected: Filled step by step.

    Raises:
        ObjectiveMissed: No configuration that was tried keeps the limit.
        RepoBuilderError: What ended the search early.
        KeyboardInterrupt: The user did; the trials stay in their database.
    """
    started = time.monotonic()
    study.require()
    _refuse_small(options)
    if "recipe" in options.apply:
        apply.target_file(options)
    build = built.find(options.model, options.recipe, options.work)
    with progress.step("server") as step:
        host = hosts.open_host(options)
        step.note(f"{options.model} at {host.endpoint}")
    bench = Bench(host, options, build, started + options.budget_s)
    try:
        _Tuning(options, bench, collected).run()
    except BaseException as error:
        if not isinstance(error, ObjectiveMissed):
            collected.update(stopped="interrupted" if isinstance(error, KeyboardInterrupt) else str(error))
        raise
    finally:
        collected.update(seconds=round(time.monotonic() - started, 1))
        bench.close()


def _refuse_small(options: TuneOptions) -> None:
    least = _LEAST_LEVELS * options.level_s
    if options.budget_s < least:
        raise MeasureError(
            f"{options.budget_s:g} s is too small: a level takes about {options.level_s:.1f} s, and a search "
            f"{_LEAST_LEVELS} of them at the least",
            where="--budget",
            hint=f"give it {least:.0f}s or more, or shorten --window-ms",
        )


class _Tuning:
    """One search, in its order."""

    def __init__(self, options: TuneOptions, bench: Bench, collected: Collected) -> None:
        self._options, self._bench, self._collected = options, bench, collected
        host = bench.host
        self._present = serving.settings_of(host.configs[0])
        cores = options.cores or len(os.sched_getaffinity(0))
        on_gpu = serving.on_gpu(host.configs[0])
        self._space = spaces.usual(
            self._present,
            options.choices,
            cores=cores,
            on_gpu=on_gpu,
            batch_size=options.level.batch_size,
            most_batch=self._present.max_batch_size,
            max_p99_us=options.max_p99_us,
            builds=len(host.configs),
        )
        end_s = (3 + 1) * options.rounds * options.level_s
        self._terms = Terms(
            objective=options.objective,
            max_p99_us=options.max_p99_us,
            batch_size=options.level.batch_size,
            ladder=spaces.ladder(options.most_in_flight),
            cores=cores,
            on_gpu=on_gpu,
            most_trials=options.most_trials,
            most_levels=options.most_levels,
            patience=options.patience,
            reserve_s=min(_END * options.budget_s, end_s),
            level_s=options.level_s,
        )
        self._study = Study(
            url_of(options.storage, options.folder),
            _name(options, host, self._space, self._terms),
            self._space,
            seed=options.seed,
            fresh=options.fresh,
        )

    def run(self) -> None:
        try:
            self._begin()
            self._search()
            contest = finals.entries(self._study.trials(), self._terms, self._present)
            best = self._chosen(contest)
            if best is None:
                self._missed()
                return
            self._conclude(best, contest)
        finally:
            self._collected.update(trials=self._study.trials())
            self._study.close()

    def _begin(self) -> None:
        options, host, taken = self._options, self._bench.host, self._study.trials()
        self._collected.run = TuneRun(
            model=options.model,
            backend=str(host.configs[0].backend or host.configs[0].platform),
            server="embedded, started for it" if options.endpoint is None else str(options.endpoint),
            date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            objective=options.objective,
            max_p99_ms=options.max_p99_ms,
            batch_size=options.level.batch_size,
            data="",
            budget_s=options.budget_s,
            storage=self._study.url,
            study=self._study.name,
            taken_over=sum(bool(item.levels) for item in taken),
            cores=self._terms.cores,
            space={name: list(item) for name, item in self._space.choices.items()},
            space_size=len({self._present, *self._space.all()}),
            builds=tuple(map(str, (options.repository / options.model, *options.builds))),
            trials=taken,
            present=self._present,
            environment=environment.describe(),
        )
        if self._collected.run.taken_over:
            progress.skipped("trials", f"{self._collected.run.taken_over} are taken over from {self._study.url}")

    def _search(self) -> None:
        search = Search(self._bench, self._study, self._space, self._terms, self._present, self._seen)
        search.run()
        self._collected.update(queue_model=search.model, data=self._bench.data)
        self._collected.note(f"the search ended because {search.ended}")
        if missing := unmeasured(self._study.trials(), local=self._bench.host.group is not None):
            self._collected.note(missing)

    def _seen(self, trial: Trial) -> None:
        """Say on stderr what became of a trial."""
        trials = self._study.trials()
        self._collected.update(trials=trials, data=self._bench.data)
        best = trial.best(self._terms.max_p99_us)
        said = _said(best or min(trial.levels, key=lambda item: item.p99_us.value, default=None))
        if trial.state == "failed":
            progress.warn(f"trial {trial.number}, {trial.settings}, failed: {trial.reason}")
            return
        mark = "" if best else "over the limit, "
        extra = f" ({trial.reason})" if trial.state == "pruned" else ""
        progress.done(f"trial {trial.number}", trial.seconds, f"{trial.settings}: {mark}{said}{extra}")

    def _chosen(self, contest: list[finals.Entry]) -> Finalist | None:
        """Measure the best ones again in turns, and return the best of them."""
        best, found = self._contested(contest)
        if best is None and found and self._terms.max_p99_us is not None:
            # Each kept the limit once and misses it now, for a level's p99 is not that sure: those with some room next.
            self._collected.note("measured again, the best configurations no longer keep the limit: others were taken")
            stricter = replace(self._terms, max_p99_us=_ROOM * self._terms.max_p99_us)
            others = finals.entries(self._study.trials(), stricter, self._present)
            contest[:] = [item for item in others if item not in contest]
            best, found = self._contested(contest)
        self._collected.update(finalists=tuple(replace(item, chosen=item == best) for item in found))
        present = next((item for item in found if item.present), None)
        if best is not None and present is not None and present != best:
            told = finals.compare("the chosen configuration over the present one", present, best, self._terms)
            self._collected.update(comparisons=(replace(told, kept=True),))
        return best

    def _contested(self, contest: list[finals.Entry]) -> tuple[Finalist | None, list[Finalist]]:
        if not contest:
            return None, []
        with progress.step("the best in turns") as step:
            found = finals.in_turns(self._bench, contest, self._options.rounds, self._options.level_s)
            step.note(f"{len(found)} × {len(found[0].infer_per_s) if found else 0} rounds")
        return finals.winner(found, self._terms), found

    def _conclude(self, best: Finalist, contest: list[finals.Entry]) -> None:
        level = next(item.level for item in contest if item.settings == best.settings)
        settings = best.settings
        self._collected.update(best=settings, best_level=level)
        if self._options.preferred:
            settings = self._with_preferred(best, level)
            self._collected.update(best=settings)
        self._collected.update(same_outputs=self._same(settings))
        for what, write in (("config", apply.to_config), ("recipe", apply.to_recipe)):
            if what in self._options.apply:
                written = write(self._options, settings)
                with progress.step(f"write the {what}") as step:
                    step.note("; the old one is ".join(written))
                run = self._collected.run
                self._collected.update(applied=(*(run.applied if run else ()), *written))

    def _with_preferred(self, best: Finalist, level: TrialLevel) -> Settings:
        """Return the configuration with preferred batch sizes where they are measured to help, else without."""
        other = finals.with_preferred(best.settings, self._present)
        if other is None:
            return best.settings
        pair = [finals.Entry(settings=best.settings, level=level), finals.Entry(settings=other, level=level)]
        with progress.step("preferred batch sizes") as step:
            found = finals.in_turns(self._bench, pair, self._options.rounds, self._options.level_s)
            if len(found) < 2:
                return best.settings
            sizes = ", ".join(map(str, other.preferred_batch_sizes))
            told = finals.compare(f"preferred batch sizes {sizes} over none", found[0], found[1], self._terms)
            kept = told.kept and finals.winner(found[1:], self._terms) is not None
            step.note(f"{sizes}: × {told.ratio.value:.3f}, " + ("which is taken" if kept else "and none are written"))
        run = self._collected.run
        self._collected.update(comparisons=(*(run.comparisons if run else ()), replace(told, kept=kept)))
        return other if kept else best.settings

    def _same(self, settings: Settings) -> SameOutputs | None:
        """Hold the answers of the chosen configuration against those of the present one."""
        if settings.build != self._present.build:
            self._collected.note("the chosen build is another one: its accuracy is its own")
            return None
        with progress.step("the same answers") as step:
            self._bench.load(self._present)
            before = self._bench.answers()
            self._bench.load(settings)
            equal, apart = difference(before, self._bench.answers())
            step.note(f"{len(before)} requests, " + ("equal to the bit" if equal else f"up to {apart:.3g} apart"))
        return SameOutputs(samples=len(before), bit_equal=equal, max_abs_diff=apart)

    def _missed(self) -> None:
        """Say which configuration came nearest, and that it is not near enough.

        Raises:
            ObjectiveMissed: Always, where anything was measured.
        """
        trials = self._study.trials()
        known = [(item.p99_us.value, trial, item) for trial in trials for item in trial.levels if item.whole]
        if not known:
            reason = next((item.reason for item in trials if item.reason), "nothing was measured")
            raise MeasureError(f"no configuration could be measured: {reason}", where=self._options.model)
        p99_us, trial, level = min(known, key=lambda item: item[0])
        if level.within(self._options.max_p99_us):
            raise ObjectiveMissed(
                f"{trial.settings} kept a p99 of {self._options.max_p99_ms:g} ms once, and not when measured again: "
                f"{p99_us / 1000:.3g} ms with {level.infer_per_s.value:,.0f} inferences/s was the best found",
                where=self._options.model,
                hint="raise --max-p99-ms, or search on a quieter machine",
            )
        raise ObjectiveMissed(
            f"no configuration keeps its p99 under {self._options.max_p99_ms:g} ms; the best found has "
            f"{p99_us / 1000:.3g} ms with {level.infer_per_s.value:,.0f} inferences/s at concurrency "
            f"{level.concurrency}: {trial.settings}",
            where=self._options.model,
            hint="raise --max-p99-ms, search for longer, or make the model faster",
        )


def _said(level: TrialLevel | None) -> str:
    if level is None:
        return "nothing was measured"
    rate, p99 = level.infer_per_s.value, level.p99_us.value / 1000
    return f"{rate:,.0f} infer/s, p99 {p99:.3g} ms at concurrency {level.concurrency}"


def _name(options: TuneOptions, host: Host, space: Space, terms: Terms) -> str:
    """Return a name under which only trials that compare are kept: same build, load, limit, space and machine."""
    about: dict[str, Any] = environment.describe()
    facts = {
        "configs": [serving.to_json(serving.changed(item, Settings())) for item in host.configs],
        "space": {name: list(item) for name, item in space.choices.items()},
        "objective": [options.objective, options.max_p99_ms],
        "level": codec.plain(options.level),
        "ladder": list(terms.ladder),
        "data": [options.dataset, options.seed],
        "machine": [about["system"], about["cpu"], about["gpus"], terms.cores],
        "url": str(options.endpoint) if options.endpoint else "",
        "native": str(options.backend_directory or ""),
        "workers": options.workers,
    }
    return f"{options.model}-{files.sha256_of_json(facts)[:12]}"
