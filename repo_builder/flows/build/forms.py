"""From a model's source to its fp32 graph, what its layers are to be and what its tensors hold: one way for both kinds.

A torch module is exported first; an .onnx file is taken as it is. From there on there is one way. Everything that needs
torch is imported when a stage really runs, so that a build that is up to date never does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from repo_builder import models
from repo_builder.core import calling, files, graphs, loading, onnx_files, progress, watching
from repo_builder.core.artifacts import FP32_MODEL
from repo_builder.core.errors import CompileError, ModelError
from repo_builder.core.recipe import Recipe
from repo_builder.core.records import AS_IT_CAME, LayerRecord, RepairRecord
from repo_builder.core.samples import Batches
from repo_builder.core.tensors import Array
from repo_builder.export import qdq
from repo_builder.flows.build import keys, repairing, running, varying
from repo_builder.quantize import LayerPlan, plan, prepare, table
from repo_builder.quantize.layers import find_layers

Outputs = dict[str, Array]
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model's weights.

    Attributes:
        path: The checkpoint, or the .onnx file; None where the recipe's function returns a network with its weights.
        is_onnx: Whether ``path`` is the whole model.
        fingerprint: sha256 of the file, with the files beside it that hold weights; of what made them without a file.
        description: The file as the user knows it.
        module: The network itself, in eval mode, where a program gave it; its weights are in it.
    """

    path: Path | None
    is_onnx: bool
    fingerprint: str
    description: str
    module: Any = None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What ``export`` made beside the files.

    Attributes:
        outputs: Form → output name → its values on the held-out samples, each form derived from the one before.
        layers: The per-layer table, before a target is known.
        taking: How the fp32 graph takes samples.
        read: File that the user's code read while the model was made → sha256.
        as_it_came: Whether nothing is asked of any layer, so that the graph is compiled as it is.
        repairs: What was done so that int8 loses less, in turn.
        exporter: Who wrote a torch module's graph, and why; empty for an .onnx file.
    """

    outputs: dict[str, Outputs]
    layers: tuple[LayerRecord, ...]
    taking: running.Taking
    read: dict[str, str]
    as_it_came: bool
    repairs: tuple[RepairRecord, ...] = ()
    exporter: str = ""


def source(recipe: Recipe, checkpoint: Path | None) -> Source:
    """Find the weights.

    Raises:
        ModelError: They are not there.
    """
    spec = recipe.model
    if spec.source.endswith(".onnx"):
        path = Path(spec.source)
        if checkpoint is not None:
            raise ModelError("an ONNX model brings its weights", where="--checkpoint", hint="leave --checkpoint out")
        if not path.is_file():
            raise ModelError("there is no such file", where=f"model.source = '{path}'")
        return Source(path=path, is_onnx=True, fingerprint=keys.weights(path), description=str(path))
    if checkpoint is None and spec.checkpoint is None and ":" in spec.source:
        made_by = {"source": spec.source, "arguments": spec.arguments, "seed": recipe.seed}
        return Source(
            path=None,
            is_onnx=False,
            fingerprint=files.sha256_of_json({**made_by, "code": keys.user_code(recipe)}),
            description=f"the weights that {spec.source} gives",
        )
    path = models.checkpoint_path(spec, checkpoint)
    description = str(checkpoint or spec.checkpoint or path)
    return Source(path=path, is_onnx=False, fingerprint=keys.weights(path), description=description)


def live_source(recipe: Recipe, module: Any, samples: Outputs) -> Source:  # noqa: ANN401 - what a caller gave
    """Return a network that a program gave, with its weights.

    Args:
        recipe: The recipe, which names inputs and outputs.
        module: The network; it is left as it is.
        samples: Some samples by input name, batch first, which tell whether it still is the same network.

    Raises:
        ModelError: It is none, or does not run on the samples.
    """
    own = models.borrow(module)
    from repo_builder.models import live
    from repo_builder.models.running import run

    inputs = {item.name: item for item in recipe.model.inputs}
    order, _ = calling.argument_order(own, tuple(inputs))
    outputs = run(own, samples, Batches.of([inputs[name] for name in order], recipe.model.outputs, {}))
    return Source(
        path=None,
        is_onnx=False,
        fingerprint=live.fingerprint(own, outputs),
        description=f"a live {type(module).__name__}",
        module=own,
    )


def export(
    recipe: Recipe,
    origin: Source,
    calibration: Outputs,
    held_out: Outputs,
    folder: Path,
    *,
    shown: Path,
    data: str,
    earlier: Path,
) -> Exported:
    """Write ``model.fp32.onnx`` and ``ranges.npz`` into ``folder`` and run the source on the held-out samples.

    Args:
        recipe: The recipe.
        origin: The weights.
        calibration: Calibration samples by input name, batch first.
        held_out: Held-out samples by input name, batch first.
        folder: Where the files go.
        shown: Where the folder will be once it is whole.
        data: Fingerprint of the data set.
        earlier: The ranges that the last build left, if there are any.

    Raises:
        ModelError: The weights do not fit.
        QuantizeError: A layer cannot take its precision.
        ExportError: The graph is not clean.
    """
    made = (_from_onnx if origin.is_onnx else _from_torch)(recipe, origin, calibration, held_out)
    path = folder / FP32_MODEL
    with progress.step("write fp32 graph") as step:
        onnx_files.save(made.model, path)
        step.wrote(path, shown=shown / path.name)
    outputs: dict[str, Outputs] = {"fp32": made.outputs} if made.outputs else {}
    with progress.step("run fp32 graph"), _blaming(origin):
        taking = running.taking(path, recipe.model.inputs, recipe.model.outputs, held_out)
        if taking.alone and made.alone is not None:  # every form is run as it will be served
            outputs["fp32"] = made.alone()
        outputs["exported" if outputs else "fp32"] = run_onnx(path, held_out, taking.batches)
    found: dict[str, Any] = {"outputs": outputs, "taking": taking, "read": made.read, "exporter": made.exporter}
    if not recipe.quantize.layers:
        return Exported(layers=as_it_came(made.model), as_it_came=True, **found)
    ready, plans = planned(made.model, recipe)
    samples = dict(running.whole(taking.batches, calibration))
    made_int8 = repairing.calibrated(ready, plans, recipe, samples, folder, data=data, earlier=earlier)
    layers = table.records(made_int8.model, plans, made_int8.ranges)
    return Exported(layers=layers, as_it_came=False, repairs=made_int8.records, **found)


@contextmanager
def _blaming(origin: Source) -> Iterator[None]:
    """Turn ONNX Runtime's refusal of a user's own .onnx into an error about that file."""
    try:
        yield
    except CompileError as error:
        if not origin.is_onnx:
            raise
        raise ModelError(error.message, where=str(origin.path), hint=error.hint) from error


def planned(model: onnx.ModelProto, recipe: Recipe) -> tuple[onnx.ModelProto, tuple[LayerPlan, ...]]:
    """Return a graph made ready for placement, and what the recipe's rules make of its layers; the same each time.

    Raises:
        QuantizeError: The graph is quantized already, or too old.
        RecipeError: A rule selects nothing.
    """
    ready = prepare.prepare(model)
    return ready, plan(list(find_layers(ready)), recipe.quantize)


def as_it_came(model: onnx.ModelProto) -> tuple[LayerRecord, ...]:
    """Return the table of a graph of which nothing is asked: each layer's precision is the one that it has."""
    precisions = qdq.layer_precisions(model)
    kinds = {graphs.layer_of(node): node.op_type for node in model.graph.node}
    return tuple(
        LayerRecord(name=name, type=kinds[name], rule=AS_IT_CAME, asked=precision)
        for name, precision in precisions.items()
    )


