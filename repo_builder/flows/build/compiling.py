"""The second stage: OnnxArtifact → placed graph → compile target → EngineArtifact, scored on the held-out samples."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from repo_builder.compile import CompileTarget
from repo_builder.compile import choose as choose_target
from repo_builder.compile.tensorrt.refusals import refusals
from repo_builder.core import artifacts, environment, files, kept, onnx_files, progress
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.details import EngineDetails, OnnxRuntimeDetails, TensorRTDetails
from repo_builder.core.errors import CompileError, MissingDependency
from repo_builder.core.recipe import Recipe
from repo_builder.core.records import AccuracyRecord, LayerRecord
from repo_builder.core.samples import Batches
from repo_builder.core.tensors import Array, DType, TensorSpec
from repo_builder.datasets import Dataset, Samples
from repo_builder.flows.build import forms, keys, lowering, paying, paying_plans, running, scores
from repo_builder.flows.build.making import Form, Making
from repo_builder.flows.build.options import BuildOptions, current
from repo_builder.flows.build.weighed import Kept
from repo_builder.measure.judge.limits import Limits
from repo_builder.quantize import leaving, table

_ENGINE = "engine"  # the compiled form among the outputs that are kept, whatever the target


def choose(options: BuildOptions, graph: Path | None = None) -> CompileTarget:
    """Return the target that was asked for, before the work that would be in vain without it, and say why.

    Args:
        options: What of it is asked for.
        graph: The network as .onnx, where there is one already: what no TensorRT takes is told without one.

    Raises:
        CompileError: It is unavailable on this machine, or does not run a precision that a rule asks for; or TensorRT,
            asked for by name, does not take the graph.
        MissingDependency: Its library is not installed.
    """
    name = options.target or options.recipe.compile.target
    if name == "tensorrt" and graph is not None and graph.is_file():
        _say_refusals(graph, name)
    target, reason = choose_target(name)
    progress.stderr_console().print(f"target: {reason}")
    target.check(options.recipe)
    lowering.refuse(options.recipe, target.placement(options.recipe))
    return target


def run(
    exported: OnnxArtifact, target: CompileTarget, options: BuildOptions, dataset: Dataset | None
) -> tuple[EngineArtifact, bool]:
    """Compile and score, or find what is up to date; return the artifact and whether it was.

    Args:
        exported: The ONNX artifact.
        target: What ``choose`` returned.
        options: What of it is asked for.
        dataset: Its held-out samples score the engine; None where it is not on this machine.

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
        "placement": target.placement(recipe),
        "quantize": recipe.to_dict()["quantize"],
        "limits": _limits(recipe),
        "max_batch_size": recipe.repository.max_batch_size,
        "target": target.name,
        "versions": target.versions(recipe),
        "code": keys.code_version("compile", "quantize", "export", "flows/build"),
        "mismatch": options.allow_precision_mismatch,
        "data": dataset.fingerprint if dataset else None,
    })  # fmt: skip

    def rescored(old: EngineArtifact) -> tuple[AccuracyRecord, ...]:
        if dataset is None or old.details.data_sha256 != dataset.fingerprint:
            return old.accuracy
        return _records(exported, old, dataset.split("test"), recipe)

    found = None if options.force else current(EngineArtifact, folder, key, recipe, rescored)
    if found is not None:
        progress.skipped("compile", f"up to date  {folder}")
        return found, True
    _say_refusals(exported.model, target.name)
    with files.replacing_folder(folder) as fresh:
        alone = bool(exported.details.alone)
        batches = running.batches_of(exported.model, exported.inputs, exported.outputs, alone=alone)
        details, layers = _compile_into(fresh, target, exported, options, batches, dataset, shown=folder)
        details = dataclasses.replace(
            details,
            # repeated, so that a placed model tells alone what it was made of
            calibration_samples=made_of.calibration_samples,
            weights_sha256=made_of.weights_sha256,
            onnx_sha256=files.sha256_of(exported.model),
            recipe_sha256=files.sha256_of_json(recipe.to_dict()),
        )
        artifact = EngineArtifact(
            path=fresh,
            key=key,
            recipe=recipe,
            inputs=_as_compiled(exported.inputs, details),
            outputs=_as_compiled(exported.outputs, details),
            classes=exported.classes,
            environment=environment.describe(),
            layers=layers,
            details=details,
        )
        scored = _score_engine(artifact, target, exported, batches, dataset)
        artifact = dataclasses.replace(
            artifact,
            files=artifacts.hashes(fresh),
            accuracy=scored or exported.accuracy,
            details=dataclasses.replace(details, data_sha256=dataset.fingerprint if scored and dataset else None),
        )
        artifacts.write_manifest(artifact)
    return dataclasses.replace(artifact, path=folder), False


