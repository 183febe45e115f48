"""Bias correction: what int8 shifts the mean of each output channel by is taken back in the layer's bias.

M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction" (ICCV 2019), section 4.2, in its empirical form (appendix D): layer by layer, in the graph's order, the mean
of a layer's outputs in the int8 network, the layers before it corrected already, is compared with that in fp32 on the
same samples, before any activation. The int8 network is the placed graph with an input for each layer's shift, so that
one session serves all layers.

The shift ends in ``WeightRange.shift``: it is added where the layer is int8, and only there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper

from repo_builder.core.graphs import layer_of
from repo_builder.core.tensors import Array
from repo_builder.quantize.observe import batches, open_session, run, stream
from repo_builder.quantize.placement import place
from repo_builder.quantize.placement.dynamic import static
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.layers import find
from repo_builder.quantize.placement.weights import has_rest
from repo_builder.quantize.repair.linear import Layer, layers
from repo_builder.quantize.repair.protocol import Repaired, State, Work

_RUNS = 4096  # of one sample through the network, over all layers
_FEWEST = 8  # samples, whatever the number of layers


@dataclass(frozen=True, kw_only=True)
class _Shifted:
    """A layer whose shift is an input of the placed graph.

    Attributes:
        nodes: Its nodes in the fp32 graph.
        given: The input that its shift is.
        made: What its nodes make in the placed graph, without the shift.
    """

    nodes: tuple[Layer, ...]
    given: str
    made: tuple[str, ...]

    @property
    def exact(self) -> tuple[str, ...]:
        """The same in the fp32 graph."""
        return tuple(item.node.output[0] for item in self.nodes)

    def mean(self, values: Sequence[Array]) -> Array:
        """Return the sum over all but the channels, and how many numbers it is of, float64 (channels + 1,)."""
        axis = self.nodes[0].channel_axis
        rows = [np.moveaxis(item, axis, -1).reshape(-1, item.shape[axis]).astype(np.float64) for item in values]
        return np.append(np.sum([item.sum(axis=0) for item in rows], axis=0), sum(len(item) for item in rows))


def correct_bias(state: State, work: Work) -> Repaired:
    """Find the shifts of all int8 layers with a static range, Conv, Gemm or MatMul."""
    index = Index(state.model)
    weights = {name: replace(item, shift=None) for name, item in state.ranges.weights.items()}
    placed = place(state.model, work.plans, replace(state.ranges, weights=weights), work.profile).model
    wider, shifted = _with_shifts(placed, _int8(index, work))
    if not shifted:
        return Repaired(did="no int8 layer has a bias to correct")
    count = max(_FEWEST, _RUNS // len(shifted))
    samples = {name: value[:count] for name, value in work.samples.items()}
    exact = _exact(state.model, shifted, samples, work)
    shifts = {item.given: _zeros(item) for item in shifted}
    session = open_session(wider, [name for item in shifted for name in item.made], optimize=False)
    for item in shifted:
        sums = [
            item.mean(list(run(session, item.made, {**batch, **shifts}).values()))
            for batch in batches(state.model, samples, work.spec.batch_size)
        ]
        total = np.sum(sums, axis=0)
        shift = exact[item.given] - total[:-1] / max(1.0, total[-1])
        if np.isfinite(shift).all():
            shifts[item.given] = shift.astype(np.float32).reshape(shifts[item.given].shape)
    for item in shifted:
        name = item.nodes[0].plan.name
        weights[name] = replace(weights[name], shift=shifts[item.given].astype(np.float64).ravel())
    did = f"{len(shifted)} layers, on {min(count, len(next(iter(work.samples.values()))))} samples"
    return Repaired(state=replace(state, ranges=replace(state.ranges, weights=weights)), did=did)


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
    """Return a placed graph whose layers' shifts are inputs, and those layers in the graph's order."""
    model = onnx.ModelProto()
    model.CopyFrom(placed)
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
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    found = [_Shifted(nodes=int8[name], given=given[name], made=tuple(tensors)) for name, tensors in made.items()]
    for item in found:
        model.graph.input.append(helper.make_tensor_value_info(item.given, TensorProto.FLOAT, list(_zeros(item).shape)))
    return model, found


def _free(stem: str, taken: set[str]) -> str:
    while stem in taken:
        stem += "_"
    taken.add(stem)
    return stem


def _zeros(item: _Shifted) -> Array:
    layer = item.nodes[0]
    ones = [1] * (layer.weight.ndim - 2) if layer.node.op_type == "Conv" else []
    return np.zeros([layer.outputs, *ones], np.float32)


def _exact(
    model: onnx.ModelProto, shifted: Sequence[_Shifted], samples: Mapping[str, Array], work: Work
) -> dict[str, Array]:
    """Return the mean of each layer's outputs in fp32, float64 (channels,)."""
    owners = {name: item for item in shifted for name in item.exact}
    sums: dict[str, Array] = {}
    for part in stream(model, list(owners), samples, batch_size=work.spec.batch_size):
        for name, values in part.items():
            item = owners[name]
            found = item.mean([values])
            sums[item.given] = sums[item.given] + found if item.given in sums else found
    return {name: value[:-1] / max(1.0, value[-1]) for name, value in sums.items()}
