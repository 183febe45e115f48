"""What ``repo-builder perf`` does: joins the recipe, its held-out samples and the build with the measuring stage."""

from __future__ import annotations

import datetime
import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repo_builder import built, datasets, environment, loading, progress
from repo_builder.built import Build, EngineClock
from repo_builder.datasets import Dataset, Samples
from repo_builder.errors import MeasureError
from repo_builder.measure import accuracy, baseline, ladder, search
from repo_builder.measure.course import Pace
from repo_builder.measure.explain import Facts, explain, mean_batch
from repo_builder.measure.model import ServedModel, random_samples
from repo_builder.measure.session import Session
from repo_builder.measure.transport import Endpoint
from repo_builder.measure.windows import LevelStopped
from repo_builder.recipe import DataSpec, MeasureSpec
from repo_builder.results import Ladder, Level, LevelResult, PerfRun
from repo_builder.tensors import Array

RANDOM = "random"
_MADE_UP = 64
_REST_S = 4.5  # two of Triton's own metrics intervals


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """What a run may be worse than its baseline, as fractions."""

    accuracy: float = 0.01
    latency: float = 0.1


@dataclass(frozen=True, kw_only=True)
class PerfOptions:
    """What ``repo-builder perf`` was asked for.

    Attributes:
        model: The model's name in the server.
        endpoint: The server.
        version: The model's version; empty for the newest.
        metrics_url: ``host:port`` of the metrics; None is the server's port 8002.
        recipe: The recipe to take data and defaults from; None looks for one.
        work: Folder of the build's artifacts.
        dataset: Data source instead of the recipe's; ``random`` makes inputs up.
        data_dir: Folder of the data set's files.
        levels: Loads; empty takes the recipe's.
        max_p99_ms: Search the knee under this limit instead, at each batch size of ``levels``.
        pace: How long each level is measured.
        with_accuracy: Whether accuracy is measured first.
        with_explanation: Whether to explain where the time goes.
        reference: An earlier run to compare with.
        tolerances: What the comparison accepts.
        timeout_s: Deadline of every call.
        workers: Processes that make the load.
        seed: Seed of made-up inputs and random arrival times.
    """

    model: str
    endpoint: Endpoint
    version: str = ""
    metrics_url: str | None = None
    recipe: str | None = None
    work: Path = Path("build")
    dataset: str | None = None
    data_dir: Path | None = None
    levels: tuple[Level, ...] = ()
    max_p99_ms: float | None = None
    pace: Pace = field(default_factory=Pace)
    with_accuracy: bool = True
    with_explanation: bool = False
    reference: PerfRun | None = None
    tolerances: Tolerances = field(default_factory=Tolerances)
    timeout_s: float = 10.0
    workers: int = 1
    seed: int = 0


@dataclass
class Collected:
    """A run as far as it has come; whatever ends it, this is what there is."""

    run: PerfRun | None = None

    def update(self, **changes: Any) -> None:  # noqa: ANN401 - fields of PerfRun
        """Change fields of the run."""
        if self.run is not None:
            self.run = replace(self.run, **changes)


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
        workers=options.workers,
        seed=options.seed,
    )
    try:
        with session:
            collected.run = _begin(session, build)
            _Measurement(options, build, session, collected).run()
    except BaseException as error:
        if collected.run is not None and not collected.run.stopped:
            collected.update(stopped="interrupted" if isinstance(error, KeyboardInterrupt) else str(error))
        raise


def _begin(session: Session, build: Build) -> PerfRun:
    return PerfRun(
        model=session.model.name,
        model_version=session.model.version,
        backend=session.model.backend,
        server=session.server,
        date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        recipe=f"{build.recipe.name} ({build.origin})" if build.recipe else "",
        environment=environment.describe(),
        layers=build.layers,
    )


