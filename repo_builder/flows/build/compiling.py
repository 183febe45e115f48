"""The second stage: OnnxArtifact → compile target → EngineArtifact, scored on the same held-out samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from repo_builder import compile
from repo_builder.compile import CompileOptions, CompileTarget
from repo_builder.core import artifacts, environment, files, progress
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.details import EngineDetails, OnnxRuntimeDetails
from repo_builder.core.recipe import Recipe
from repo_builder.core.records import AccuracyRecord
from repo_builder.datasets import Dataset
from repo_builder.flows.build import keys
from repo_builder.flows.build import scores as scoring
from repo_builder.flows.build.options import BuildOptions, current


def choose(options: BuildOptions) -> CompileTarget:
    """Return the target that was asked for, before the work that would be in vain without it, and say why.

    Raises:
        CompileError: It is unavailable on this machine.
        MissingDependency: Its library is not installed.
    """
    target, reason = compile.choose(options.target or options.recipe.compile.target)
    progress.stderr_console().print(f"target: {reason}")
    return target


def run(
    exported: OnnxArtifact, target: CompileTarget, options: BuildOptions, dataset: Dataset | None, skipped: list[str]
) -> EngineArtifact:
    """Compile and score, or find what is up to date; ``skipped`` takes the stage's name then.

    Args:
        exported: The ONNX artifact.
        target: What ``choose`` returned.
        options: What of it is asked for.
        dataset: Its held-out samples score the engine; None where it is not on this machine.
        skipped: Names of the stages that were up to date.

    Raises:
        CompileError: The target refused the graph.
    """
    recipe = options.recipe
    made_of = exported.details
    provenance = {name: getattr(made_of, name) for name in ("calibration_samples", "weights_sha256")}
    folder = options.work / recipe.name / "engine"
    key = files.sha256_of_json({
        "exported": exported.files,
        "provenance": provenance,
        "compile": recipe.to_dict()["compile"],
        "max_batch_size": recipe.repository.max_batch_size,
        "target": target.name,
        "versions": target.versions(recipe),
        "code": keys.code_version("compile"),
        "mismatch": options.allow_precision_mismatch,
        "data": dataset.fingerprint if dataset else None,
    })  # fmt: skip
    found = None if options.force else current(EngineArtifact, folder, key, recipe)
    if found is not None:
        skipped.append("compile")
        progress.skipped("compile", f"up to date  {folder}")
        return found
    with files.replacing_folder(folder) as fresh:
        details = _compile_into(fresh, target, exported, options, shown=folder)
        scored = _score_engine(fresh, target, details, exported, dataset, recipe)
        details = dataclasses.replace(
            details,
            # repeated, so that a placed model tells alone what it was made of
            calibration_samples=made_of.calibration_samples,
            weights_sha256=made_of.weights_sha256,
            onnx_sha256=files.sha256_of(exported.model),
            recipe_sha256=files.sha256_of_json(recipe.to_dict()),
            data_sha256=dataset.fingerprint if scored and dataset else None,
        )
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
) -> EngineDetails:
    with progress.step(f"compile ({target.name})") as step:
        details = target.compile(
            exported,
            folder,
            options=CompileOptions(
                recipe=options.recipe,
                layer_precisions=dict(exported.details.layer_precisions),
                cache_folder=options.work / ".cache",
                allow_precision_mismatch=options.allow_precision_mismatch,
            ),
        )
        for item in sorted(folder.glob("model.*")):
            step.wrote(item, shown=shown / item.name)
    for note in details.notes:
        progress.stderr_console().print(f"  {note}", markup=False)
    return details


def _score_engine(
    folder: Path,
    target: CompileTarget,
    details: EngineDetails,
    exported: OnnxArtifact,
    dataset: Dataset | None,
    recipe: Recipe,
) -> tuple[AccuracyRecord, ...]:
    """Score the compiled model beside the exported one; nothing where the data or the hardware is not here."""
    if dataset is None:
        return ()
    accelerator = details.accelerator if isinstance(details, OnnxRuntimeDetails) else "none"
    if accelerator != "none" and not environment.gpus():
        progress.skipped("score engine", f"its provider ({accelerator}) needs a GPU")
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
