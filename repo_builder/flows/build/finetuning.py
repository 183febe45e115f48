"""Fine-tuning between calibration and placement: fp32 graph and ranges in, fine-tuned weights and ranges out.

The graph itself is trained, with fake quantizers on the very tensors and weights that the target's placement quantizes,
so that what was trained is what is placed. BatchNorm is folded in it before (``quantize.prepare``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from repo_builder.core import artifacts, files, loading, onnx_files, progress
from repo_builder.core.environment import Saturation
from repo_builder.core.errors import DataError, ModelError, RecipeError
from repo_builder.core.recipe import FinetuneSpec, Recipe
from repo_builder.core.records import AccuracyRecord, EpochRecord, FinetuneRecord, LayerRecord
from repo_builder.core.tensors import Array
from repo_builder.datasets import Dataset
from repo_builder.flows.build import forms, keys, lowering, running, scores
from repo_builder.measure.judge.ladder import scored_output
from repo_builder.quantize import LayerPlan, store, table
from repo_builder.quantize.placement import Profile, place
from repo_builder.quantize.ranges import Ranges

FORM, BEFORE = "fine-tuned", "calibrated"
_PLACEMENTS: dict[str, tuple[str, Saturation]] = {
    "onnxruntime": ("onnxruntime-cpu", "none"),
    "tensorrt": ("tensorrt", "none"),
}
# What a fine-tuned graph depends on, beside its recipe, graph, ranges and data.
_CODE = ("models", "quantize", "flows/build/finetuning.py")


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What fine-tuning made, beside the files.

    Attributes:
        record: What is known of it.
        outputs: The fake-quantized model's on the held-out samples.
        layers: The per-layer table, with the new ranges.
    """

    record: FinetuneRecord
    outputs: dict[str, Array]
    layers: tuple[LayerRecord, ...]


def check(recipe: Recipe) -> None:
    """Refuse what cannot be fine-tuned, before any work.

    Raises:
        RecipeError: The model is an .onnx file, no rule asks for int8, or the loss does not go with the task.
    """
    spec = recipe.finetune
    if spec is None:
        return
    if recipe.model.source.endswith(".onnx"):
        hint = "name the torch module that it was exported from, or leave [finetune] out"
        message = "a torch module is fine-tuned, and the model is an .onnx file"
        raise RecipeError(message, where="finetune", hint=hint)
    if all(rule.precision != "int8" for rule in recipe.quantize.layers):
        hint = "give layers precision int8 in [[quantize.layers]], or leave [finetune] out"
        raise RecipeError(
            "no rule asks for int8, so that there is nothing to fine-tune for", where="finetune", hint=hint
        )
    if spec.loss == "cross-entropy" and recipe.measure.task != "classification":
        hint = 'use loss = "distillation"'
        raise RecipeError("cross-entropy is for outputs that are classes", where="finetune.loss", hint=hint)
    if spec.augment and any(len(item.shape) != 3 for item in recipe.model.inputs):
        message = "only images (channels, height, width) can be augmented"
        raise DataError(message, where="finetune.augment", hint="remove the key")


def placement(spec: FinetuneSpec, compiled_for: tuple[str, Saturation]) -> tuple[str, Saturation]:
    """Return the placement that is trained for.

    Args:
        spec: The recipe's ``[finetune]``.
        compiled_for: That of the target that the build compiles for (``CompileTarget.placement``).
    """
    return _PLACEMENTS.get(spec.target, compiled_for)


def state_file(work: Path, recipe: Recipe) -> Path:
    """Return the file beside which fine-tuning keeps its state until the artifact is whole."""
    return work / recipe.name / "finetune"


def tune(
    recipe: Recipe,
    spec: FinetuneSpec,
    dataset: Dataset,
    made: forms.Exported,
    folder: Path,
    *,
    trained_for: tuple[str, Saturation],
    state: Path,
) -> Tuned:
    """Fine-tune what ``forms.export`` wrote into ``folder``, and write it there anew.

    Args:
        recipe: The recipe.
        spec: Its ``[finetune]``.
        dataset: Its training part is trained with, its validation part chooses the epoch.
        made: What ``forms.export`` returned.
        folder: Where ``model.fp32.onnx`` and ``ranges.npz`` are.
        trained_for: From ``placement``.
        state: From ``state_file``.

    Raises:
        QuantizeError: No layer would be int8, or the graph has an operator that cannot be trained.
        ModelError: The model takes samples one at a time, or the loss is not finite.
        DataError: A part is empty, or the loss needs labels.
    """
    if made.taking.alone:
        hint = "leave [finetune] out"
        raise ModelError(f"the model cannot be trained in batches: {made.taking.alone}", where="finetune", hint=hint)
    path, profile = folder / artifacts.FP32_MODEL, lowering.profile(trained_for)
    model, plans = forms.planned(onnx_files.load(path), recipe)
    ranges = store.read_ranges(folder / artifacts.RANGES)
    held_out = dataset.split("test")
    before = _before(recipe, dataset, made, model, plans, ranges, profile)
    with loading.needs("build", what="fine-tuning"):
        from repo_builder.models import finetuning
        from repo_builder.models.distance import Task
        from repo_builder.quantize.finetune.fake import fakes
        from repo_builder.quantize.finetune.graph import TrainableGraph
        from repo_builder.quantize.finetune.rounding import backend
    module = TrainableGraph(model, fakes(model, plans, ranges, profile, backend(recipe.quantize.backend)))
    task = Task(
        scored=scored_output(recipe.model.outputs, recipe.measure.output, len(dataset.classes)),
        classes=recipe.measure.task == "classification",
        spec=spec,
    )
    with progress.step(f"fine-tune ({recipe.quantize.backend}, {profile.name})") as step:
        tuned = finetuning.finetune(
            module,
            TrainableGraph(model),
            task,
            dataset.split("train"),
            dataset.split("validation"),
            seed=recipe.seed,
            output=state,
            key=_key(recipe, dataset, path, folder / artifacts.RANGES, profile),
            progress=progress.bar,
            say=lambda line: progress.stderr_console().print(f"  {line}", markup=False),
        )
        resumed = f", resumed after epoch {tuned.resumed_after}" if tuned.resumed_after else ""
        step.note(f"kept epoch {tuned.best_epoch} of {spec.epochs}, {tuned.device}{resumed}")
        onnx_files.save(module.tuned(), path)
    outputs = _outputs(module, held_out.inputs, [item.name for item in recipe.model.outputs])
    learned = spec.ranges == "learned" and tuned.best_epoch > 0
    layers = _calibrated_anew(recipe, dataset, made, folder, module.ranges(ranges, learned=learned))
    record = FinetuneRecord(
        backend=recipe.quantize.backend,
        placement=profile.name,
        device=tuned.device,
        loss=spec.loss,
        ranges=spec.ranges,
        epochs=spec.epochs,
        best_epoch=tuned.best_epoch,
        history=tuple(EpochRecord(**item) for item in tuned.history),
        before=before,
    )
    return Tuned(record=record, outputs=outputs, layers=layers)


