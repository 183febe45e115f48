"""What became of each layer in ONNX Runtime, read from the graph that it makes of a model and runs.

ONNX Runtime writes that graph to a file when it loads a model. A layer's node bears its name there, a name made from
it, or reads the layer's own weight; what is left to find by none of these was folded away.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
import onnxruntime as ort
from onnx import TensorProto

from repo_builder.core.errors import CompileError, first_line
from repo_builder.core.graphs import BLOCKED_OPS, DQ, LAYER_OPS, Q, layer_of

Got = Literal["int4", "int8", "fp16", "fp32", "gone"]

# Operators with integer arithmetic beside those called QLinear...: products of 8-bit numbers, summed in 32 bits.
_INTEGER = frozenset({
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulInteger16", "MatMulIntegerToFloat", "QAttention",
    "QGemm",
})  # fmt: skip
# What ONNX Runtime's passes add to a node's name: a counter, a fusion's own, the layout's.
_FORMS = {
    "MatMul": ("MatMul", "Gemm"),
    "Gemm": ("Gemm", "MatMul"),
    "MatMulInteger": ("MatMulInteger", "DynamicQuantizeMatMul"),
}
_ADDED = re.compile(r"(_token_\d+|/MatMulAddFusion|_nchwc|_nhwc|/DuplicateTranspose|_transformed|_fused)+$")
_MADE = re.compile(r"^(fused |gemm_|matmul_)")
_FOLDED = "it was folded into another operator"
_QGEMM_CODES = 8
_FUSED = 4  # nodes that a fusion takes in behind a layer at most: bias, sum, activation, its product
_CODES = (TensorProto.INT8, TensorProto.UINT8)


@dataclass(frozen=True, kw_only=True)
class Became:
    """What one layer became.

    Attributes:
        name: The layer.
        got: ``int4`` (its weight), ``int8``, ``fp16`` or ``fp32``; ``gone`` where no node of its own is left.
        operator: The operator that runs it, as in ``QLinearConv``; of several runs of one layer the slowest kind.
        reason: Why it is not what Q/DQ around it asks for; empty where it is, or where nothing asks.
    """

    name: str
    got: Got
    operator: str
    reason: str = ""


def became(model: Path, layers: Sequence[str] | None = None) -> tuple[Became, ...]:
    """Read back what ONNX Runtime's CPU provider makes of layers, with all optimizations, as the server runs it.

    Args:
        model: The ONNX file, placed or not.
        layers: Names of layers; None for all that the file has.

    Raises:
        CompileError: ONNX Runtime refuses the file.
    """
    source = onnx.load(model, load_external_data=False)
    wanted: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in source.graph.node:
        name = layer_of(node)
        if name is not None and (layers is None or name in layers):
            wanted[name].append(node)
    runs = Runs(optimized(model), source)
    names = list(wanted) if layers is None else list(layers)
    return tuple(_became(name, wanted[name], runs) for name in names)


def optimized(model: Path) -> onnx.ModelProto:
    """Return the graph that ONNX Runtime makes of a file, weights left out.

    Raises:
        CompileError: ONNX Runtime refuses the file.
    """
    with tempfile.TemporaryDirectory(prefix="repo-builder-") as folder:
        path = Path(folder) / "optimized.onnx"
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(path)
        # Weights stay in a file of their own, so that a model of any size can be written.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        try:
            ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise CompileError(f"ONNX Runtime refuses it: {first_line(error)}", where=str(model)) from error
        return onnx.load(path, load_external_data=False)


class Runs:
    """The nodes of an optimized graph, by all that ties them to the nodes of the graph it was made of."""

    def __init__(self, graph: onnx.ModelProto, source: onnx.ModelProto) -> None:
        self.by_name: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.by_input: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self.types = _types(graph)
        for node in graph.graph.node:
            for name in _names(node):
                self.by_name[name].append(node)
            for tensor in node.input:
                self.by_input[tensor].append(node)
        self.makers = {name: node for node in source.graph.node for name in node.output}
        readers: dict[str, set[str]] = defaultdict(set)
        for node in source.graph.node:
            for tensor in node.input:
                readers[tensor].add(node.name)
        self.shared = {tensor for tensor, names in readers.items() if len(names) > 1}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in source.graph.node:
            for tensor in dict.fromkeys(node.input):
                self.readers[tensor].append(node)

    def of(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the node that does a layer's work; None where there is none."""
        for name in (node.name, *node.output, *self._behind(node)):
            for found in self.by_name.get(name, ()) if name else ():
                if _same_work(node.op_type, found.op_type):
                    return found
        if node.op_type in LAYER_OPS and len(node.input) > 1:
            for tensor in self._weights(node.input[1]):
                for found in self.by_input.get(tensor, ()):
                    if _same_work(node.op_type, found.op_type):
                        return found
        return None

    def host(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """Return the layer's node that a node without a weight is a part of, as the sum behind a convolution."""
        for name in (*node.output, *self._behind(node), *node.input):
            for found in self.by_name.get(name, ()):
                if any(_same_work(kind, found.op_type) for kind in LAYER_OPS):
                    return found
        return None

    def _behind(self, node: onnx.NodeProto) -> Iterator[str]:
        """Yield what the nodes behind one make that alone read it: a fused operator bears the last one's name."""
        for _ in range(_FUSED):
            readers = self.readers[node.output[0]]
            if len(readers) != 1 or readers[0].op_type in LAYER_OPS:
                return
            node = readers[0]
            yield from node.output

    def asked(self, node: onnx.NodeProto) -> bool:
        """Whether a node reads dequantized values."""
        maker = self.makers.get(node.input[0])
        return maker is not None and maker.op_type == DQ

    def _weights(self, tensor: str) -> Iterator[str]:
        """Yield the stored tensors that a weight is made of and that belong to it alone."""
        while tensor in self.makers:
            if tensor in self.shared or not self.makers[tensor].input:
                return
            tensor = self.makers[tensor].input[0]
        if tensor not in self.shared:
            yield tensor


def _became(name: str, nodes: Sequence[onnx.NodeProto], runs: Runs) -> Became:
    """Return a layer's row: of several nodes the one that runs in the widest type."""
    rows = []
    for node in nodes:
        found = runs.of(node)
        if found is None:
            host = runs.host(node) if node.op_type not in LAYER_OPS else None
            got = _precision(host, runs.types) if host is not None else "gone"
            kind = host.op_type if host is not None else ""
            rows.append(Became(name=name, got=got, operator=kind, reason=f"a part of {kind}" if kind else _FOLDED))
            continue
        got = _precision(found, runs.types)
        reason = f"runs as {found.op_type} in {got}" if runs.asked(node) and got in ("fp32", "fp16") else ""
        rows.append(Became(name=name, got=got, operator=found.op_type, reason=reason))
    order: dict[Got, int] = {"fp32": 0, "fp16": 1, "int8": 2, "int4": 3, "gone": 4}
    return min(rows, key=lambda row: order[row.got], default=Became(name=name, got="gone", operator=""))


def _precision(node: onnx.NodeProto, types: dict[str, int]) -> Got:
    if node.op_type in _INTEGER or node.op_type.startswith("QLinear") or node.op_type == "QGemm":
        return "int8"
    if node.op_type in BLOCKED_OPS:
        return "int4"
    found = {types.get(name) for name in (*node.input[:1], *node.output)}
    if found & set(_CODES):
        return "int8"
    return "fp16" if TensorProto.FLOAT16 in found else "fp32"


def _names(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names in the source graph that a node's name may stand for."""
    found = dict.fromkeys((node.name, _ADDED.sub("", node.name), *node.output))
    for name in list(found):
        found[_MADE.sub("", name)] = None
    yield from (name for name in found if name)


def _same_work(source: str, found: str) -> bool:
    """Whether an optimized operator is a form of a source operator."""
    kinds = _FORMS.get(source, (source,))
    return any(kind in found for kind in kinds) and found not in (Q, DQ)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the element types of tensors that the file tells, or that follow from the operators that make them."""
    graph = model.graph
    found = {item.name: item.type.tensor_type.elem_type for item in (*graph.value_info, *graph.input, *graph.output)}
    found.update({item.name: item.data_type for item in graph.initializer})
    for node in graph.node:
        zero = {"QuantizeLinear": 2}.get(node.op_type, -1)
        if zero > 0 and len(node.input) > zero:
            kind = found.get(node.input[zero])
        elif node.op_type.startswith("QLinear"):
            kind = next((found[name] for name in node.input if found.get(name) in _CODES), None)
        elif node.op_type == DQ or node.op_type in _INTEGER:
            # A QGemm that is given its output's scale and zero point makes codes; the others make floats.
            kind = (
                TensorProto.UINT8 if node.op_type == "QGemm" and len(node.input) > _QGEMM_CODES else TensorProto.FLOAT
            )
        else:
            kind = found.get(node.input[0]) if node.input else None
        for name in node.output:
            if kind and not found.get(name):
                found[name] = kind
    return found
