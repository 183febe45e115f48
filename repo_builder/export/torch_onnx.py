"""A torch module to fp32 ONNX: named inputs and outputs, dynamic batch, layers named as in torch, always equal bytes.

Two exporters of torch write it: the one on torch.export, and the older one that records a run (TorchScript).
``choosing`` says which is taken and why. BatchNorm is left as it is: what is done to the graph afterwards folds it
(``quantize.prepare``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from repo_builder.core import progress
from repo_builder.core.calling import outputs_of
from repo_builder.core.errors import ExportError, first_line
from repo_builder.core.portable import make_portable
from repo_builder.core.recipe.precision import Exporter
from repo_builder.core.samples import NONE, Batches
from repo_builder.core.tensors import Array, DType, TensorSpec
from repo_builder.export import capturing, choosing, comparing
from repo_builder.export.capturing import Limit
from repo_builder.export.choosing import Choice
from repo_builder.export.plain import fold_parametrizations
from repo_builder.export.tracing import Trace, trace

_BATCH = 2  # while tracing: a batch of one is taken for a size that never changes
_NEWEST_RECORDED = 21  # the older exporter stamps any number on what it writes; its operators are known up to here
_SHOWN = 3
_TORCH_DTYPES = {item: getattr(torch, item.numpy.name) for item in DType if hasattr(torch, item.numpy.name)}
Sizes = Mapping[str, Sequence[tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class TorchGraph:
    """An exported module.

    Attributes:
        model: The graph.
        choice: Who wrote it, and why.
    """

    model: onnx.ModelProto
    choice: Choice


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is exported.

    Attributes:
        module: The network.
        given: Inputs that are run.
        inputs: Resolved specs.
        outputs: Resolved specs.
        axes: Tensor → axis that varies → its name.
        opset: Version of the default operator set.
        sizes: Input → shapes, batch left out, that it is to take; none where that is not known.
        path: The file that errors name.
    """

    module: nn.Module
    given: tuple[torch.Tensor, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: Mapping[str, Mapping[int, str]]
    opset: int
    sizes: Sizes
    path: Path

    @property
    def names(self) -> dict[str, Any]:
        """What both exporters are told."""
        inputs, outputs = ([spec.name for spec in specs] for specs in (self.inputs, self.outputs))
        return {"inputs": inputs, "outputs": outputs, "axes": self.axes, "opset": self.opset}


def export(
    module: nn.Module,
    *,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    opset: int,
    path: Path,
    samples: Mapping[str, Array],
    exporter: Exporter = "auto",
    sizes: Sizes | None = None,
) -> TorchGraph:
    """Return a module as ONNX; weights that are computed of others become plain ones in it, in place.

    The axis that counts samples is dynamic, unless some tensor has none and samples run one by one; and so is each
    dimension that a spec gives as -1. What tracing froze, as a branch on the data, is said on stderr.

    Args:
        module: The network, in eval mode.
        inputs: Named inputs in the order of its forward, batch left out.
        outputs: Named outputs, batch left out; several may be a tuple, a list, a dict or a dataclass.
        opset: Version of the default operator set.
        path: The file that errors name.
        samples: Real values by input name, batch first.
        exporter: Who writes it; ``auto`` chooses.
        sizes: Input → shapes, batch left out, that it is to take: the first is traced. Left out, the samples' are.

    Raises:
        ExportError: The module does not run on such inputs, gives other outputs, or cannot be expressed at this opset.
    """
    batches = Batches.of(inputs, outputs, {}, most=_BATCH)
    size = batches.size
    given = _traced(batches, samples, sizes or {})
    fold_parametrizations(module)
    _check_outputs(module, given, outputs, size)
    axes = {spec.name: _dynamic(spec, varies=size > 1) for spec in (*inputs, *outputs)}
    asked = _Asked(
        module=module,
        given=given,
        inputs=batches.inputs,
        outputs=batches.outputs,
        axes=axes,
        opset=opset,
        sizes=sizes or {},
        path=path,
    )
    model, choice = _chosen(asked, exporter)
    make_portable(model, outputs)
    return TorchGraph(model=model, choice=choice)


def _chosen(asked: _Asked, exporter: Exporter) -> tuple[onnx.ModelProto, Choice]:
    """Export, and return the graph that is taken."""
    if exporter == "torch.export":
        missing = capturing.obstacle()
        if missing:
            raise ExportError(missing, where="export.exporter", hint='write "auto" or "torchscript"')
        try:
            return _captured(asked), Choice(exporter="torch.export", why="the recipe asks for it")
        except Exception as error:  # torch raises what it likes
            raise _failure(error, asked, "torch.export") from error
    traced: Trace | Exception
    try:
        if asked.opset > _NEWEST_RECORDED:
            raise ExportError(f"it writes opset {_NEWEST_RECORDED} at most")
        traced = trace(asked.module, asked.given, **asked.names)
    except Exception as error:  # as above
        traced = error
    why = choosing.asked(traced) if exporter == "auto" else ""
    said = "the recipe asks for it" if exporter == "torchscript" else f"a trace stands: {choosing.stands(traced)}"
    if why:
        said = capturing.obstacle()
        if not said:
            try:
                model = _captured(asked)
                said = choosing.kept(traced, model)
                if not said:
                    return model, Choice(exporter="torch.export", why=why)
            except Exception as error:  # as above
                said = f"torch.export fails: {capturing.reason(error)}"
    if isinstance(traced, Exception):
        raise _failure(traced, asked, "torch", also=said if why else "") from traced
    _say_frozen(traced.frozen)
    return traced.model, Choice(exporter="torchscript", why=said)


def _captured(asked: _Asked) -> onnx.ModelProto:
    """Return what torch.export writes, once it computes what the module does.

    Raises:
        ExportError: It does not, or a dimension that varies is fixed by the network.
    """
    model, limits = capturing.capture(asked.module, asked.given, **asked.names)
    departs = comparing.departs(asked.module, model, asked.given, asked.inputs, asked.outputs, asked.axes)
    if departs:
        raise ExportError(departs)
    _say_limits(limits, asked)
    return model


def _failure(error: Exception, asked: _Asked, who: str, *, also: str = "") -> ExportError:
    more = f"; {also}" if also else ""
    message = f"{who} cannot export the network to ONNX opset {asked.opset}: {capturing.reason(error)}{more}"
    return ExportError(message, where=str(asked.path))


def _say_limits(limits: Sequence[Limit], asked: _Asked) -> None:
    """Say where a network takes no size that the recipe asks for."""
    specs = {spec.name: spec for spec in asked.inputs}
    for item in limits:
        spec = specs[item.tensor]
        place = item.axis - (0 <= spec.batch_axis < item.axis)
        largest = max((shape[place] for shape in asked.sizes.get(item.tensor, ())), default=0)
        if item.most is not None and item.axis != spec.batch_axis and item.most < largest:
            progress.warn(
                f"the network takes at most {item.most} in dimension {item.axis} of '{item.tensor}', "
                f"and a profile of the recipe goes to {largest}"
            )


def _say_frozen(lines: Sequence[str]) -> None:
    """Say in one line each what became a constant of the graph while it was traced."""
    for line in lines[:_SHOWN]:
        progress.warn(f"traced once: a branch or value that may depend on the data is frozen in the graph: {line}")
    if len(lines) > _SHOWN:
        progress.warn(f"{len(lines) - _SHOWN} more values are frozen in it")


def _traced(batches: Batches, samples: Mapping[str, Array], sizes: Sizes) -> tuple[torch.Tensor, ...]:
    """Return the inputs of one full run."""
    for spec in batches.inputs:
        if spec.dtype not in _TORCH_DTYPES:
            raise ExportError(f"torch has no type for {spec}", where=f"model.inputs '{spec.name}'")
    some = {spec.name: samples[spec.name][: batches.size] for spec in batches.inputs}
    for spec in batches.inputs:
        for shape in sizes.get(spec.name, ())[:1]:
            some[spec.name] = _resized(some[spec.name], spec, shape)
    _, feed = next(replace(batches, fixed=True).feeds(some))  # filled where there are fewer
    return tuple(torch.from_numpy(feed[spec.name]) for spec in batches.inputs)


def _resized(values: Array, spec: TensorSpec, shape: Sequence[int]) -> Array:
    """Return samples at another size of what varies; values are repeated where there are too few."""
    for axis, (size, wanted) in enumerate(zip(spec.shape, shape, strict=True), 1):
        if size == -1 and values.shape[axis] != wanted:
            values = np.take(values, np.resize(np.arange(values.shape[axis]), wanted), axis=axis)
    return values


def _dynamic(spec: TensorSpec, *, varies: bool) -> dict[int, str]:
    """Return the axes that vary, named; one that counts samples only where several may run together."""
    sizes = {place: f"{spec.name}_{place}" for place, size in enumerate(spec.whole(1)) if size == -1}
    return {spec.batch_axis: "batch", **sizes} if varies and spec.batch_axis != NONE else sizes


def _check_outputs(
    module: nn.Module, samples: tuple[torch.Tensor, ...], outputs: tuple[TensorSpec, ...], size: int
) -> None:
    try:
        with torch.no_grad():
            result = module(*samples)
    except Exception as error:  # whatever a user's forward raises
        shapes = ", ".join(str(list(item.shape)) for item in samples)
        raise ExportError(
            f"the network does not run on inputs of shape {shapes}: {first_line(error)}",
            where="model.inputs",
            hint="check the shapes in [[model.inputs]]; samples are on the first axis, or on batch_axis",
        ) from error
    values = outputs_of(result, [spec.name for spec in outputs])
    if len(values) != len(outputs):
        raise ExportError(
            f"the network gives {len(values)} outputs, the recipe names {len(outputs)}", where="model.outputs"
        )
    for spec, value in zip(outputs, values, strict=True):
        dtype = str(value.dtype).removeprefix("torch.")
        right = replace(spec, shape=spec.whole(size)).fits(tuple(value.shape))
        if dtype != spec.dtype.numpy.name or not right:
            batch = f", batch on axis {spec.batch_axis} left out" if spec.batch_axis else ", batch left out"
            message = f"the network gives {dtype} of shape {list(value.shape)} for {size} sample{'s'[: size - 1]}"
            raise ExportError(
                f"{message}, the recipe says {spec}{', and no batch' if spec.batch_axis == NONE else batch}",
                where="model.outputs",
                hint="correct its shape, or its batch_axis: -1 where none counts samples",
            )
