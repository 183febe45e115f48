"""The order of the stages, and nothing else: each is skipped where its inputs' hash has not changed.

    recipe → model + data → quantize + calibrate → export → OnnxArtifact  (build/<name>/onnx)
                                        compile → EngineArtifact          (build/<name>/engine)
                                          place → model repository

Stages never import each other; values are handed on here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from repo_builder import artifacts, compile, datasets, environment, files, keys, progress, scoring
from repo_builder.artifacts import AccuracyRecord, Artifact, EngineArtifact, OnnxArtifact
from repo_builder.compile import CompileOptions, CompileTarget
from repo_builder.datasets import Dataset
from repo_builder.errors import DataError, RepositoryError
from repo_builder.recipe import Recipe
from repo_builder.repository import config, layout

A = TypeVar("A", bound=Artifact)

# What an exported artifact depends on: a change in any of these makes it again.
_EXPORT_CODE = ("models", "quantize", "export", "exporting.py", "pipeline.py", "scoring.py", "measure/accuracy.py")


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What ``repo-builder build`` was asked for.

    Attributes:
        recipe: The recipe, settings applied.
        work: Folder of the artifacts.
        repository: The model repository to write to.
        target: Compile target, ``auto`` or the recipe's where None.
        checkpoint: Weights instead of the recipe's.
        data_dir: Folder of the data set instead of a download.
        force: Whether stages that are up to date run again.
        version: ``replace``, ``next`` or a version's number.
        keep_versions: Versions kept in the repository; None takes the recipe's.
        allow_precision_mismatch: Whether a layer may end in another precision than asked.
    """

    recipe: Recipe
    work: Path
    repository: Path
    target: str | None = None
    checkpoint: Path | None = None
    data_dir: Path | None = None
    force: bool = False
    version: int | Literal["replace", "next"] = "replace"
    keep_versions: int | None = None
    allow_precision_mismatch: bool = False


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """What a build made.

    Attributes:
        exported: The ONNX artifact.
        engine: The engine artifact.
        model_folder: The model's folder in the repository.
        skipped: Names of the stages that were up to date.
    """

    exported: OnnxArtifact
    engine: EngineArtifact
    model_folder: Path
    skipped: tuple[str, ...]


def build(options: BuildOptions) -> BuildResult:
    """Run every stage that is not up to date.

    Raises:
        RepoBuilderError: The branch tells which stage failed; what was there before is untouched.
    """
    skipped: list[str] = []
    recipe = options.recipe
    for folder in (options.work, options.repository):
        files.require_writable(folder)
    with progress.step("load data") as step:
        dataset = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed, data_dir=options.data_dir)
        step.note(f"{dataset.name}: {len(dataset.split('test'))} samples held out")
    exported = _export(options, dataset, skipped)
    engine = _compile(exported, options, dataset, skipped)
    folder = _place(engine, options, skipped)
    return BuildResult(exported=exported, engine=engine, model_folder=folder, skipped=tuple(skipped))


def compile_artifact(folder: Path, options: BuildOptions) -> BuildResult:
    """Compile what another machine exported, and place it: the artifact's folder is all that is needed.

    Args:
        folder: ``build/<name>``, which holds ``onnx``.
        options: As for ``build``; ``recipe`` is the artifact's own, with settings applied.

    Raises:
        RepoBuilderError: As ``build``.
    """
    skipped: list[str] = ["export"]
    exported = dataclasses.replace(artifacts.read(OnnxArtifact, folder / "onnx"), recipe=options.recipe)
    recipe = options.recipe
    dataset: Dataset | None = None
    try:
        dataset = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed, data_dir=options.data_dir)
    except DataError as error:
        progress.skipped(
            "score", f"the held-out data is not here ({error.message}); give --data-dir to score the engine"
        )
    engine = _compile(exported, options, dataset, skipped)
    placed = _place(engine, options, skipped)
    return BuildResult(exported=exported, engine=engine, model_folder=placed, skipped=tuple(skipped))


