"""Models of a few nodes, their ranges, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from repo_builder.core.graphs import DQ, Q, outer_reads  # noqa: E402
from repo_builder.core.onnx_tensors import packed_nibbles  # noqa: E402
from repo_builder.core.recipe import LayerRule, QuantizeSpec  # noqa: E402
from repo_builder.quantize.layers import find_layers  # noqa: E402
from repo_builder.quantize.placement import Placed, place, profile, wanted  # noqa: E402
from repo_builder.quantize.placement.index import Index  # noqa: E402
from repo_builder.quantize.placement.weights import channel_axis  # noqa: E402
from repo_builder.quantize.prepare import prepare  # noqa: E402
from repo_builder.quantize.ranges import BlockRange, Ranges, TensorRange, WeightRange  # noqa: E402
from repo_builder.quantize.rules import plan  # noqa: E402

INT8 = LayerRule(precision="int8")


def four_bit_constants(codes: np.ndarray, found: BlockRange) -> list[onnx.TensorProto]:
    """A weight's codes ``c`` and zero points ``z`` as ONNX stores 4 bits: signed where the codes are symmetric."""
    kind = TensorProto.INT4 if found.zero is None else TensorProto.UINT4
    zero = np.zeros(found.scale.shape, np.int8) if found.zero is None else found.zero
    return [
        onnx.TensorProto(name=name, data_type=kind, dims=value.shape, raw_data=packed_nibbles(value))
        for name, value in (("c", codes), ("z", zero))
    ]


def model(
    nodes: Sequence[onnx.NodeProto],
    stored: Mapping[str, Any],
    shapes: Mapping[str, Sequence[Any]],
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 17,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """Return a model of float32 inputs and outputs."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes.get(name)) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    domains = {node.domain for node in nodes if node.domain}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in sorted(domains))]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


def run(
    proto: onnx.ModelProto, feeds: Mapping[str, Any], *names: str, optimize: bool = False, keep: Path | None = None
) -> list[np.ndarray]:
    """Run a model and return outputs, or any tensors by name."""
    wider = onnx.ModelProto()
    wider.CopyFrom(proto)
    known = {item.name for item in wider.graph.output}
    for name in names:
        if name not in known:
            wider.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(wider.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(list(names) or None, dict(feeds))


def plans_of(proto: onnx.ModelProto, *rules: LayerRule) -> tuple[Any, ...]:
    """Return the plans of a prepared model."""
    return plan(list(find_layers(proto)), QuantizeSpec(layers=rules or (INT8,)))


def ranges_of(proto: onnx.ModelProto, plans: Sequence[Any], needed: Sequence[str], feeds: Mapping[str, Any]) -> Ranges:
    """Return ranges by the calibrator ``max``."""
    inputs = {item.name for item in proto.graph.input}
    names = [name for name in needed if name not in inputs]
    values = {**feeds, **(dict(zip(names, run(proto, feeds, *names), strict=True)) if names else {})}
    tensors = {
        name: TensorRange(
            low=float(values[name].min()),
            high=float(values[name].max()),
            amax=float(np.abs(values[name]).max()),
            calibrator="max",
        )
        for name in needed
        if values[name].size
    }
    index, weights = Index(proto), {}
    int8 = {item.name for item in plans if item.precision == "int8" and item.weighted}
    for node in index.nodes:
        value = index.value(node.input[1]) if node.name.split("#")[0] in int8 else None
        if value is not None:
            others = tuple(axis for axis in range(value.ndim) if axis != channel_axis(node))
            weights[node.name.split("#")[0]] = WeightRange(amax=np.abs(value).max(axis=others))
    return Ranges(tensors=tensors, weights=weights)


def placed(
    proto: onnx.ModelProto, feeds: Mapping[str, Any], *rules: LayerRule, target: str = "onnxruntime-cpu"
) -> Placed:
    """Place a prepared model whose calibration data is ``feeds``."""
    plans = plans_of(proto, *rules)
    needed = list(wanted(proto, plans, [profile(target)]))
    return place(proto, plans, ranges_of(proto, plans, needed, feeds), profile(target))


def operators(proto: onnx.ModelProto, feeds: Mapping[str, Any], folder: Path) -> list[str]:
    """Return the operators of the graph that ONNX Runtime makes of a model."""
    path = folder / "optimized.onnx"
    run(proto, feeds, optimize=True, keep=path)
    return [node.op_type for node in onnx.load(path).graph.node]


def unread(proto: onnx.ModelProto, source: onnx.ModelProto) -> list[str]:
    """Return the Q and DQ that nothing reads, but for those of tensors that nothing reads in the source either."""

    def reads(model: onnx.ModelProto) -> set[str]:
        found = {name for node in model.graph.node for name in (*node.input, *outer_reads(node))}
        return found | {item.name for item in model.graph.output}

    read, loose = reads(proto), {name for node in source.graph.node for name in node.output} - reads(source)
    pairs = (node for node in proto.graph.node if node.op_type in (Q, DQ) and not read.intersection(node.output))
    return [node.name for node in pairs if node.name.rpartition("/")[0] not in loose]


def decibels(exact: np.ndarray, noisy: np.ndarray) -> float:
    """Return the signal-to-noise ratio, 200 where there is no noise."""
    noise = float(np.square(exact.astype(np.float64) - noisy).sum())
    signal = float(np.square(exact, dtype=np.float64).sum())
    return 200.0 if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Return standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers of this folder's tests."""
    return SimpleNamespace(
        model=model, run=run, plans_of=plans_of, ranges_of=ranges_of, placed=placed, operators=operators,
        decibels=decibels, noise=noise, prepare=prepare, unread=unread, node=helper.make_node,
    )  # fmt: skip
