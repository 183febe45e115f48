"""What a build left on this machine for a measurement to use: the recipe, each form's outputs, the engine itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from repo_builder import recipes
from repo_builder.compile import target as compile_target
from repo_builder.core import artifacts, kept, loading, pipelines
from repo_builder.core.artifacts import Artifact, EngineArtifact, OnnxArtifact
from repo_builder.core.errors import RepoBuilderError
from repo_builder.core.pipelines import Pipeline
from repo_builder.core.recipe import Recipe
from repo_builder.core.records import LayerRecord
from repo_builder.core.tensors import Array, TensorSpec
from repo_builder.measure.judge.ladder import scored_output
from repo_builder.measure.wire.payloads import Inputs
from repo_builder.results import BuildIdentity

_WARM_UP = 3
_LEAST_RUNS = 10
_LEAST_S = 0.3
A = TypeVar("A", bound=Artifact)


@dataclass(frozen=True, kw_only=True)
class Client:
    """What clients send and get.

    Attributes:
        inputs: Inputs, batch left out.
        outputs: Outputs, likewise.
        scored: Name of the output that is scored.
        ranked: Names of the outputs of the best classes and their scores, where those are what is scored.
        width: Number of classes that the best are of.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    scored: str = ""
    ranked: tuple[str, ...] = ()
    width: int = 0


@dataclass(frozen=True, kw_only=True)
class Build:
    """What is known of a model beside what its server says.

    Attributes:
        recipe: Its recipe; None where none was found.
        origin: Where the recipe was found.
        exported: The exported model's artifact; None where no build is at hand.
        engine: The compiled model's artifact; None where it is not at hand.
        pipeline: The pipeline around it; None where there is none, or it is not at hand.
    """

    recipe: Recipe | None = None
    origin: str = ""
    exported: OnnxArtifact | None = None
    engine: EngineArtifact | None = None
    pipeline: Pipeline | None = None

    def client(self, recipe: Recipe, classes: tuple[str, ...] = ()) -> Client:
        """Return what clients send and get, as far as classes are known.

        Raises:
            RecipeError: The recipe's pipeline makes no sense.
        """
        model = recipe.model
        if not recipe.pipeline.some:
            name = scored_output(model.outputs, recipe.measure.output, len(classes))
            return Client(inputs=model.inputs, outputs=model.outputs, scored=name)
        if self.pipeline is not None:
            found = self.pipeline
            return Client(
                inputs=found.inputs, outputs=found.outputs, scored=found.scored, ranked=found.ranked, width=found.width
            )
        from repo_builder.pipeline import chain, scored

        resolved = chain.resolve(recipe.pipeline, model)
        judged = scored.scored(resolved, recipe.measure, classes)
        return Client(
            inputs=resolved.inputs,
            outputs=resolved.outputs,
            scored=judged.name,
            ranked=judged.ranked,
            width=judged.width,
        )

    @property
    def layers(self) -> tuple[LayerRecord, ...]:
        """The layers as the manifest records them."""
        artifact = self.engine or self.exported
        return artifact.layers if artifact else ()

    @property
    def exporter(self) -> str:
        """Who wrote a torch module's graph, and why; empty where that is not known."""
        return self.exported.details.exporter if self.exported else ""

    @property
    def searched(self) -> Path | None:
        """The page of what a search tried before it chose the layers; None where none did, or it is not at hand."""
        if self.engine is None or not self.engine.details.searched:
            return None  # a page that lies there is of an earlier build
        page = self.engine.path.parent / artifacts.SEARCH_PAGE
        return page.resolve() if page.is_file() else None

    def not_served(self, served: BuildIdentity | None) -> str:
        """Return why the model that runs is not this build; empty where it is, or where there is none of either.

        Args:
            served: Which build the served configuration says that it is; None where it says none.
        """
        at_hand = self.engine or self.exported
        if at_hand is None and served is None:
            return ""
        if at_hand is None:
            return f"the model that runs is of a build that is not at hand (recipe '{served.recipe}')" if served else ""
        head = f"the model that runs is not the build in {at_hand.path.parent}"
        if self.engine is None:
            return f"{head}: that was never compiled"
        mine = identity(self.engine, self.pipeline)
        if served is None:
            return f"{head}, as far as its configuration says: it names no build"
        if served.recipe != mine.recipe:
            return f"{head}: it was built from the recipe '{served.recipe}', and that from '{mine.recipe}'"
        if served != mine:
            theirs, ours = (f"engine {item.engine_sha256[:12]}" for item in (served, mine))
            if theirs == ours:  # the same file, made of other settings or data
                theirs, ours = (f"build {item.build_key[:12]}" for item in (served, mine))
            return (
                f"{head}: that was built anew, and the server still runs the one before ({theirs}, not {ours}); run "
                "repo-builder serve --restart"
            )
        return ""

    def without_artifacts(self) -> Build:
        """Return what is left where another model runs: the recipe, for its data."""
        return replace(self, exported=None, engine=None, pipeline=None)

    def is_of(self, fingerprint: str) -> bool:
        """Whether the outputs are of a data set's samples, as far as the manifests say of which they are."""
        if self.pipeline is not None:  # what clients send is before its steps, what the network was fed behind them
            return self.pipeline.data_sha256 in (None, fingerprint)
        artifacts = (item for item in (self.exported, self.engine) if item)
        return all(item.details.data_sha256 in (None, fingerprint) for item in artifacts)

    def through(self) -> dict[str, dict[str, Array]]:
        """Return what clients get on the held-out samples: of the compiled network by itself, and of the pipeline.

        Raises:
            RepositoryError: The file of them is damaged.
        """
        return kept.load(self.pipeline.path) if self.pipeline is not None else {}

    def outputs(self) -> dict[str, dict[str, Array]]:
        """Return each form's outputs on the held-out samples, ``(n, ...)`` by name, in the order in which they derive.

        Raises:
            RepositoryError: A file of them is damaged.
        """
        found: dict[str, dict[str, Array]] = {}
        for artifact in (self.exported, self.engine):
            if artifact is not None:
                found |= {form.replace("_", "-"): outputs for form, outputs in kept.load(artifact.path).items()}
        return found


