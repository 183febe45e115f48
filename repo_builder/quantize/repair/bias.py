"""Bias correction: what int8 shifts the mean of each output channel by is taken back in the layer's bias.

M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction" (ICCV 2019), section 4.2, in its empirical form (appendix D): layer by layer, in the graph's order, a
layer's outputs in the int8 network, the layers before it corrected already, are compared with those in fp32 on the same
samples, before any activation. Both graphs run in pieces that end behind one layer each, side by side, so that every
node runs once; what later pieces read is held, for as many samples as fit.

The mean is taken over errors that belong together. Where a range clips the few positions with outliers (one token of a
sentence, as in transformers), their errors are hundreds of times the others', and a mean over all would move every
position by what only those lost. Errors beyond the outer fences of their channel, three quartile ranges from the
quartiles (J. W. Tukey, "Exploratory Data Analysis", 1977), are left out; where there are none it is the plain mean.

The shift ends in ``WeightRange.shift``: it is added where the layer is int8, and only there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from repo_builder.core.graphs import layer_of
from repo_builder.core.tensors import Array
from repo_builder.quantize.observe import BUDGET_BYTES, batches, fixed_batch, tensor_bytes
from repo_builder.quantize.placement import place
from repo_builder.quantize.placement.dynamic import static
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.layers import find
from repo_builder.quantize.placement.weights import has_rest
from repo_builder.quantize.repair.linear import Layer, layers
from repo_builder.quantize.repair.pieces import Pieces
from repo_builder.quantize.repair.protocol import Repaired, State, Work

_HELD = 8  # tensors as large as the largest that a layer makes, held between two pieces of both graphs
_FENCES = 3.0  # quartile ranges from the quartiles
_ROWS = 4096  # that tell quartiles well enough


@dataclass(frozen=True, kw_only=True)
class _Shifted:
    """A layer whose shift is read from outside the placed graph.

    Attributes:
        nodes: Its nodes in the fp32 graph.
        given: The tensor that its shift is.
        made: What its nodes make in the placed graph, without the shift.
    """

    nodes: tuple[Layer, ...]
    given: str
    made: tuple[str, ...]

    @property
    def exact(self) -> tuple[str, ...]:
        """The same in the fp32 graph."""
        return tuple(item.node.output[0] for item in self.nodes)

    def rows(self, values: Sequence[Array]) -> Array:
        """Return the outputs of all its nodes, float64 (positions, channels)."""
        axis = self.nodes[0].channel_axis
        rows = [np.moveaxis(item, axis, -1).reshape(-1, item.shape[axis]) for item in values]
        together: Array = np.concatenate(rows).astype(np.float64)
        return together


def correct_bias(state: State, work: Work) -> Repaired:
    """Find the shifts of all int8 layers with a static range, Conv, Gemm or MatMul."""
    index = Index(state.model)
    weights = {name: replace(item, shift=None) for name, item in state.ranges.weights.items()}
    placed = place(state.model, work.plans, replace(state.ranges, weights=weights), work.profile).model
    wider, shifted = _with_shifts(placed, _int8(index, work))
    if not shifted:
        return Repaired(did="no int8 layer has a bias to correct")
    samples = _fitting(state.model, shifted, work)
    exact, made = (Pieces(graph, ends) for graph, ends in (
        (state.model, [item.exact for item in shifted]), (wider, [item.made for item in shifted])
    ))  # fmt: skip
    held = [(batch, batch) for batch in batches(state.model, samples, work.spec.batch_size)]
    shifts: dict[str, Array] = {}
    for number, item in enumerate(shifted):
        shifts[item.given] = _zeros(item)
        held = [(exact.run(number, one), made.run(number, {**other, **shifts})) for one, other in held]
        errors = [
            item.rows([one[n] for n in item.exact]) - item.rows([other[n] for n in item.made]) for one, other in held
        ]
        shift = middle(np.concatenate(errors)).astype(np.float32)
        if np.isfinite(shift).all():
            shifts[item.given] = shift.reshape(shifts[item.given].shape)
            name = item.nodes[0].plan.name
            weights[name] = replace(weights[name], shift=shift.astype(np.float64))
    did = f"{len(shifted)} layers, on {len(next(iter(samples.values())))} samples"
    return Repaired(state=replace(state, ranges=replace(state.ranges, weights=weights)), did=did)


def _fitting(model: onnx.ModelProto, shifted: Sequence[_Shifted], work: Work) -> dict[str, Array]:
    """Return as many samples as may be held between pieces."""
    smallest = fixed_batch(model, work.samples) or 1
    size = max(tensor_bytes(model, [name for item in shifted for name in item.exact], work.samples).values())
    count = max(1, BUDGET_BYTES // (_HELD * max(1, size))) * smallest
    return {name: value[:count] for name, value in work.samples.items()}


def _int8(index: Index, work: Work) -> dict[str, tuple[Layer, ...]]:
    """Return the layers that are int8 in the placed graph, with all nodes of each."""
    int8 = find(index, static(work.plans), work.profile).int8
    found: dict[str, list[Layer]] = {}
    for at, layer in layers(index, work.plans, several=True).items():
        if at in int8 and not has_rest(index, layer.node, layer.outputs):
            found.setdefault(layer.plan.name, []).append(layer)
    wanted = {name: sum(layer_of(node) == name for node in index.nodes) for name in found}
    return {name: tuple(nodes) for name, nodes in found.items() if len(nodes) == wanted[name]}


def _with_shifts(
    placed: onnx.ModelProto, int8: Mapping[str, tuple[Layer, ...]]
) -> tuple[onnx.ModelProto, list[_Shifted]]:
    """Return a placed graph whose layers add a tensor that no node makes, and those layers in the graph's order."""
    taken = Index(placed).names()
    owners = {item.node.name: name for name, nodes in int8.items() for item in nodes}
    made: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    for node in placed.graph.node:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        nodes.append(copy)
        name = owners.get(node.name)
        if name is None:
            continue
        copy.output[0] = _free(f"{node.output[0]}/unshifted", taken)
        made.setdefault(name, []).append(copy.output[0])
        if name not in given:
            given[name] = _free(f"{name}/shift", taken)
        nodes.append(helper.make_node("Add", [copy.output[0], given[name]], [node.output[0]]))
    model = onnx.ModelProto()
    model.CopyFrom(placed)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model, [_Shifted(nodes=int8[name], given=given[name], made=tuple(tensors)) for name, tensors in made.items()]


def _free(stem: str, taken: set[str]) -> str:
    while stem in taken:
        stem += "_"
    taken.add(stem)
    return stem


def _zeros(item: _Shifted) -> Array:
    layer = item.nodes[0]
    ones = [1] * (layer.weight.ndim - 2) if layer.node.op_type == "Conv" else []
    return np.zeros([layer.outputs, *ones], np.float32)


def middle(errors: Array) -> Array:
    """Return each channel's mean error, those beyond its outer fences left out: (positions, channels) → channels."""
    some = errors[:: -(-len(errors) // _ROWS)]
    low, high = np.quantile(some, [0.25, 0.75], axis=0)
    near = np.abs(errors - (low + high) / 2) <= (_FENCES + 0.5) * (high - low)
    return np.asarray(np.where(near, errors, 0).sum(axis=0) / np.maximum(1, near.sum(axis=0)))
