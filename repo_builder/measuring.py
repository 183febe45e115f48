"""What ``repo-builder perf`` does: finds the recipe and its held-out samples, and hands them to the measuring stage."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from repo_builder import artifacts, datasets, environment, recipes
from repo_builder.artifacts import OnnxArtifact
from repo_builder.datasets import Dataset
from repo_builder.errors import RepoBuilderError
from repo_builder.measure import accuracy
from repo_builder.measure.course import Pace
from repo_builder.measure.model import random_samples
from repo_builder.measure.session import Session
from repo_builder.measure.transport import Endpoint
from repo_builder.measure.windows import LevelStopped
from repo_builder.recipe import DataSpec, Recipe
from repo_builder.results import Level, LevelResult, PerfRun
from repo_builder.tensors import Array

_MADE_UP = 64


@dataclass(frozen=True, kw_only=True)
class PerfOptions:
    """What ``repo-builder perf`` was asked for.

    Attributes:
        model: The model's name in the server.
        endpoint: The server.
        version: The model's version; empty for the newest.
        recipe: The recipe to take data and defaults from; None looks for one.
        work: Folder of the build's artifacts.
        dataset: Data source instead of the recipe's.
        data_dir: Folder of the data set's files.
        levels: Loads; empty takes the recipe's.
        pace: How long each is measured.
        with_accuracy: Whether accuracy is measured first.
        timeout_s: Deadline of every call.
        workers: Processes that make the load.
        seed: Seed of made-up inputs and random arrival times.
    """

    model: str
    endpoint: Endpoint
    version: str = ""
    recipe: str | None = None
    work: Path = Path("build")
    dataset: str | None = None
    data_dir: Path | None = None
    levels: tuple[Level, ...] = ()
    pace: Pace = field(default_factory=Pace)
    with_accuracy: bool = True
    timeout_s: float = 10.0
    workers: int = 1
    seed: int = 0


@dataclass
class Collected:
    """A run as far as it has come; whatever ends it, this is what there is."""

    run: PerfRun | None = None

    def update(self, **changes: object) -> None:
        """Change fields of the run."""
        if self.run is not None:
            self.run = replace(self.run, **changes)  # type: ignore[arg-type]


def perf(options: PerfOptions, collected: Collected, tell: Callable[[str], None]) -> None:
    """Measure a served model; what is measured stands in ``collected`` from the moment it is known.

    Args:
        options: What was asked for.
        collected: Filled step by step.
        tell: Called with one line a step, for progress.

    Raises:
        RepoBuilderError: What ended the run early.
        KeyboardInterrupt: The user did.
    """
    recipe, found_in = find_recipe(options.model, options.recipe, options.work)
    with Session(
        options.endpoint,
        options.model,
        version=options.version,
        timeout_s=options.timeout_s,
        workers=options.workers,
        seed=options.seed,
    ) as session:
        collected.run = PerfRun(
            model=session.model.name,
            model_version=session.model.version,
            backend=session.model.backend,
            server=session.server,
            date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            recipe=f"{recipe.name} ({found_in})" if recipe else "",
            environment=environment.describe(),
        )
        samples = _accuracy(options, recipe, session, collected, tell)
        levels = options.levels or default_levels(recipe, session.model.max_batch_size)
        for level in levels:
            if samples is None or level.shapes:
                sent = random_samples(session.model, _MADE_UP, level.shapes, options.seed)
            else:
                sent = samples
            _add_level(session, level, sent, options.pace, collected)
            tell(str(level))


def _add_level(session: Session, level: Level, sent: dict[str, Array], pace: Pace, collected: Collected) -> None:
    def keep(result: LevelResult) -> None:
        if collected.run is not None:
            collected.update(levels=(*collected.run.levels, result))

    try:
        keep(session.measure(level, sent, pace))
    except LevelStopped as early:
        keep(early.result)
        collected.update(stopped=early.result.stopped)
        raise early.cause from None


def _accuracy(
    options: PerfOptions, recipe: Recipe | None, session: Session, collected: Collected, tell: Callable[[str], None]
) -> dict[str, Array] | None:
    """Measure accuracy where there is data for it; return samples to make the load of, None to make them up."""
    if recipe is None and options.dataset is None:
        collected.update(
            accuracy_skipped="no recipe of that name was found",
            data="random inputs of the shapes that the server names",
        )
        return None
    dataset = _load_data(options, recipe, session)
    held_out = dataset.split("test")
    collected.update(data=dataset.name, data_fingerprint=dataset.fingerprint)
    if not options.with_accuracy:
        collected.update(accuracy_skipped="switched off")
    elif held_out.labels is None:
        collected.update(accuracy_skipped="the data has no labels")
    else:
        values = session.infer(held_out.inputs)[session.model.outputs[0].name]
        collected.update(accuracy=accuracy.score(values, held_out.labels, dataset.classes))
        tell("accuracy")
    return held_out.inputs


def _load_data(options: PerfOptions, recipe: Recipe | None, session: Session) -> Dataset:
    if recipe is None:
        spec = DataSpec(source=str(options.dataset), arguments={"split": "test"})
        return datasets.load(spec, inputs=session.model.inputs, seed=options.seed, data_dir=options.data_dir)
    spec = recipe.data if options.dataset is None else replace(recipe.data, source=options.dataset)
    return datasets.load(spec, inputs=recipe.model.inputs, seed=recipe.seed, data_dir=options.data_dir)


def find_recipe(model: str, given: str | None, work: Path) -> tuple[Recipe | None, str]:
    """Return a model's recipe and where it was found: as given, in the build folder, or among the built-ins.

    Raises:
        RecipeError: The given one cannot be understood.
    """
    if given:
        return recipes.load(given), "given"
    try:
        return artifacts.read(OnnxArtifact, work / model / "onnx").recipe, str(work / model / "onnx")
    except RepoBuilderError:
        pass
    return (recipes.load(model), "built in") if model in recipes.built_in() else (None, "")


def default_levels(recipe: Recipe | None, max_batch_size: int) -> tuple[Level, ...]:
    """Return the recipe's grid, or batch 1 and 8 at concurrency 1 and 4, as far as the model takes such batches."""
    sizes: Sequence[int] = recipe.measure.batch_sizes if recipe else (1, 8)
    lines: Sequence[int] = recipe.measure.concurrency if recipe else (1, 4)
    fitting = [size for size in sizes if size <= max(1, max_batch_size)] or [1]
    return tuple(Level(concurrency=line, batch_size=size) for size in fitting for line in lines)