def _key(recipe: Recipe, dataset: Dataset, model: Path, ranges: Path, profile: Profile) -> str:
    """Return the hash of all that decides what a run ends with."""
    plain = recipe.to_dict()
    kept = store.read_ranges(ranges)
    found = {
        "tensors": {name: dataclasses.astuple(item) for name, item in kept.tensors.items()},
        "weights": {name: item.amax.tolist() for name, item in kept.weights.items()},
    }
    return files.sha256_of_json({
        "finetune": plain["finetune"],
        "quantize": plain["quantize"],
        "measure": [recipe.measure.task, recipe.measure.output],
        "seed": recipe.seed,
        "graph": files.sha256_of(model),
        "ranges": found,
        "profile": [profile.name, profile.weight_steps],
        "data": dataset.fingerprint,
        "code": keys.code_version(*_CODE),
        "libraries": keys.versions("torch", "numpy", recipe.quantize.backend),
    })  # fmt: skip


def _before(
    recipe: Recipe,
    dataset: Dataset,
    made: forms.Exported,
    model: onnx.ModelProto,
    plans: tuple[LayerPlan, ...],
    ranges: Ranges,
    profile: Profile,
) -> AccuracyRecord:
    """Return how the model scores placed as it was calibrated, against fp32."""
    held_out = dataset.split("test")
    with progress.step("run as calibrated") as step, TemporaryDirectory() as folder:
        graph, _ = lowering.fp16(place(model, plans, ranges, profile).model, plans)
        path = Path(folder) / "placed.onnx"
        onnx_files.save(graph, path)
        outputs = forms.run_onnx(path, held_out.inputs, made.taking.batches)
        first = next(iter(made.outputs.items()))
        pair = {first[0]: first[1], BEFORE: outputs}
        record = scores.score_forms(pair, held_out, dataset.classes, recipe, made.layers)[-1]
        if record.top1 is not None:
            step.note(f"top-1 {record.top1:.4f} before fine-tuning")
    return record


def _outputs(module: object, inputs: Mapping[str, Array], names: list[str]) -> dict[str, Array]:
    """Run the fake-quantized model on samples."""
    import torch

    count = len(next(iter(inputs.values())))
    parts: list[dict[str, Array]] = []
    with progress.step("run fine-tuned"), torch.inference_mode():
        for start in progress.bar(range(0, count, running.MOST), "running samples"):
            batch = {
                name: torch.from_numpy(np.ascontiguousarray(item[start : start + running.MOST]))
                for name, item in inputs.items()
            }
            found = module(batch)  # type: ignore[operator]
            parts.append({name: found[name].numpy() for name in names})
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _calibrated_anew(
    recipe: Recipe, dataset: Dataset, made: forms.Exported, folder: Path, trained: Ranges
) -> tuple[LayerRecord, ...]:
    """Write the ranges of the fine-tuned graph and return the table.

    What was fake-quantized has the ranges that it was trained with; what another target would quantize is calibrated on
    the new weights.
    """
    with loading.needs("build", what="calibrating"):
        from repo_builder.quantize.calibrate import calibrate
    path = folder / artifacts.FP32_MODEL
    model, plans = forms.planned(onnx_files.load(path), recipe)
    samples = dict(running.whole(made.taking.batches, dataset.split("calibration").inputs))
    with progress.step("calibrate anew"):
        found, seen, _ = calibrate(model, plans, recipe.quantize, samples)
        merged = Ranges(
            tensors={**found.tensors, **trained.tensors},
            weights={**found.weights, **trained.weights},
            blocks=found.blocks,
        )
        store.write(folder / artifacts.RANGES, files.sha256_of(path), seen, merged)
    return table.records(model, plans, merged)
