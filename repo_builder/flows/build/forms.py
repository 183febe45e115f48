"""From a model's source to ONNX files: the torch way and the ONNX way through quantize and export.

Everything that needs torch is imported when a stage really runs, so that a build that is up to date never does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from repo_builder import models, quantize
from repo_builder.core import loading, progress
from repo_builder.core.artifacts import LayerRecord
from repo_builder.core.errors import ModelError
from repo_builder.core.recipe import Recipe
from repo_builder.core.tensors import Array
from repo_builder.flows.build import keys

Outputs = dict[str, Array]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model's weights.

    Attributes:
        path: The checkpoint, or the .onnx file.
        is_onnx: Whether ``path`` is the whole model.
        fingerprint: sha256 of the file, with the files beside it that hold weights.
        description: The file as the user knows it.
    """

    path: Path
    is_onnx: bool
    fingerprint: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What ``export`` made beside the files.

    Attributes:
        outputs: Form → its first output on the held-out samples, each derived from the one before.
        layers: The per-layer table.
        layer_precisions: Layer → precision, read back from the exported graph.
    """

    outputs: Outputs
    layers: tuple[LayerRecord, ...]
    layer_precisions: dict[str, str]


def source(recipe: Recipe, checkpoint: Path | None) -> Source:
    """Find the weights.

    Raises:
        ModelError: They are not there.
    """
    if recipe.model.source.endswith(".onnx"):
        path = Path(recipe.model.source)
        if checkpoint is not None:
            raise ModelError("an ONNX model brings its weights", where="--checkpoint", hint="leave --checkpoint out")
        if not path.is_file():
            raise ModelError("there is no such file", where=f"model.source = '{path}'")
    else:
        path = models.checkpoint_path(recipe.model, checkpoint)
    return Source(
        path=path,
        is_onnx=recipe.model.source.endswith(".onnx"),
        fingerprint=keys.weights(path),
        description=str(checkpoint or recipe.model.checkpoint or path),
    )


def export(
    recipe: Recipe, origin: Source, calibration: Outputs, held_out: Outputs, folder: Path, *, shown: Path
) -> Exported:
    """Write ``model.onnx`` and ``model.fp32.onnx`` into ``folder`` and run every form on the held-out samples.

    Args:
        recipe: The recipe.
        origin: The weights.
        calibration: Calibration samples by input name, batch first.
        held_out: Held-out samples by input name, batch first.
        folder: Where the files go.
        shown: Where the folder will be once it is whole.

    Raises:
        ModelError: The weights do not fit.
        QuantizeError: A layer cannot take its precision.
        ExportError: The graph is not clean.
    """
    way = _export_onnx if origin.is_onnx else _export_torch
    outputs, layers, fp16_layers = way(recipe, origin, calibration, held_out, folder)
    check: Callable[..., None] = loading.load("repo_builder.export.qdq:check", extra="build")
    precisions: Callable[[onnx.ModelProto], dict[str, str]] = loading.load(
        "repo_builder.export.qdq:layer_precisions", extra="build"
    )
    model_file = folder / "model.onnx"
    if fp16_layers:
        to_fp16 = loading.load("repo_builder.export.precision:to_fp16_regions", extra="build")
        onnx.save(to_fp16(onnx.load(model_file), fp16_layers), model_file)
    with progress.step("check Q/DQ") as step:
        check(model_file, layers=layers)
        step.wrote(model_file, shown=shown / model_file.name)
    with progress.step("run exported ONNX"):
        outputs["onnx"] = _run_onnx(model_file, held_out, recipe)
    return Exported(outputs=outputs, layers=layers, layer_precisions=precisions(onnx.load(model_file)))


def _export_torch(
    recipe: Recipe, origin: Source, calibration: Outputs, held_out: Outputs, folder: Path
) -> tuple[Outputs, tuple[LayerRecord, ...], frozenset[str]]:
    run = loading.load("repo_builder.models.running:run", extra="build")
    export_module = loading.load("repo_builder.export.torch_onnx:export", extra="build")
    names = tuple(spec.name for spec in recipe.model.inputs)
    shape = {"inputs": recipe.model.inputs, "outputs": recipe.model.outputs, "opset": recipe.export.opset}
    with progress.step("load model") as step:
        module = models.create(recipe.model, seed=recipe.seed)
        models.load_checkpoint(module, origin.path, where=origin.description)
        step.note(f"{recipe.model.source}  {origin.description}  sha256:{origin.fingerprint[:12]}")
    with progress.step("quantize + calibrate") as step:
        made = quantize.quantize(module, recipe.quantize, calibration, input_names=names, seed=recipe.seed)
        step.note(f"{recipe.quantize.backend}, {len(next(iter(calibration.values())))} samples")
    with progress.step("run fp32"):
        outputs = {"fp32": run(module, held_out, recipe.model)}
    with progress.step("run fake-quantized"):
        outputs["fake_quantized"] = run(made.module, held_out, recipe.model)
    with progress.step("export") as step:
        export_module(quantize.fold(module), path=folder / "model.fp32.onnx", **shape)
        export_module(made.module, path=folder / "model.onnx", **shape)
        step.note(f"opset {recipe.export.opset}")
    return outputs, made.layers, made.fp16_layers


def _export_onnx(
    recipe: Recipe, origin: Source, calibration: Outputs, held_out: Outputs, folder: Path
) -> tuple[Outputs, tuple[LayerRecord, ...], frozenset[str]]:
    quantize_onnx = loading.load("repo_builder.quantize.onnx_graph:quantize_onnx", extra="build")
    with progress.step("load model") as step:
        try:
            model = onnx.load(origin.path)
        except Exception as error:  # protobuf's and onnx's errors share no base class
            hint = "export or copy it again"
            raise ModelError(f"is not an ONNX model ({error})", where=str(origin.path), hint=hint) from error
        onnx.save(model, folder / "model.fp32.onnx")
        step.wrote(origin.path)
    with progress.step("quantize + calibrate"):
        made = quantize_onnx(model, recipe.quantize, calibration)
        onnx.save(made.model, folder / "model.onnx")
    with progress.step("run fp32"):
        outputs = {"fp32": _run_onnx(folder / "model.fp32.onnx", held_out, recipe)}
    return outputs, made.layers, made.fp16_layers


def _run_onnx(path: Path, inputs: Outputs, recipe: Recipe) -> Array:
    """Run an ONNX file as it stands: Q/DQ fusion and every other optimization off."""
    runner = loading.load("repo_builder.compile.onnxruntime.target:OnnxRuntimeRunner", extra="onnxruntime")
    with runner(path, optimize=False) as run:
        values: Array = run(inputs)[recipe.model.outputs[0].name]
    return values
