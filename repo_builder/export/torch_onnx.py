"""A torch module to ONNX: named inputs and outputs, dynamic batch, layers named as in torch, the same bytes each time.

``torch.onnx.export(dynamo=False)`` is used because it gives exactly the opset that is asked for and takes the
quantizers' own ONNX form. It names nodes by its own rules, which lose parts of qualified names; so each layer's output
passes through a marker node while it exports, which says whose output it is and is taken out again.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from repo_builder.core import files
from repo_builder.core.errors import ExportError, first_line
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.export.naming import tidy

_DOMAIN = "repo_builder"
_DYNAMIC_SAMPLE = 8  # what a dimension of -1 is while tracing
_TORCH_DTYPES = {item: getattr(torch, item.numpy.name) for item in DType if hasattr(torch, item.numpy.name)}


class _Mark(torch.autograd.Function):
    """Identity that exports as a node which names the layer whose output it passes on."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, name: str) -> torch.Tensor:  # noqa: ANN401 - torch's context
        return x.view_as(x)

    @staticmethod
    def symbolic(g: Any, x: Any, name: str) -> Any:  # noqa: ANN401 - torch's graph
        return g.op(f"{_DOMAIN}::Layer", x, name_s=name).setType(x.type())


def export(
    module: nn.Module,
    *,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    opset: int,
    path: Path,
) -> None:
    """Write a module as ONNX.

    The batch is dynamic, and so is each dimension that a spec gives as -1 (traced at size 8). Inputs are passed in the
    order of ``inputs``; several outputs may be a tuple, a list or a dict.

    Args:
        module: The network, in eval mode.
        inputs: Named inputs, batch left out.
        outputs: Named outputs, batch left out.
        opset: Version of the default operator set.
        path: The file, replaced atomically.

    Raises:
        ExportError: The module does not run on such inputs, gives other outputs, or cannot be expressed at this opset.
        OutputError: The file cannot be written.
    """
    samples = tuple(_sample(spec) for spec in inputs)
    _check_outputs(module, samples, outputs)
    specs = (*inputs, *outputs)
    with tempfile.TemporaryDirectory() as folder, _marked(module), warnings.catch_warnings(), torch.no_grad():
        raw = Path(folder) / "raw.onnx"
        warnings.simplefilter("ignore")  # it says on every call that a newer exporter exists
        try:
            torch.onnx.export(
                module,
                samples,
                raw,
                dynamo=False,
                opset_version=opset,
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in outputs],
                dynamic_axes={spec.name: _dynamic(spec) for spec in specs},
            )
        except Exception as error:  # the exporter raises what it likes
            raise ExportError(
                f"torch cannot export the network to ONNX opset {opset}: {first_line(error)}", where=str(path)
            ) from error
        model = onnx.load(raw)
    try:
        model = tidy(model, marker_domain=_DOMAIN)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx raises errors of two kinds that share no base class
        raise ExportError(f"the exported graph is not valid ONNX: {first_line(error)}", where=str(path)) from error
    files.write_bytes(path, model.SerializeToString(deterministic=True))


def _sample(spec: TensorSpec) -> torch.Tensor:
    shape = [2, *(_DYNAMIC_SAMPLE if size == -1 else size for size in spec.shape)]
    if spec.dtype not in _TORCH_DTYPES:
        raise ExportError(f"torch has no type for {spec}", where=f"model.inputs '{spec.name}'")
    return torch.zeros(shape, dtype=_TORCH_DTYPES[spec.dtype])


def _dynamic(spec: TensorSpec) -> dict[int, str]:
    sizes = {place: f"{spec.name}_{place}" for place, size in enumerate(spec.shape, 1) if size == -1}
    return {0: "batch", **sizes}


def _check_outputs(module: nn.Module, samples: tuple[torch.Tensor, ...], outputs: tuple[TensorSpec, ...]) -> None:
    try:
        with torch.no_grad():
            result = module(*samples)
    except Exception as error:  # whatever a user's forward raises
        shapes = ", ".join(str(list(item.shape)) for item in samples)
        raise ExportError(
            f"the network does not run on inputs of shape {shapes}: {first_line(error)}",
            where="model.inputs",
            hint="check the shapes in [[model.inputs]]; the first dimension here is the batch",
        ) from error
    several = result.values() if isinstance(result, dict) else result
    values = [result] if isinstance(result, torch.Tensor) else list(several)
    if len(values) != len(outputs):
        raise ExportError(
            f"the network gives {len(values)} outputs, the recipe names {len(outputs)}", where="model.outputs"
        )
    for spec, value in zip(outputs, values, strict=True):
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype != spec.dtype.numpy.name or not spec.fits(tuple(value.shape[1:])) or len(value) != len(samples[0]):
            raise ExportError(
                f"the network gives {dtype} of shape {list(value.shape[1:])} (batch left out), the recipe says {spec}",
                where="model.outputs",
            )


@contextmanager
def _marked(module: nn.Module) -> Iterator[None]:
    """Let every module that gives one tensor mark it with its name."""

    def marker(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:  # noqa: ANN401 - torch's hook
            return _Mark.apply(output, name) if isinstance(output, torch.Tensor) else output  # type: ignore[no-untyped-call]

        return hook

    handles = [item.register_forward_hook(marker(name)) for name, item in module.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