def load_exported(folder: Path) -> OnnxArtifact:
    """Read ``build/<name>/onnx``.

    Raises:
        RepositoryError: There is none, or it is damaged.
    """
    return artifacts.read(OnnxArtifact, folder / "onnx")


# --- export ---------------------------------------------------------------------------------------------------------


def _export(options: BuildOptions, dataset: Dataset, skipped: list[str]) -> OnnxArtifact:
    from repo_builder import exporting

    recipe, folder = options.recipe, options.work / options.recipe.name / "onnx"
    source = exporting.source(recipe, options.checkpoint)
    parts = recipe.to_dict()
    parts["model"].pop("checkpoint", None)
    key = files.sha256_of_json({
        "recipe": {name: parts[name] for name in ("model", "data", "quantize", "export", "seed", "measure")},
        "weights": source.fingerprint,
        "data": dataset.fingerprint,
        "code": keys.code_version(*_EXPORT_CODE),
        "user_code": keys.user_code(recipe),
        "libraries": keys.versions("torch", "onnx", "onnxruntime", "numpy", recipe.quantize.backend),
    })  # fmt: skip
    current = None if options.force else _current(OnnxArtifact, folder, key, recipe)
    if current is not None:
        skipped.append("export")
        progress.skipped("quantize and export", f"up to date  {folder}")
        return current
    with files.replacing_folder(folder) as fresh:
        calibration, held_out = dataset.split("calibration"), dataset.split("test")
        made = exporting.export(recipe, source, calibration.inputs, held_out.inputs, fresh, shown=folder)
        np.savez(fresh / "outputs.npz", **made.outputs)
        artifact = OnnxArtifact(
            path=fresh,
            key=key,
            recipe=recipe,
            inputs=recipe.model.inputs,
            outputs=recipe.model.outputs,
            classes=dataset.classes,
            files=artifacts.hashes(fresh),
            environment=environment.describe(),
            layers=made.layers,
            accuracy=tuple(scoring.score_forms(made.outputs, held_out, dataset.classes, recipe)),
            details={
                "layer_precisions": made.layer_precisions,
                "calibration_samples": len(calibration),
                "weights": source.description,
                "weights_sha256": source.fingerprint,
                "data": dataset.name,
            },
        )
        artifacts.write_manifest(artifact)
    return dataclasses.replace(artifact, path=folder)


# --- compile --------------------------------------------------------------------------------------------------------


def _compile(
    exported: OnnxArtifact, options: BuildOptions, dataset: Dataset | None, skipped: list[str]
) -> EngineArtifact:
    recipe = options.recipe
    target, reason = compile.choose(options.target or recipe.compile.target)
    progress.stderr_console().print(f"target: {reason}")
    folder = options.work / recipe.name / "engine"
    key = files.sha256_of_json({
        "exported": exported.files,
        "compile": recipe.to_dict()["compile"],
        "max_batch_size": recipe.repository.max_batch_size,
        "target": target.name,
        "versions": target.versions(recipe),
        "code": keys.code_version("compile"),
        "mismatch": options.allow_precision_mismatch,
        "data": dataset.fingerprint if dataset else None,
    })  # fmt: skip
    current = None if options.force else _current(EngineArtifact, folder, key, recipe)
    if current is not None:
        skipped.append("compile")
        progress.skipped("compile", f"up to date  {folder}")
        return current
    with files.replacing_folder(folder) as fresh:
        details = _compile_into(fresh, target, exported, options, shown=folder)
        scored = _score_engine(fresh, target, details, exported, dataset, recipe)
        artifact = EngineArtifact(
            path=fresh,
            key=key,
            recipe=recipe,
            inputs=exported.inputs,
            outputs=exported.outputs,
            classes=exported.classes,
            files=artifacts.hashes(fresh),
            environment=environment.describe(),
            layers=exported.layers,
            accuracy=exported.accuracy + scored,
            details=details,
        )
        artifacts.write_manifest(artifact)
    return dataclasses.replace(artifact, path=folder)