def find(model: str, given: str | None, work: Path) -> Build:
    """Find a model's build and recipe: the given recipe, the build folder's, or the built-in of that name.

    Args:
        model: The model's name.
        given: A recipe that the user named.
        work: Folder of the build's artifacts.

    Raises:
        RecipeError: The given recipe cannot be understood.
    """
    exported, engine = _read(OnnxArtifact, work / model / "onnx"), _read(EngineArtifact, work / model / "engine")
    there: dict[str, Any] = {"exported": exported, "engine": engine, "pipeline": _pipeline(exported, work / model)}
    if given:
        return Build(recipe=recipes.load(given), origin="given", **there)
    if exported is not None:
        return Build(recipe=exported.recipe, origin=str(exported.path), **there)
    if model in recipes.built_in():
        return Build(recipe=recipes.load(model), origin="built in")
    return Build()


def identity(engine: EngineArtifact, pipeline: Pipeline | None = None) -> BuildIdentity:
    """Return which build a compiled model is, with the pipeline around it."""
    digest = engine.files.get(engine.model.name, "")
    key = pipeline.key if pipeline else engine.key
    return BuildIdentity(engine_sha256=digest, build_key=key, recipe=engine.recipe.name)


def _pipeline(exported: OnnxArtifact | None, folder: Path) -> Pipeline | None:
    if exported is None or not exported.recipe.pipeline.some:
        return None
    try:
        return pipelines.read(folder / "pipeline")
    except RepoBuilderError:
        return None


class EngineClock:
    """Times the compiled model alone, in this process, where the build and the library are at hand.

    Args:
        engine: The compiled model; None where it is not at hand.
        config: The served configuration: its threads, optimization and providers are used.
        missing: Why it cannot be timed; empty where it can.
    """

    def __init__(self, engine: EngineArtifact | None, config: Mapping[str, Any], missing: str = "") -> None:
        self._engine = None if missing else engine
        self._config = config
        self._known: dict[object, float] = {}
        self.missing = missing or ("" if engine else "no build of the model that runs is at hand (--work)")

    def median_us(self, batch_size: int, samples: Inputs) -> float | None:
        """Return the median time of a batch, microseconds; None where it cannot be had, which ``missing`` explains.

        Args:
            batch_size: Its size.
            samples: ``(n, *shape)`` by input name; the batch is taken from them.
        """
        if self._engine is None:
            return None
        what = (batch_size, tuple(array[0].shape for array in samples.values()))
        if what not in self._known:
            try:
                self._known[what] = self._timed(self._engine, _batch(samples, batch_size))
            except RepoBuilderError as error:
                self.missing, self._engine = str(error), None
                return None
        return self._known[what]

    def _timed(self, engine: EngineArtifact, batch: dict[str, Array]) -> float:
        target = compile_target(engine.target)
        if engine.target != "onnxruntime":
            with target.runner(engine.model, engine.details) as runner:
                return _median_us(runner, batch)
        # The session that the server has: its threads, optimization and provider.
        groups: Any = self._config.get("instance_group") or ({},)
        kind = "GPU" if str(groups[0].get("kind", "")) == "KIND_GPU" else "CPU"
        device = str(next(iter(groups[0].get("gpus") or ()), 0))
        with loading.needs("onnxruntime", what="timing the engine alone"):
            from repo_builder.serve.backends.onnxruntime import settings
        providers = settings.providers(self._config, kind=kind, device=device)
        session = settings.open_session(engine.model, self._config, providers)
        options, names = settings.run_options(self._config), [item.name for item in session.get_outputs()]
        return _median_us(lambda feed: session.run(names, feed, options), batch)


def _batch(samples: Inputs, size: int) -> dict[str, Array]:
    """Return so many samples, from the start again where there are too few; of different shapes only the first."""
    return {
        name: np.stack([array[0]] * size) if isinstance(array, list) else array[np.arange(size) % len(array)]
        for name, array in samples.items()
    }


def _median_us(run: Callable[[dict[str, Array]], object], batch: dict[str, Array]) -> float:
    for _ in range(_WARM_UP):
        run(batch)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < _LEAST_RUNS or time.perf_counter() - begin < _LEAST_S:
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e6


def _read(kind: type[A], folder: Path) -> A | None:
    try:
        return artifacts.read(kind, folder)
    except RepoBuilderError:
        return None
