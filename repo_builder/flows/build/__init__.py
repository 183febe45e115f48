"""The order of the stages, and nothing else: each is skipped where its inputs' hash has not changed.

    recipe → (search, where it is asked for)
           → model + data → quantize + calibrate → export → OnnxArtifact  (build/<name>/onnx)
                                        compile → EngineArtifact          (build/<name>/engine)
                 steps of [pipeline] ─ join steps → Pipeline              (build/<name>/pipeline)
                                          place → model repository

Stages never import each other; values are handed on here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from repo_builder.compile import CompileTarget
from repo_builder.core import artifacts, files, loading, progress
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.errors import DataError, MissingDependency
from repo_builder.core.pipelines import Pipeline
from repo_builder.datasets import Dataset
from repo_builder.flows import search
from repo_builder.flows.build import compiling, exporting, finetuning, joining, keys, piping, placing, scores
from repo_builder.flows.build.options import BuildOptions, BuildResult
from repo_builder.flows.build.piping import Piped
from repo_builder.report import choice, precision_page

__all__ = ["BuildOptions", "BuildResult", "build", "compile_artifact", "load_exported"]


def build(options: BuildOptions) -> BuildResult:
    """Run every stage that is not up to date.

    Raises:
        RepoBuilderError: The branch tells which stage failed; what was there before is untouched.
    """
    recipe = options.recipe
    for folder in (options.work, options.repository):
        files.require_writable(folder)
    finetuning.check(recipe)
    for key, named in keys.code_names(recipe).items():
        if key == "model.source" and options.module is not None:  # nobody calls it
            continue
        if named.rpartition(":")[2].isidentifier() and not Path(named).exists():  # a file's name may have a colon, too
            loading.require_user(named, where=key)
    spec = search.wanted(recipe, options)
    piped = piping.begin(options)
    target = compiling.choose(options, Path(recipe.model.source) if recipe.model.source.endswith(".onnx") else None)
    piping.refuse_target(recipe, target.name)
    placing.warn_of_another(options)
    with progress.step("load data") as step:
        raw = piping.load_data(options, piped)
        if piped:
            piped.require_labels(raw.classes)
        dataset = piped.through(raw) if piped else raw
        step.note(f"{dataset.name}: {len(dataset.split('test'))} samples held out")
    found = search.search(options, target, dataset, spec, options.timings) if spec else None
    if found is not None:
        options = dataclasses.replace(options, recipe=found.recipe)
    exported, known = exporting.run(options, dataset, target.placement(options.recipe))
    engine, built = compiling.run(exported, target, options, dataset)
    if found is not None:
        engine = _searched(engine, found)
    result = _placed(exported, engine, options, {"export": known, "compile": built}, piped, target, raw)
    return dataclasses.replace(result, searched=found.path if found else None)


def compile_artifact(exported: OnnxArtifact, options: BuildOptions) -> BuildResult:
    """Compile what another machine exported, and place it: the artifact's folder is all that is needed.

    Args:
        exported: What ``load_exported`` returned.
        options: As for ``build``; ``recipe`` is the artifact's own, with settings applied.

    Raises:
        RepoBuilderError: As ``build``.
    """
    named = () if options.trust_code else keys.code_names(exported.recipe).values()
    with loading.distrusting(named, origin=exported.path / artifacts.MANIFEST):
        return _compile(exported, options)


def _compile(exported: OnnxArtifact, options: BuildOptions) -> BuildResult:
    target = compiling.choose(options, exported.model)
    piping.refuse_target(options.recipe, target.name)
    placing.warn_of_another(options)
    exported = dataclasses.replace(exported, recipe=options.recipe)
    piped = piping.copied(options)
    raw: Dataset | None = None
    dataset: Dataset | None = None
    try:
        raw = piping.load_data(options, piped)
        dataset = piped.through(raw) if piped else raw
        if piped:
            dataset.split("test")  # whether its steps can be run here
    except DataError as error:
        raw = dataset = None
        progress.skipped(
            "score", f"the held-out data is not here ({error.message}); give --data-dir to score the engine"
        )
    except loading.UntrustedCode as error:
        raw = dataset = None
        progress.skipped("score", f"{error.message}; --trust-code does")
    except MissingDependency as error:
        raw = dataset = None
        progress.skipped("score", error.message)
    engine, built = compiling.run(exported, target, options, dataset)
    return _placed(exported, engine, options, {"export": True, "compile": built}, piped, target, raw)


def _searched(engine: EngineArtifact, found: search.Found) -> EngineArtifact:
    """Write into the engine's manifest what the search tried, so that its verdict can be told again, and its page."""
    details = dataclasses.replace(engine.details, tried=found.tried, searched=True)
    if details != engine.details:
        engine = dataclasses.replace(engine, details=details)
        artifacts.write_manifest(engine)
    facts = {"limit, points": found.max_drop, "held back": found.confirmed, "measuring, s": found.seconds}
    facts |= {"recipe": found.path, **engine.environment}
    page = precision_page.search_page(engine.recipe.name, found.tried, engine.layers, choice.verdict(engine), facts)
    files.write_text(found.path.parent / artifacts.SEARCH_PAGE, page)
    return engine


def _placed(
    exported: OnnxArtifact,
    engine: EngineArtifact,
    options: BuildOptions,
    up_to_date: dict[str, bool],
    piped: Piped | None,
    target: CompileTarget,
    raw: Dataset | None,
) -> BuildResult:
    """Join the network with its pipeline and place all of it, unless a form departs from the one before."""
    pipeline: Pipeline | None = None
    records = engine.accuracy
    if piped is not None:
        pipeline, up_to_date["join steps"] = joining.run(piped, engine, target, options, raw)
        records = (*records, *pipeline.accuracy)
    departures = scores.hold(records, engine.layers, accept=options.accept_departure)
    folder, there = placing.run(engine, options, pipeline)
    skipped = tuple(stage for stage, skip in {**up_to_date, "place": there}.items() if skip)
    return BuildResult(
        exported=exported,
        engine=engine,
        pipeline=pipeline,
        model_folder=folder,
        skipped=skipped,
        departures=departures,
    )


def load_exported(folder: Path) -> OnnxArtifact:
    """Read ``build/<name>/onnx``, which another machine may have made, and see that it was copied whole.

    Raises:
        RepositoryError: There is none, it is damaged, or its files are not those that its manifest lists.
    """
    exported = artifacts.read(OnnxArtifact, folder / "onnx")
    exported.require_whole()
    return exported
