"""A torch module to ONNX by torch.export, which follows sizes as symbols: what varies is told from what does not.

torch captures the module's operators, and onnxscript writes them. The steps of onnxscript's optimizer that pay are
called one by one, for it would also let layers share parameters that are merely equal: weights and biases stay those of
their own layer, which folding of BatchNorm and fine-tuning need.
"""

from __future__ import annotations

import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from repo_builder.core import onnx_files
from repo_builder.core.errors import ExportError, first_line
from repo_builder.export import captured_graph, opsets
from repo_builder.export.marks import DOMAIN, captured, marked
from repo_builder.export.naming import tidy
from repo_builder.export.plain import exportable

Axes = Mapping[str, Mapping[int, str]]
_OLDEST = 18  # operators of torch.export are written for this opset and later ones
_SHAPE = 16  # elements: no tensor has more axes
_FOLDED = 1 << 22  # elements: a constant that is computed of constants, such as a slice of an LSTM's weight


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What torch.export found out of a dimension that varies.

    Attributes:
        tensor: The input.
        axis: Of the whole tensor.
        least: Its smallest size.
        most: Its largest size; None for any.
    """

    tensor: str
    axis: int
    least: int
    most: int | None

    @property
    def fixed(self) -> bool:
        """Whether the network takes one size alone."""
        return self.least == self.most


def reason(error: BaseException) -> str:
    """Return what torch said in one line: the cause at the bottom, without colours and advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return re.sub(r"\x1b\[[0-9;]*m", "", first_line(error))


def obstacle() -> str:
    """Return why torch.export cannot be used here; empty where it can."""
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        return "onnxscript is not installed (pip install onnxscript)"
    if not hasattr(torch.onnx, "ops"):
        return f"torch {torch.__version__} is older than 2.8"
    return ""


def capture(
    module: nn.Module,
    given: tuple[Tensor, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Axes,
    opset: int,
) -> tuple[onnx.ModelProto, tuple[Limit, ...]]:
    """Return a module as ONNX, its layers named, and what is known of each dimension that varies.

    Args:
        module: The network, in eval mode.
        given: Inputs that are run.
        inputs: Their names.
        outputs: Names of the outputs.
        axes: Tensor → axis that varies → its name.
        opset: Version of the default operator set.

    Raises:
        ExportError: A dimension that varies is fixed by the network, or the graph has no form at this opset.
        Exception: Of any kind: torch raises what it likes.
    """
    with _quiet(), torch.no_grad(), exportable(module, outputs), marked(module, captured):
        program = torch.export.export(
            _Called(module),
            given,
            dynamic_shapes=(tuple(dict.fromkeys(axes.get(name, {}), torch.export.Dim.AUTO) for name in inputs),),
            strict=False,
        )
        limits = _limits(program, inputs, axes)
        _refuse_fixed(limits, given, inputs)
        model = _written(program, inputs, outputs, max(opset, _OLDEST))
    captured_graph.clean(model, outputs, axes)
    model = tidy(model, marker_domain=DOMAIN)
    return opsets.lowered(model, opset), limits


class _Called(nn.Module):
    """A module whose inputs are one tuple, whatever its forward calls them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *given: Tensor) -> Any:  # noqa: ANN401 - what the module returns
        return self.module(*given)


def _limits(program: Any, inputs: Sequence[str], axes: Axes) -> tuple[Limit, ...]:  # noqa: ANN401 - an ExportedProgram
    """Return what a program says of the dimensions that were to vary."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for name, argument in zip(inputs, program.graph_signature.user_inputs, strict=True):
        for axis in axes.get(name, {}):
            size = values[argument].shape[axis]
            if isinstance(size, int) or size.node.expr.is_number:
                found.append(Limit(tensor=name, axis=axis, least=int(size), most=int(size)))
                continue
            span = program.range_constraints.get(size.node.expr)
            bounded = span is not None and span.upper < 2**31
            found.append(Limit(tensor=name, axis=axis, least=1, most=int(span.upper) if bounded else None))
    return tuple(found)


def _refuse_fixed(limits: Sequence[Limit], given: Sequence[Tensor], inputs: Sequence[str]) -> None:
    """Refuse what varies in the recipe and not in the network."""
    wrong = [item for item in limits if item.fixed]
    if wrong:
        shown = ", ".join(f"dimension {item.axis} of '{item.tensor}' is always {item.least}" for item in wrong)
        raise ExportError(f"{shown} in the network, and varies in the recipe", where="model.inputs")


def _written(program: Any, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> onnx.ModelProto:  # noqa: ANN401
    """Return a captured program as ONNX."""
    from onnx_ir.passes import common
    from onnxscript import optimizer, rewriter

    written = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        input_names=list(inputs),
        output_names=list(outputs),
        optimize=False,
        verbose=False,
    )
    if written is None:
        raise ExportError("torch.onnx wrote nothing")
    graph = written.model
    optimizer.inline(graph)
    for _ in range(2):  # what the rules write may fold once more
        optimizer.fold_constants_ir(graph, input_size_limit=_FOLDED, output_size_limit=_FOLDED)
        rewriter.rewrite(graph)
        common.RemoveUnusedNodesPass()(graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    _share_sizes(graph.graph)
    for step in (
        common.RemoveUnusedFunctionsPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        step(graph)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.onnx"
        written.save(raw)
        return onnx_files.load(raw)


def _share_sizes(graph: Any) -> None:  # noqa: ANN401 - an onnx_ir.Graph
    """Let nodes read equal shapes and axes from one constant, so that what is computed of them is computed once."""
    import onnx_ir as ir

    first: dict[tuple[Any, bytes], Any] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.INT64 or tensor.size > _SHAPE:
            continue
        known = first.setdefault((tuple(tensor.shape), tensor.tobytes()), value)
        if known is not value and not value.is_graph_output():
            value.replace_all_uses_with(known)
            del graph.initializers[value.name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the libraries tell of themselves from the user: what matters to him is an error, or is checked."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    found = [
        *loggers,
        *(
            item
            for name, item in logging.root.manager.loggerDict.items()
            if isinstance(item, logging.Logger) and name.startswith(("torch.", "onnxscript.", "onnx_ir."))
        ),
    ]
    before = [(item, item.level) for item in found]
    for item in found:
        item.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for item, level in before:
            item.setLevel(level)
