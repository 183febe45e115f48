"""The first stage: recipe → model + data → fp32 graph → ranges → OnnxArtifact."""

from __future__ import annotations

import dataclasses

import numpy as np

from repo_builder import models
from repo_builder.core import artifacts, environment, files, progress
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.core.details import OnnxDetails
from repo_builder.core.errors import DataError
from repo_builder.core.recipe import Recipe
from repo_builder.datasets import Dataset
from repo_builder.flows.build import forms as exporting
from repo_builder.flows.build import keys
from repo_builder.flows.build import scores as scoring
from repo_builder.flows.build.options import BuildOptions, current

# What an exported artifact depends on: a change in any of these makes it again.
_CODE = ("models", "datasets", "quantize", "export", "flows/build", "core/graphs.py", "measure/judge/accuracy.py")


def run(options: BuildOptions, dataset: Dataset, skipped: list[str]) -> OnnxArtifact:
    """Export, or find what is up to date; ``skipped`` takes the stage's name then.

    Raises:
        RepoBuilderError: The branch tells what failed; what was there before is untouched.
    """
    recipe, folder = options.recipe, options.work / options.recipe.name / "onnx"
    source = exporting.source(recipe, options.checkpoint)
    parts = recipe.to_dict()
    parts["model"].pop("checkpoint", None)
    key = files.sha256_of_json({
        "recipe": {name: parts[name] for name in ("model", "data", "quantize", "export", "seed")},
        "task": recipe.measure.task,  # decides how forms are scored; what else perf measures is none of it
        "weights": source.fingerprint,
        "data": dataset.fingerprint,
        "code": keys.code_version(*_CODE),
        "user_code": keys.user_code(recipe),
        "libraries": keys.versions("torch", "onnx", "onnxruntime", "numpy", recipe.quantize.backend),
    })  # fmt: skip
    found = None if options.force else current(OnnxArtifact, folder, key, recipe)
    if found is not None:
        skipped.append("export")
        progress.skipped("quantize and export", f"up to date  {folder}")
        return found
    _check_data(dataset, source, recipe)
    with files.replacing_folder(folder) as fresh:
        calibration, held_out = dataset.split("calibration"), dataset.split("test")
        made = exporting.export(
            recipe,
            source,
            calibration.inputs,
            held_out.inputs,
            fresh,
            shown=folder,
            data=dataset.fingerprint,
            earlier=folder / exporting.RANGES,
        )
        first = {form: values[recipe.model.outputs[0].name] for form, values in made.outputs.items()}
        np.savez(fresh / "outputs.npz", **first)
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
            accuracy=tuple(scoring.score_forms(first, held_out, dataset.classes, recipe)),
            details=OnnxDetails(
                as_it_came=made.as_it_came,
                calibration_samples=len(calibration),
                weights=source.description,
                weights_sha256=source.fingerprint,
                data=dataset.name,
                data_sha256=dataset.fingerprint,
            ),
        )
        artifacts.write_manifest(artifact)
    return dataclasses.replace(artifact, path=folder)


def _check_data(dataset: Dataset, source: exporting.Source, recipe: Recipe) -> None:
    """Refuse classes that the output cannot tell apart, and warn of weights that were trained on held-out samples."""
    output = recipe.model.outputs[0]
    if recipe.measure.task == "classification" and dataset.classes and output.shape[-1:] != (len(dataset.classes),):
        message = f"has {len(dataset.classes)} classes, the output is {output}"
        hint = 'make both the same, or set measure.task = "other" where outputs are not classes'
        raise DataError(message, where=dataset.name, hint=hint)
    trained_on = {} if source.is_onnx or source.path is None else models.checkpoint_facts(source.path)
    if trained_on.get("held_out", dataset.held_out) != dataset.held_out:
        progress.warn(
            f"{source.description} was trained with another split of the data: samples that are held out here may have "
            "trained it, and accuracies below may be too good"
        )
