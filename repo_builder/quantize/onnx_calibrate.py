"""Ranges and signal to noise of an ONNX model's layers, by running it in ONNX Runtime with its optimizations off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from repo_builder.core.errors import QuantizeError, first_line
from repo_builder.core.graphs import Graph
from repo_builder.core.tensors import Array
from repo_builder.quantize import LayerPlan, Ranges
from repo_builder.quantize.calibrators import Calibrator
from repo_builder.quantize.onnx_insert import channel_axis, insert, weight_of
from repo_builder.quantize.table import decibels, split

Batch = Mapping[str, Array]


def input_names(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of the inputs."""
    return tuple(item.name for item in model.graph.input)


def batches_for(model: onnx.ModelProto, calibration: Batch, wanted: int) -> list[dict[str, Array]]:
    """Return calibration data as batches: of the size that the model is fixed to, else of at most the wanted one.

    Raises:
        QuantizeError: An input is missing, or there are too few samples.
    """
    names = input_names(model)
    firsts = [item.type.tensor_type.shape.dim[:1] for item in model.graph.input]
    fixed = next((int(first[0].dim_value) for first in firsts if first and first[0].dim_value > 0), None)
    batches = split(calibration, names, fixed or wanted)
    whole = [batch for batch in batches if fixed is None or len(batch[names[0]]) == fixed]
    if not whole:
        raise QuantizeError(
            f"the model takes batches of {fixed}, and there are {len(batches[0][names[0]])} calibration samples",
            hint="raise data.calibration, or export the model with a dynamic batch",
        )
    return whole


def calibrate(model: onnx.ModelProto, int8: Mapping[str, LayerPlan], batches: Sequence[Batch]) -> dict[str, Ranges]:
    """Return the ranges of the int8 layers.

    Args:
        model: What ``prepare`` returns.
        int8: Node name → its plan.
        batches: Calibration data.

    Raises:
        QuantizeError: The model does not run, or a range cannot be found.
    """
    nodes = [node for node in model.graph.node if node.name in int8]
    graph = Graph(model)
    weights = {node.name: _weight_range(graph, node, int8[node.name]) for node in nodes}
    finders = {}
    for node in nodes:
        spec = int8[node.name].int8_rule.input
        for tensor in _activations(node):
            finders[node.name, tensor] = Calibrator(spec.calibrator, spec.percentile, where=node.name)
    observed = _Observer(model, (tensor for _, tensor in finders))
    for batch in batches:
        values = observed.run(batch)
        for (_, tensor), finder in finders.items():
            finder.observe(values[tensor])
    return {
        node.name: Ranges(
            inputs=tuple(finders[node.name, tensor].amax().reshape(()) for tensor in _activations(node)),
            weight=weights[node.name],
        )
        for node in nodes
    }


def signal_to_noise(model: onnx.ModelProto, ranges: Mapping[str, Ranges], batches: Sequence[Batch]) -> dict[str, float]:
    """Measure what int8 does to each layer on its own, dB, as ``ptq.signal_to_noise`` defines it."""
    nodes = [node for node in model.graph.node if node.name in ranges]
    observed = _Observer(model, (name for node in nodes for name in (*_activations(node), node.output[0])))
    alone = {node.name: _Observer(_quantized_layer(model, node, ranges), [node.output[0]]) for node in nodes}
    powers = {node.name: np.zeros(2) for node in nodes}
    for batch in batches:
        values = observed.run(batch)
        for node in nodes:
            exact = values[node.output[0]].astype(np.float64)
            rounded = alone[node.name].run({name: values[name] for name in _activations(node)})[node.output[0]]
            powers[node.name] += np.square(exact).sum(), np.square(rounded - exact).sum()
    return {name: decibels(float(signal), float(noise)) for name, (signal, noise) in powers.items()}


class _Observer:
    """Runs a model and returns any of its tensors.

    Args:
        model: The model.
        tensors: Names of fp32 tensors.

    Raises:
        QuantizeError: ONNX Runtime refuses the model.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Iterable[str]) -> None:
        wider = onnx.ModelProto()
        wider.CopyFrom(model)
        given = set(input_names(model))
        self.names = list(dict.fromkeys(name for name in tensors if name not in given))
        known = {item.name for item in wider.graph.output}
        for name in self.names:
            if name not in known:
                wider.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        try:
            self.session = ort.InferenceSession(wider.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise QuantizeError(f"ONNX Runtime refuses the model: {first_line(error)}") from error

    def run(self, batch: Batch) -> dict[str, Array]:
        """Return the tensors by name, the inputs among them."""
        try:
            values = self.session.run(self.names, dict(batch)) if self.names else []
        except Exception as error:  # as above
            raise QuantizeError(f"the model does not run on the calibration data: {first_line(error)}") from error
        return {**batch, **dict(zip(self.names, values, strict=True))}


def _activations(node: onnx.NodeProto) -> list[str]:
    return list(dict.fromkeys(node.input[:2] if node.op_type == "Add" else node.input[:1]))


def _weight_range(graph: Graph, node: onnx.NodeProto, planned: LayerPlan) -> Array | None:
    if not planned.weighted:
        return None
    weight, spec = weight_of(graph, node), planned.int8_rule.weight
    rows = np.moveaxis(weight, channel_axis(node), 0) if spec.per_channel else weight[None]
    finder = Calibrator(spec.calibrator, spec.percentile, channels=len(rows), where=node.name)
    finder.observe(rows)
    return finder.amax() if len(rows) > 1 else finder.amax().reshape(())


def _quantized_layer(model: onnx.ModelProto, node: onnx.NodeProto, ranges: Mapping[str, Ranges]) -> onnx.ModelProto:
    """Return a model of one layer alone, quantized."""
    stored = [item for item in model.graph.initializer if item.name in node.input]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in _activations(node)]
    output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "layer", inputs, [output], initializer=stored)
    alone = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return insert(alone, {node.name: ranges[node.name]})
