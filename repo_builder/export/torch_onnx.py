"""A torch module to fp32 ONNX: named inputs and outputs, dynamic batch, layers named as in torch, always equal bytes.

``torch.onnx.export(dynamo=False)`` names nodes by its own rules, which lose parts of qualified names; so each layer's
output passes through a marker node while it exports, which says whose output it is and is taken out again. BatchNorm is
left as it is: what is done to the graph afterwards folds it (``quantize.prepare``).

The exporter on torch.export (``dynamo=True``, torch 2.13 with onnxscript 0.7) starts at opset 18. For 17, the newest
that TensorRT 8.5 parses, it converts the finished graph down, and the modules' names, which rules select by, get lost.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from repo_builder.core import onnx_files, progress
from repo_builder.core.calling import outputs_of
from repo_builder.core.errors import ExportError, first_line
from repo_builder.core.portable import make_portable
from repo_builder.core.samples import NONE, Batches
from repo_builder.core.tensors import Array, DType, TensorSpec
from repo_builder.export.naming import tidy
from repo_builder.export.plain import exportable, fold_parametrizations

_DOMAIN = "repo_builder"
_BATCH = 2  # while tracing: a batch of one is taken for a size that never changes
_SHOWN = 3
_LAYERS = ("Conv", "MaxPool", "AvgPool", "AdaptiveAvgPool")
_TORCH_DTYPES = {item: getattr(torch, item.numpy.name) for item in DType if hasattr(torch, item.numpy.name)}


class _Mark(torch.autograd.Function):
    """Identity that exports as a node which names the layer whose output it passes on."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, name: str, kind: str) -> torch.Tensor:  # noqa: ANN401 - torch's context
        return x.view_as(x)

    @staticmethod
    def symbolic(g: Any, x: Any, name: str, kind: str) -> Any:  # noqa: ANN401 - torch's graph
        return g.op(f"{_DOMAIN}::Layer", x, name_s=name, type_s=kind).setType(x.type())


def export(
    module: nn.Module,
    *,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    opset: int,
    path: Path,
    samples: Mapping[str, Array],
) -> onnx.ModelProto:
    """Return a module as ONNX; weights that are computed of others become plain ones in it, in place.

    The axis that counts samples is dynamic, unless some tensor has none and samples run one by one; and so is each
    dimension that a spec gives as -1. What tracing froze, as a branch on the data, is said on stderr.

    Args:
        module: The network, in eval mode.
        inputs: Named inputs in the order of its forward, batch left out.
        outputs: Named outputs, batch left out; several may be a tuple, a list, a dict or a dataclass.
        opset: Version of the default operator set.
        path: The file that errors name.
        samples: Real values by input name, batch first, whose sizes are traced.

    Raises:
        ExportError: The module does not run on such inputs, gives other outputs, or cannot be expressed at this opset.
    """
    batches = Batches.of(inputs, outputs, {}, most=_BATCH)
    given, names, size = _traced(batches, samples), [spec.name for spec in outputs], batches.size
    fold_parametrizations(module)
    _check_outputs(module, given, outputs, size)
    with (
        tempfile.TemporaryDirectory() as folder,
        exportable(module, names),
        _marked(module),
        warnings.catch_warnings(record=True) as said,
        torch.no_grad(),
    ):
        raw = Path(folder) / "raw.onnx"
        warnings.simplefilter("always")
        try:
            with _unprinted():
                torch.onnx.export(
                    module,
                    given,
                    raw,
                    dynamo=False,
                    opset_version=opset,
                    training=torch.onnx.TrainingMode.PRESERVE,  # it would else fold BatchNorm in fp32
                    input_names=[spec.name for spec in inputs],
                    output_names=names,
                    dynamic_axes={spec.name: _dynamic(spec, varies=size > 1) for spec in (*inputs, *outputs)},
                )
        except Exception as error:  # the exporter raises what it likes
            raise ExportError(
                f"torch cannot export the network to ONNX opset {opset}: {first_line(error)}", where=str(path)
            ) from error
        model = onnx_files.load(raw)
    _say_frozen(said)
    try:
        model = tidy(model, marker_domain=_DOMAIN)
        make_portable(model, outputs)
        return model
    except Exception as error:  # onnx raises errors of two kinds that share no base class
        raise ExportError(f"the exported graph is not valid ONNX: {first_line(error)}", where=str(path)) from error


def _say_frozen(said: list[warnings.WarningMessage]) -> None:
    """Say in one line each what torch warned of while it traced: values that became constants of the graph."""
    lines = [
        f"{Path(item.filename).name}:{item.lineno}: {str(item.message).splitlines()[0].partition('. ')[0]}"
        for item in said
        if item.category.__name__ == "TracerWarning" and "/torch/" not in item.filename
    ]
    distinct = list(dict.fromkeys(lines))
    for line in distinct[:_SHOWN]:
        progress.warn(f"traced once: a branch or value that may depend on the data is frozen in the graph: {line}")
    if len(distinct) > _SHOWN:
        progress.warn(f"{len(distinct) - _SHOWN} more values are frozen in it")


@contextmanager
def _unprinted() -> Iterator[None]:
    """Let what the exporter's C++ prints vanish: on an error it writes the whole graph to standard output."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _traced(batches: Batches, samples: Mapping[str, Array]) -> tuple[torch.Tensor, ...]:
    """Return the inputs of one full run."""
    for spec in batches.inputs:
        if spec.dtype not in _TORCH_DTYPES:
            raise ExportError(f"torch has no type for {spec}", where=f"model.inputs '{spec.name}'")
    some = {spec.name: samples[spec.name][: batches.size] for spec in batches.inputs}
    _, feed = next(replace(batches, fixed=True).feeds(some))  # filled where there are fewer
    return tuple(torch.from_numpy(feed[spec.name]) for spec in batches.inputs)


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


@contextmanager
def _marked(module: nn.Module) -> Iterator[None]:
    """Let every module that gives one tensor mark it with its name."""

    def marker(name: str) -> Callable[..., Any]:
        def hook(item: nn.Module, __: Any, output: Any) -> Any:  # noqa: ANN401 - torch's hook
            if not isinstance(output, torch.Tensor):
                return output
            return _Mark.apply(output, name, layer_type(item))  # type: ignore[no-untyped-call]

        return hook

    handles = [item.register_forward_hook(marker(name)) for name, item in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_type(module: nn.Module) -> str:
    """Return the type that rules know a module by: ``Conv2d`` also for a subclass of it, else its class's name."""
    kinds = [item.__name__ for item in type(module).__mro__ if item.__module__.startswith("torch.nn.modules.")]
    return next((name for name in kinds if name == "Linear" or name.startswith(_LAYERS)), type(module).__name__)
