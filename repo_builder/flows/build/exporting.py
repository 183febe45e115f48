"""The first stage: recipe → model + data → fp32 graph → ranges → OnnxArtifact."""

from __future__ import annotations

import dataclasses

from repo_builder import models
from repo_builder.core import artifacts, environment, files, kept, progress, watching
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.core.details import OnnxDetails
from repo_builder.core.environment import Saturation
from repo_builder.core.errors import DataError, ModelError
from repo_builder.core.recipe import Recipe
from repo_builder.core.records import AccuracyRecord
from repo_builder.datasets import Dataset
from repo_builder.flows.build import finetuning, forms, keys, scores, varying
from repo_builder.flows.build.options import BuildOptions, current
from repo_builder.measure.judge import accuracy
from repo_builder.measure.judge.ladder import scored_output

# What an exported artifact depends on: a change in any of these makes it again.
_CODE = (
    "models",
    "datasets",
    "quantize",
    "export",
    "flows/build",
    "core/graphs.py",
    "core/samples.py",
    "measure/judge",
)

_PROBED = 8  # samples that a live module is run on to tell whether it is the one of the last build


def run(options: BuildOptions, dataset: Dataset, placement: tuple[str, Saturation]) -> tuple[OnnxArtifact, bool]:
    """Export, or find what is up to date; return the artifact and whether it was.

    Args:
        options: What is asked for.
        dataset: Samples.
        placement: That of the target that will be compiled for; fine-tuning trains for it.

    Raises:
        RepoBuilderError: The branch tells what failed; what was there before is untouched.
    """
    recipe, folder = options.recipe, options.work / options.recipe.name / "onnx"
    source = _source(options, dataset)
    parts = recipe.to_dict()
    for name in ("checkpoint", *(("source", "arguments") if source.module is not None else ())):
        parts["model"].pop(name, None)  # the weights' hash tells of these
    parts["quantize"].pop("keep", None)  # compiling decides it
    spec = recipe.finetune
    trained_for = None if spec is None else finetuning.placement(spec, placement)
    if spec is not None:
        parts["model"]["finetune"] = [parts["finetune"], trained_for, recipe.measure.task, recipe.measure.output]
    if _judges(recipe):
        parts["export"]["judged_for"] = recipe.compile.target == "tensorrt"
    key = files.sha256_of_json({
        "recipe": {name: parts[name] for name in ("model", "data", "quantize", "export", "seed")},
        "weights": source.fingerprint,
        "data": dataset.fingerprint,
        "code": keys.code_version(*_CODE),
        "user_code": keys.user_code(recipe),
        "libraries": keys.versions("torch", "onnx", "onnxscript", "onnxruntime", "numpy", recipe.quantize.backend),
    })  # fmt: skip

    def rescored(old: OnnxArtifact) -> tuple[AccuracyRecord, ...]:
        outputs, held_out = kept.load(old.path), dataset.split("test")
        return scores.score_forms(outputs, held_out, dataset.classes, recipe, old.layers)

    found = None if options.force else current(OnnxArtifact, folder, key, recipe, rescored)
    if found is not None and watching.unchanged(found.details.read):
        progress.skipped("quantize and export", f"up to date  {folder}")
        return found, True
    _check_data(dataset, source, recipe)
    with files.replacing_folder(folder) as fresh:
        calibration, held_out = dataset.split("calibration"), dataset.split("test")
        made = forms.export(
            recipe,
            source,
            calibration.inputs,
            held_out.inputs,
            fresh,
            shown=folder,
            data=dataset.fingerprint,
            earlier=folder / artifacts.RANGES,
        )
        for finding in varying.false_axes(fresh / artifacts.FP32_MODEL, recipe.model.inputs, held_out.inputs):
            progress.warn(str(finding))
        tuned = None
        if spec is not None and trained_for is not None:
            state = finetuning.state_file(options.work, recipe)
            tuned = finetuning.tune(recipe, spec, dataset, made, fresh, trained_for=trained_for, state=state)
            made = dataclasses.replace(
                made, layers=tuned.layers, outputs={**made.outputs, finetuning.FORM: tuned.outputs}
            )
        kept.save(fresh, made.outputs)
        artifact = OnnxArtifact(
            path=fresh,
            key=key,
            recipe=recipe,
            inputs=made.taking.batches.inputs,
            outputs=made.taking.batches.outputs,
            classes=dataset.classes,
            files=artifacts.hashes(fresh),
            environment=environment.describe(),
            layers=made.layers,
            accuracy=scores.score_forms(made.outputs, held_out, dataset.classes, recipe, made.layers),
            details=OnnxDetails(
                as_it_came=made.as_it_came,
                calibration_samples=len(calibration),
                alone=made.taking.alone,
                read=made.read,
                weights=source.description,
                weights_sha256=source.fingerprint,
                data=dataset.name,
                data_sha256=dataset.fingerprint,
                finetuned=tuned.record if tuned else None,
                repairs=made.repairs,
                exporter=made.exporter,
            ),
        )
        artifacts.write_manifest(artifact)
    finetuning.state_file(options.work, recipe).with_suffix(".resume").unlink(missing_ok=True)
    return dataclasses.replace(artifact, path=folder), False


def _judges(recipe: Recipe) -> bool:
    """Whether ranges depend on the target: where repairs or calibrators are judged by a graph placed for it."""
    rules = recipe.quantize.layers
    best = any("best" in (rule.input.calibrator, rule.weight.calibrator) for rule in rules)
    return best or recipe.quantize.repair.asked


def _source(options: BuildOptions, dataset: Dataset) -> forms.Source:
    """Return the network that a program gave, or the recipe's."""
    if options.module is None:
        return forms.source(options.recipe, options.checkpoint)
    if options.checkpoint is not None:
        raise ModelError("a module brings its weights", where="checkpoint", hint="leave it out, or load it first")
    some = dataset.split("calibration").inputs
    return forms.live_source(options.recipe, options.module, {name: item[:_PROBED] for name, item in some.items()})


def _check_data(dataset: Dataset, source: forms.Source, recipe: Recipe) -> None:
    """Refuse classes that the output cannot tell apart, and warn of weights that were trained on held-out samples."""
    if recipe.measure.task == "classification":
        dataset.require_class_numbers()
    name = scored_output(recipe.model.outputs, recipe.measure.output, len(dataset.classes))
    output = next(item for item in recipe.model.outputs if item.name == name)
    size = output.shape[-1] if output.shape else 0
    told = accuracy.told_apart(dataset.classes, max(0, size))
    if recipe.measure.task == "classification" and dataset.classes and told != size:
        message = f"has {len(dataset.classes)} classes, the output is {output}"
        hint = 'make both the same, or set measure.task = "other" where outputs are not classes'
        raise DataError(message, where=dataset.name, hint=hint)
    trained_on = {} if source.is_onnx or source.path is None else models.checkpoint_facts(source.path)
    if trained_on.get("held_out", dataset.held_out) != dataset.held_out:
        progress.warn(
            f"{source.description} was trained with another split of the data: samples that are held out here may have "
            "trained it, and accuracies below may be too good"
        )