def run_onnx(path: Path, inputs: Outputs, batches: Batches) -> Outputs:
    """Run an ONNX file as it stands, every optimization off; return the outputs that the recipe names."""
    with loading.needs("onnxruntime", what="running an ONNX file"):
        from repo_builder.compile.onnxruntime.target import OnnxRuntimeRunner
    with OnnxRuntimeRunner(path, optimize=False) as model:
        return running.run(model, batches, inputs)


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A source's fp32 graph.

    Attributes:
        model: The graph.
        outputs: Output name → its values on the held-out samples in torch; None where the graph is the source.
        alone: Returns the same again, each sample run by itself; None likewise.
        read: File that the user's code read → sha256.
        exporter: Who wrote the graph, and why; empty where it is the source.
    """

    model: onnx.ModelProto
    outputs: Outputs | None = None
    alone: Callable[[], Outputs] | None = None
    read: dict[str, str] = field(default_factory=dict)
    exporter: str = ""


def _from_torch(recipe: Recipe, origin: Source, calibration: Outputs, held_out: Outputs) -> _Made:
    """Run a torch module, and export it with BatchNorm folded."""
    with loading.needs("build", what="exporting a torch module"):
        from repo_builder.export import torch_onnx
        from repo_builder.models.running import run
    with progress.step("load model") as step:
        with watching.reading() as read:
            module = origin.module or models.create(recipe.model, seed=recipe.seed)
        if origin.path is not None:
            models.load_checkpoint(module, origin.path, where=origin.description)
        named = "" if origin.module else f"{recipe.model.source}  "
        step.note(f"{named}{origin.description}  sha256:{origin.fingerprint[:12]}")
    inputs = {item.name: item for item in recipe.model.inputs}
    order, differs = calling.argument_order(module, tuple(inputs))
    if differs:
        progress.warn(differs)
    batches = Batches.of([inputs[name] for name in order], recipe.model.outputs, {})
    with progress.step("run fp32"):
        outputs = run(module, held_out, batches)
    with progress.step("export") as step:
        exported = torch_onnx.export(
            module,
            inputs=batches.inputs,
            outputs=batches.outputs,
            opset=recipe.export.opset,
            path=Path(FP32_MODEL),
            samples=calibration,
            exporter=recipe.export.exporter,
            sizes=varying.sizes(recipe),
        )
        model = prepare.prepare(exported.model)
        step.note(f"opset {recipe.export.opset}  {exported.choice}")
    left = prepare.unfolded(model)
    if left:
        more = f" and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        progress.warn(f"{len(left)} BatchNorm stay in the graph: {', '.join(left[:_SHOWN])}{more}")
    alone = partial(run, module, held_out, replace(batches, size=1))
    return _Made(model=model, outputs=outputs, alone=alone, read=read, exporter=str(exported.choice))


def _from_onnx(recipe: Recipe, origin: Source, _calibration: Outputs, _held_out: Outputs) -> _Made:
    """Read an .onnx file; its own outputs are those of the first form."""
    with progress.step("load model") as step:
        if origin.path is None:
            raise ModelError("there is no file", where=f"model.source = '{recipe.model.source}'")
        model = onnx_files.load(origin.path)
        running.batches_of(origin.path, recipe.model.inputs, recipe.model.outputs)  # refused before any work
        step.wrote(origin.path)
    return _Made(model=model)