def _compile_into(
    folder: Path, target: CompileTarget, exported: OnnxArtifact, options: BuildOptions, *, shown: Path
) -> dict[str, Any]:
    with progress.step(f"compile ({target.name})") as step:
        details = target.compile(
            exported,
            folder,
            options=CompileOptions(
                recipe=options.recipe,
                layer_precisions=exported.details["layer_precisions"],
                cache_folder=options.work / ".cache",
                allow_precision_mismatch=options.allow_precision_mismatch,
            ),
        )
        for item in sorted(folder.glob("model.*")):
            step.wrote(item, shown=shown / item.name)
    for note in details.get("notes", ()):
        progress.stderr_console().print(f"  {note}", markup=False)
    details["onnx_sha256"] = exported.files.get("model.onnx")
    details["recipe_sha256"] = files.sha256_of_json(options.recipe.to_dict())
    return details


def _score_engine(
    folder: Path,
    target: CompileTarget,
    details: dict[str, Any],
    exported: OnnxArtifact,
    dataset: Dataset | None,
    recipe: Recipe,
) -> tuple[AccuracyRecord, ...]:
    """Score the compiled model beside the exported one; nothing where the data or the hardware is not here."""
    if dataset is None:
        return ()
    if details.get("accelerator", "none") != "none" and not environment.gpus():
        progress.skipped("score engine", f"its provider ({details['accelerator']}) needs a GPU")
        return ()
    samples = dataset.split("test")
    model_file = next(item for item in folder.glob("model.*") if item.suffix in (".onnx", ".plan"))
    with progress.step("score engine") as step:
        with target.runner(model_file, details) as run:
            values = run(samples.inputs)[exported.outputs[0].name]
        np.savez(folder / "outputs.npz", engine=values)
        with np.load(exported.path / "outputs.npz") as saved:
            forms = {"onnx": saved["onnx"], target.name: values}
        record = scoring.score_forms(forms, samples, exported.classes, recipe)[-1]
        if record.top1 is not None:
            step.note(f"top-1 {record.top1:.4f} on {record.samples} samples")
    return (record,)


# --- place ----------------------------------------------------------------------------------------------------------


def _place(engine: EngineArtifact, options: BuildOptions, skipped: list[str]) -> Path:
    keep = options.keep_versions or options.recipe.repository.keep_versions
    if keep != engine.recipe.repository.keep_versions:
        repository = dataclasses.replace(engine.recipe.repository, keep_versions=keep)
        engine = dataclasses.replace(engine, recipe=dataclasses.replace(engine.recipe, repository=repository))
    folder = options.repository / engine.recipe.name
    if not options.force and _is_placed(engine, options, folder):
        skipped.append("place")
        progress.skipped("place", f"up to date  {folder}")
        return folder
    with progress.step("place") as step:
        placed = layout.place(engine, options.repository, version=options.version, keep_versions=keep)
        step.wrote(placed)
    return placed


def _is_placed(engine: EngineArtifact, options: BuildOptions, folder: Path) -> bool:
    """Whether the newest version in the repository is this engine under the config that would be written."""
    try:
        text = (folder / "config.pbtxt").read_text(encoding="utf-8")
        newest = max((int(item.name) for item in folder.iterdir() if item.name.isdecimal()), default=0)
        placed = artifacts.read(EngineArtifact, folder / str(newest))
        same = files.sha256_of(placed.path / engine.model.name) == engine.files[engine.model.name]
    except (OSError, RepositoryError):
        return False
    asked = options.version not in (newest, "replace", "next")
    return same and not asked and placed.key == engine.key and text == config.render(config.from_engine(engine))


def _current(cls: type[A], folder: Path, key: str, recipe: Recipe) -> A | None:
    """Return the artifact where it is up to date, with the present recipe in its manifest."""
    found = artifacts.up_to_date(cls, folder, key)
    if found is not None and found.recipe != recipe:
        found = dataclasses.replace(found, recipe=recipe)
        artifacts.write_manifest(found)
    return found