class _Measurement:
    """One run, in its order: accuracy, then the levels, then what they are compared with."""

    def __init__(self, options: PerfOptions, build: Build, session: Session, collected: Collected) -> None:
        self._options, self._build, self._session, self._collected = options, build, session, collected
        self._samples: dict[str, Array] | None = None
        self._clock = EngineClock(None, {})

    def run(self) -> None:
        options = self._options
        held_out = self._held_out()
        if held_out is not None:
            self._samples = held_out[1].inputs
            self._accuracy(*held_out)
        if options.with_explanation:
            self._clock = EngineClock(self._build.engine, self._inputs(Level()))
        if self._session.rest(_REST_S):
            progress.skipped("load", f"idle power was measured for {_REST_S} s first")
        if options.max_p99_ms is not None:
            self._search(options.max_p99_ms)
        else:
            for level in self._levels():
                self._measure(level)
        if options.with_explanation and self._clock.missing:
            self._note(f"the engine alone was not timed: {self._clock.missing}")
        self._compare()

    # --- data -------------------------------------------------------------------------------------------------------

    def _held_out(self) -> tuple[Dataset, Samples] | None:
        """Return the data set and its held-out part; None where inputs are made up."""
        recipe, given = self._build.recipe, self._options.dataset
        if given == RANDOM or (given is None and recipe is None):
            why = "inputs are made up" if given else "no recipe is known for this model (--recipe, --dataset)"
            self._collected.update(accuracy_skipped=why, data="random inputs")
            return None
        if recipe is None:
            spec, inputs, seed = DataSpec(source=str(given), arguments={"split": "test"}), self._session.model.inputs, 0
        else:
            spec = recipe.data if given is None else DataSpec(source=given, arguments={"split": "test"})
            inputs, seed = recipe.model.inputs, recipe.seed
        dataset = datasets.load(spec, inputs=inputs, seed=seed, data_dir=self._options.data_dir)
        self._collected.update(data=dataset.name, data_fingerprint=dataset.fingerprint)
        return dataset, dataset.split("test")

    def _inputs(self, level: Level) -> dict[str, Array]:
        """Return what a level's requests are made of."""
        if self._samples is not None and not level.shapes:
            return self._samples
        return random_samples(self._session.model, _MADE_UP, level.shapes, self._options.seed)

    # --- accuracy ---------------------------------------------------------------------------------------------------

    def _accuracy(self, dataset: Dataset, held_out: Samples) -> None:
        if not self._options.with_accuracy:
            self._collected.update(accuracy_skipped="switched off")
            return
        spec = self._build.recipe.measure if self._build.recipe else MeasureSpec()
        with progress.step("accuracy") as step:
            outputs = self._session.infer(held_out.inputs)
            name = self._build.recipe.model.outputs[0].name if self._build.recipe else next(iter(outputs))
            if name not in outputs:
                raise MeasureError(f"the model has no output '{name}'; it has {', '.join(outputs)}", where="recipe")
            values, labels = outputs[name], held_out.labels
            if spec.metric:
                self._collected.update(metrics=_own_metrics(spec.metric, outputs, labels))
            if spec.task != "classification":
                labels = None
                self._collected.update(accuracy_skipped="the recipe's task is not classification")
            elif labels is None:
                self._collected.update(accuracy_skipped="the data has no labels")
            else:
                scored = accuracy.score(values, labels, dataset.classes)
                self._collected.update(accuracy=scored)
                step.note(f"top-1 {scored.top1:.4f} on {scored.samples} samples")
            self._collected.update(ladder=self._ladder(values, labels, dataset.classes, spec))

    def _ladder(
        self, served: Array, labels: Array | None, classes: tuple[str, ...], spec: MeasureSpec
    ) -> Ladder | None:
        """Compare with the outputs that the build left, where they are of these very samples."""
        if self._options.dataset is not None:
            return None
        forms = self._build.outputs()
        if not forms:
            return None
        if any(len(values) != len(served) for values in forms.values()):
            self._note("the build's outputs are of other samples: there is no accuracy ladder")
            return None
        return ladder.climb(
            {**forms, "served": served},
            labels,
            classes=classes,
            accuracy_tolerance=spec.accuracy_tolerance,
            output_tolerance=None if spec.task == "classification" else spec.output_tolerance,
        )

    # --- load -------------------------------------------------------------------------------------------------------

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
                result = self._session.measure(level, self._inputs(level), self._options.pace)
            except LevelStopped as early:
                self._keep(early.result)
                self._collected.update(stopped=early.result.stopped)
                raise early.cause from None
            if self._options.with_explanation:
                result = replace(result, explanation=self._explanation(result))
            self._keep(result)
            step.note(f"{result.infer_per_s:.0f} infer/s" + ("" if result.stable is not False else ", unstable"))
        return result

    def _measure_at(self, level: Level, concurrency: int) -> LevelResult:
        return self._measure(replace(level, concurrency=concurrency))

    def _explanation(self, result: LevelResult) -> Any:  # noqa: ANN401 - Explanation or None
        engine_us = self._clock.median_us(mean_batch(result.server[0])) if result.server else None
        inputs = self._inputs(result.level).values()
        facts = Facts(
            model=self._session.model,
            engine_us=engine_us,
            request_bytes=sum(array[:1].nbytes for array in inputs) * result.level.batch_size,
            protocol=self._session.endpoint.protocol,
        )
        return explain(result, facts)

    def _search(self, most_p99_ms: float) -> None:
        """Search the knee at every batch size asked for; the best of all is named."""
        asked = {(item.batch_size, item.shared_memory): item for item in self._options.levels or (Level(),)}
        for level in asked.values():
            search.knee(functools.partial(self._measure_at, level), most_p99_ms=most_p99_ms)
        levels = self._collected.run.levels if self._collected.run else ()
        good = [place for place, item in enumerate(levels) if search.within(item, most_p99_ms)]
        best = max(good, key=lambda place: levels[place].infer_per_s, default=None)
        self._collected.update(knee=best, max_p99_ms=most_p99_ms)
        if best is None:
            self._note(f"no level keeps its p99 under {most_p99_ms:g} ms")

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

    def _keep(self, result: LevelResult) -> None:
        if self._collected.run is not None:
            self._collected.update(levels=(*self._collected.run.levels, result))

    def _note(self, text: str) -> None:
        if self._collected.run is not None:
            self._collected.update(notes=(*self._collected.run.notes, text))


def fits(model: ServedModel, batch_size: int) -> bool:
    """Whether a model takes batches of a size."""
    return batch_size == 1 or (model.batch_axis and (not model.max_batch_size or batch_size <= model.max_batch_size))


def _own_metrics(target: str, outputs: dict[str, Array], labels: Array | None) -> dict[str, float]:
    """Call the recipe's ``module:function(outputs, labels)``; outputs are ``(n, ...)`` by name."""
    function = loading.load_user(target, where="measure.metric")
    try:
        found = {str(name): float(value) for name, value in function(outputs, labels).items()}
    except Exception as error:
        raise MeasureError(f"'{target}' failed: {type(error).__name__}: {error}", where="measure.metric") from error
    return found
