"""The order of a measurement: accuracy, the levels, what they are compared with."""

from __future__ import annotations

import datetime
import functools
import itertools
import os
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from repo_builder.core import environment, progress
from repo_builder.core.errors import MeasureError
from repo_builder.core.recipe import MeasureSpec
from repo_builder.flows.perf import accuracy, built
from repo_builder.flows.perf.built import Build, EngineClock
from repo_builder.flows.perf.options import Collected, PerfOptions
from repo_builder.measure.judge import baseline
from repo_builder.measure.judge.explain import Facts, explain, mean_batch
from repo_builder.measure.load import input_data, search
from repo_builder.measure.load.session import Session
from repo_builder.measure.load.windows import LevelStopped
from repo_builder.measure.wire.made_up import random_samples
from repo_builder.measure.wire.messages import to_bytes
from repo_builder.measure.wire.model import ServedModel
from repo_builder.measure.wire.payloads import Inputs
from repo_builder.results import Explanation, Level, LevelResult, PerfRun

_MADE_UP = 16  # requests; more are not prepared
_REST_S = 4.5  # two of Triton's own metrics intervals


def perf(options: PerfOptions, collected: Collected) -> None:
    """Measure a served model; what is measured stands in ``collected`` from the moment it is known.

    Args:
        options: What was asked for.
        collected: Filled step by step.

    Raises:
        RepoBuilderError: What ended the run early.
        KeyboardInterrupt: The user did.
    """
    build = built.find(options.model, options.recipe, options.work)
    session = Session(
        options.endpoint,
        options.model,
        version=options.version,
        metrics_url=options.metrics_url,
        timeout_s=options.timeout_s,
        workers=options.workers or min(4, max(1, (os.cpu_count() or 1) // 4)),
        seed=options.seed,
        asks=options.asks,
    )
    try:
        with session:
            mismatch = build.not_served(session.model.identity)
            build = build.without_artifacts() if mismatch else build
            collected.run = _begin(session, build, mismatch)
            _Measurement(options, build, session, collected).run()
        require_answers(collected)
    except BaseException as error:
        if collected.run is not None and not collected.run.stopped:
            collected.update(stopped="interrupted" if isinstance(error, KeyboardInterrupt) else str(error))
        raise


def require_answers(collected: Collected) -> None:
    """Refuse to call a run good in which requests failed, none was answered, or nothing could be compared.

    Raises:
        MeasureError: That is so; what was measured stays in ``collected``.
    """
    run = collected.run
    if run is None:
        return
    failed = next((item for item in run.levels if item.errors), None)
    empty = next((item for item in run.levels if not item.requests), None)
    if failed is not None:
        said = next(iter(failed.failures), "no reason given")
        raise MeasureError(
            f"{failed.errors:,} of {failed.errors + failed.requests:,} requests failed: {said}",
            where=str(failed.level),
            hint="look at the server's log",
        )
    if empty is not None or not run.levels:
        hint = "look at the server's log, or measure for longer (--window-ms)"
        raise MeasureError("no request was answered", where=str(empty.level) if empty else run.model, hint=hint)
    if run.comparison is not None and not run.comparison.findings:
        hint = "measure the same levels, or the same data, as the baseline"
        raise MeasureError("nothing could be compared with the baseline", where="--baseline", hint=hint)


def _begin(session: Session, build: Build, mismatch: str) -> PerfRun:
    return PerfRun(
        model=session.model.name,
        model_version=session.model.version,
        backend=session.model.backend,
        server=session.server,
        date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        recipe=f"{build.recipe.name} ({build.origin})" if build.recipe else "",
        environment={**environment.describe(), **({"exporter": build.exporter} if build.exporter else {})},
        identity=session.model.identity,
        not_the_build=mismatch,
        layers=build.layers,
        searched=str(build.searched or ""),
    )


class _Measurement:
    """One run, in its order: accuracy, then the levels, then what they are compared with."""

    def __init__(self, options: PerfOptions, build: Build, session: Session, collected: Collected) -> None:
        self._options, self._build, self._session, self._collected = options, build, session, collected
        self._samples: Inputs | None = None
        self._streams: tuple[int, ...] = ()
        self._clock = EngineClock(None, {})

    def run(self) -> None:
        options, collected = self._options, self._collected
        found = accuracy.held_out(options, self._build, self._session, collected)
        if found is not None:
            self._samples = found[1].inputs
            self._take_axis(self._samples)
            if not options.with_accuracy:
                collected.update(accuracy_skipped="switched off")
            elif self._session.model.decoupled:
                collected.update(accuracy_skipped="the model is decoupled: its responses are no outputs of samples")
            else:
                accuracy.score(options, self._build, self._session, collected, *found)
        if options.input_data is not None:
            given = input_data.read(options.input_data, self._session.model, self._shapes())
            self._samples, self._streams = given.samples, given.streams
            self._take_axis(self._samples)
            collected.update(data=str(options.input_data))
        if self._session.no_statistics:
            collected.note(
                f"the server's statistics are not to be had ({self._session.no_statistics}): what goes on inside is "
                "unknown" + (", and --explain has nothing to explain" if options.with_explanation else "")
            )
        if options.with_explanation:
            piped = self._build.recipe is not None and self._build.recipe.pipeline.some
            missing = "requests go through a pipeline, and the engine takes what its steps give" if piped else ""
            self._clock = EngineClock(self._build.engine, self._session.model.config, missing)
        if self._session.rest(_REST_S):
            progress.skipped("load", f"idle power was measured for {_REST_S} s first")
        if options.max_p99_ms is not None:
            self._search(options.max_p99_ms)
        else:
            for level in self._levels():
                self._measure(level)
        if options.with_explanation and self._clock.missing and not self._session.no_statistics:
            collected.note(f"the engine alone was not timed: {self._clock.missing}")
        self._compare()

    def _take_axis(self, samples: Inputs) -> None:
        """Take the first dimension of a model that Triton does not batch for one of samples where the data says so."""
        session = self._session
        specs = {item.name: item for item in session.model.inputs}
        if session.model.own_axis and all(
            name in specs and np.ndim(array[0]) == len(specs[name].shape) - 1 for name, array in samples.items()
        ):
            session.model = session.model.counting_samples()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return self._options.levels[0].shapes if self._options.levels else {}

    def _inputs(self, level: Level) -> Inputs:
        """Return what a level's requests are made of."""
        if self._samples is not None and (not level.shapes or self._options.input_data is not None):
            return self._samples
        model = self._session.model
        one_less = all(len(shape) == len(_shape_of(model, name)) - 1 for name, shape in level.shapes.items())
        if level.batch_size > 1 or (level.shapes and one_less):
            model = model.counting_samples()
        count = _MADE_UP * level.batch_size
        return random_samples(model, count, level.shapes, self._options.seed, string_length=self._options.string_length)

    def _levels(self) -> Iterable[Level]:
        if self._options.levels:
            return self._options.levels
        spec = self._build.recipe.measure if self._build.recipe else MeasureSpec()
        model = self._session.model
        sizes = [size for size in spec.batch_sizes if fits(model, size)] or [1]
        return [Level(concurrency=line, batch_size=size) for size, line in itertools.product(sizes, spec.concurrency)]

    def _measure(self, level: Level) -> LevelResult:
        with progress.step(str(level)) as step:
            try:
                result = self._session.measure(level, self._inputs(level), self._options.pace, self._streams)
            except LevelStopped as early:
                self._collected.keep(early.result)
                self._collected.update(stopped=early.result.stopped)
                raise early.cause from None
            if self._options.with_explanation:
                result = replace(result, explanation=self._explanation(result))
            self._collected.keep(result)
            step.note(f"{result.infer_per_s:.0f} infer/s" + ("" if result.stable is not False else ", unstable"))
        return result

    def _measure_at(self, level: Level, concurrency: int) -> LevelResult:
        return self._measure(replace(level, concurrency=concurrency))

    def _explanation(self, result: LevelResult) -> Explanation | None:
        inputs = self._inputs(result.level)
        engine_us = self._clock.median_us(mean_batch(result.server[0]), inputs) if result.server else None
        facts = Facts(
            model=self._session.model,
            engine_us=engine_us,
            request_bytes=sum(len(to_bytes(array[0])) for array in inputs.values()) * result.level.batch_size,
            protocol=self._session.endpoint.protocol,
        )
        return explain(result, facts)

    def _search(self, most_p99_ms: float) -> None:
        """Search the knee at every batch size asked for; the best of all is named."""
        asked = self._options.levels or (Level(),)
        for level in {str(replace(item, concurrency=1)): item for item in asked}.values():
            search.knee(functools.partial(self._measure_at, level), most_p99_ms=most_p99_ms)
        levels = self._collected.run.levels if self._collected.run else ()
        good = [place for place, item in enumerate(levels) if search.within(item, most_p99_ms)]
        best = max(good, key=lambda place: (levels[place].sound, levels[place].infer_per_s), default=None)
        self._collected.update(knee=best, max_p99_ms=most_p99_ms)
        if best is None:
            self._collected.note(f"no level keeps its p99 under {most_p99_ms:g} ms")

    def _compare(self) -> None:
        run, options = self._collected.run, self._options
        if options.reference is not None and run is not None:
            compared = baseline.compare(
                options.reference,
                run,
                accuracy_tolerance=options.tolerances.accuracy,
                latency_tolerance=options.tolerances.latency,
                seed=options.seed,
            )
            self._collected.update(comparison=compared)


def _shape_of(model: ServedModel, name: str) -> tuple[int, ...]:
    return next((item.shape for item in model.inputs if item.name == name), ())


def fits(model: ServedModel, batch_size: int) -> bool:
    """Whether a model takes batches of a size."""
    if model.sequence:
        return batch_size == 1
    return batch_size == 1 or (model.batch_axis and (not model.max_batch_size or batch_size <= model.max_batch_size))