def _say_refusals(graph: Path, target: str) -> None:
    """Say what no TensorRT's parser takes, also where there is none: this graph may be meant for one elsewhere.

    Raises:
        CompileError: It is TensorRT that is to take it.
    """
    found = refusals(onnx_files.load(graph))
    if not found:
        return
    message = "no TensorRT takes this graph: " + "; ".join(found)
    if target == "tensorrt":
        raise CompileError(message, where=str(graph), hint="use --target onnxruntime")
    progress.stderr_console().print(f"  {message}", markup=False)


def _as_compiled(tensors: tuple[TensorSpec, ...], details: EngineDetails) -> tuple[TensorSpec, ...]:
    """Return inputs or outputs with the types that the compiled model has."""
    narrow = details.narrowed if isinstance(details, TensorRTDetails) else ()
    return tuple(dataclasses.replace(item, dtype=DType.INT32) if item.name in narrow else item for item in tensors)


def _limits(recipe: Recipe) -> tuple[float | None, ...]:
    """Return the limits of the outputs, where they decide which int8 layers stay so."""
    limits = recipe.measure
    return () if recipe.quantize.keep == "all" else (limits.output_sqnr_db, limits.output_tolerance)


def _compile_into(
    folder: Path,
    target: CompileTarget,
    exported: OnnxArtifact,
    options: BuildOptions,
    batches: Batches,
    dataset: Dataset | None,
    *,
    shown: Path,
) -> tuple[EngineDetails, tuple[LayerRecord, ...]]:
    recipe, why = _batched(options.recipe, exported)
    making = Making(
        exported=exported,
        target=target,
        options=options,
        recipe=recipe,
        batches=batches,
        dataset=dataset,
        shown=shown,
    )
    chosen = _weighed(exported, target, options, batches, dataset)
    form = making.form(folder, chosen.left, unrepaired=chosen.unrepaired)
    plans = _plans_weighed(making, form)
    if plans.form is not form:
        plans.form.move(folder)
    for name in paying_plans.FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    lowered, details = plans.form.lowered, plans.form.details
    layers = table.became(lowered.layers, details.precisions)
    reasons = table.reasons(layers)
    details = dataclasses.replace(
        details,
        notes=(
            *_trained_for(exported, target.placement(options.recipe)[0]),
            *_repairs(exported, lowered),
            *chosen.notes,
            *plans.notes,
            *reasons,
            *table.sizes(layers),
            *lowered.notes,
            *details.notes,
        ),
        batching=why,
        tried=chosen.tried or plans.tried,
    )
    for note in (*details.notes, *([why] if why else [])):
        progress.stderr_console().print(f"  {note}", markup=False)
    return details, layers


def _repairs(exported: OnnxArtifact, lowered: lowering.Lowered) -> tuple[str, ...]:
    """Return a sentence for each repair, and one where chosen weights cannot be written as they were chosen."""
    said = tuple(f"repair: {item}" for item in exported.details.repairs)
    return (*said, *([lowered.rounding] if lowered.rounding else []))


def _weighed(
    exported: OnnxArtifact, target: CompileTarget, options: BuildOptions, batches: Batches, dataset: Dataset | None
) -> Kept:
    """Return which int8 and int4 layers stay so; all where the recipe says it, and where another target decides."""
    placement = target.placement(options.recipe)
    lower = any(row.asked in leaving.MAY_NOT_PAY for row in exported.layers)
    if placement[0] != "onnxruntime-cpu" or options.recipe.quantize.keep == "all" or not lower:
        return Kept()
    if exported.details.as_it_came or exported.details.finetuned is not None:
        return Kept()  # nothing is asked of what came in int8, and a layer that was trained to be int8 is
    return paying.choose(exported, placement, batches, dataset.split("calibration").inputs if dataset else None)


def _plans_weighed(making: Making, asked: Form) -> paying_plans.Chosen:
    """Return the plan to serve: the one asked for, or one with some int8 layers in fp16 where int8 is slower."""
    exported, data = making.exported, making.dataset
    keep, as_asked = making.options.recipe.quantize.keep, paying_plans.Chosen(form=asked)
    if not isinstance(asked.details, TensorRTDetails) or keep == "all" or exported.details.as_it_came:
        return as_asked
    if exported.details.finetuned is not None:
        return as_asked  # a layer that was trained to be int8 is
    free = lowering.left_out(exported, asked.lowered)
    if not free:
        return as_asked
    if data is None:
        note = "int8 was not weighed against fp16: the samples are not on this machine"
        return paying_plans.Chosen(form=asked, notes=(note,))
    weighing = paying_plans.Weighing(
        making=making,
        free=free,
        samples=data.split("calibration").inputs,
        fp32=lambda few: forms.run_onnx(exported.model, dict(few), making.batches),
        limits=Limits.of(exported.recipe.measure, ["int8"]),
    )
    return weighing.choose(asked)


def _trained_for(exported: OnnxArtifact, placement: str) -> tuple[str, ...]:
    """Return a sentence where the model was fine-tuned for another target's placement."""
    tuned = exported.details.finetuned
    if tuned is None or tuned.placement == placement:
        return ()
    return (
        f"the model was fine-tuned for {tuned.placement} and is placed for {placement}, whose tensors and codes "
        "differ: set finetune.target and build again",
    )


def _batched(recipe: Recipe, exported: OnnxArtifact) -> tuple[Recipe, str]:
    """Return the recipe with the largest batch that is right for the model, and why it is not the one asked for."""
    asked, alone = recipe.repository.max_batch_size, exported.details.alone
    if not asked or not alone:
        return recipe, ""
    repository = dataclasses.replace(recipe.repository, max_batch_size=0)
    return dataclasses.replace(recipe, repository=repository), f"max_batch_size 0, not {asked}: {alone}"


def _score_engine(
    engine: EngineArtifact, target: CompileTarget, exported: OnnxArtifact, batches: Batches, dataset: Dataset | None
) -> tuple[AccuracyRecord, ...]:
    """Score all forms down to the compiled one; nothing where the data or the hardware is not here."""
    if dataset is None:
        return ()
    accelerator = engine.details.accelerator if isinstance(engine.details, OnnxRuntimeDetails) else "none"
    if accelerator != "none" and not environment.gpus():
        progress.skipped("score engine", f"its provider ({accelerator}) needs a GPU")
        return ()
    samples = dataset.split("test")
    found: dict[str, dict[str, Array]] = {}
    try:
        with progress.step("run placed graph"):
            found["placed"] = forms.run_onnx(engine.placed, samples.inputs, batches)
    except MissingDependency as error:  # TensorRT is all that a machine that compiles has to have
        progress.skipped("run placed graph", error.message)
    with progress.step("score engine") as step:
        with target.runner(engine.model, engine.details) as model:
            found[_ENGINE] = running.run(model, batches, samples.inputs)
        kept.save(engine.path, found)
        records = _records(exported, engine, samples, engine.recipe)
        if records[-1].top1 is not None:
            step.note(f"top-1 {records[-1].top1:.4f} on {records[-1].samples} samples")
    return records


def _records(
    exported: OnnxArtifact, engine: EngineArtifact, samples: Samples, recipe: Recipe
) -> tuple[AccuracyRecord, ...]:
    """Return the scores of every form whose outputs were kept, from the first to the compiled one."""
    last = {engine.target if form == _ENGINE else form: found for form, found in kept.load(engine.path).items()}
    forms_of_all = kept.load(exported.path) | last
    return scores.score_forms(forms_of_all, samples, exported.classes, recipe, engine.layers)
