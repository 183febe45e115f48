"""Signal to quantization noise of each lowered layer, on its own: which layer is hard to quantize, not where it stands.

A layer's signal is its output in fp32, its noise the difference that its rounded input and weight make to that output
for the same fp32 input: 10·log10(Σ signal² / Σ noise²), dB. The lowered layer is cut out of the placed graph, from its
own Q/DQ or Casts to its output, and runs on what its tensors hold in the fp32 graph, with the runtime's optimizations
off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from repo_builder.core.graphs import DQ, Graph, Q, layer_of
from repo_builder.core.tensors import Array
from repo_builder.quantize.observe import (
    BUDGET_BYTES,
    check_samples,
    fixed_batch,
    open_session,
    run,
    stream,
    tensor_bytes,
)

MAX_SQNR_DB = 200.0  # what a layer without any noise is given
_CONVERSIONS = frozenset({Q, DQ, "Cast"})
_SAMPLES = 32  # are enough for a figure that is shown with one decimal


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """One layer cut out of the placed graph.

    Attributes:
        layer: The layer.
        nodes: What computes it, constants left out.
        stored: Its constants.
        feeds: Input of the cut → the fp32 graph's tensor that it takes, and the input's element type.
        output: The cut's output.
        exact: The same tensor in the fp32 graph.
    """

    layer: str
    nodes: tuple[onnx.NodeProto, ...]
    stored: tuple[TensorProto, ...]
    feeds: dict[str, tuple[str, int]]
    output: str
    exact: str

    @property
    def tensors(self) -> tuple[str, ...]:
        """The fp32 graph's tensors that it is measured with."""
        return (*dict.fromkeys([source for source, _ in self.feeds.values()] + [self.exact]),)


def signal_to_noise(
    exact: onnx.ModelProto, placed: onnx.ModelProto, layers: Sequence[str], samples: Mapping[str, Array]
) -> dict[str, float]:
    """Measure lowered layers.

    Args:
        exact: The fp32 graph, as ``placement.place`` took it.
        placed: The placed graph, fp16 regions made.
        layers: Names of layers that are int8 or fp16 in it.
        samples: Calibration samples by input name, batch first; the first 32 are used.

    Returns:
        Layer → dB; layers that cannot be cut out, as those of several outputs, are left out.

    Raises:
        QuantizeError: A graph does not run on the samples.
    """
    cuts = list(_cuts(exact, placed, frozenset(layers)))
    if not cuts:
        return {}
    count = max(_SAMPLES, fixed_batch(exact, samples) or 1)
    few = {name: value[:count] for name, value in check_samples(exact, samples).items()}
    sizes = tensor_bytes(exact, list(dict.fromkeys(name for cut in cuts for name in cut.tensors)), few)
    powers: dict[str, Array] = {cut.layer: np.zeros(2) for cut in cuts}
    for group in _groups(cuts, sizes):
        alone = open_session(_model(placed, group), [], optimize=False)
        tensors = [name for cut in group for name in cut.tensors]
        for held in stream(exact, tensors, few, batch_size=count, budget_bytes=BUDGET_BYTES, together=True):
            _add_powers(powers, group, held, alone)
    return {name: decibels(float(signal), float(noise)) for name, (signal, noise) in powers.items()}


def _groups(cuts: Sequence[_Cut], sizes: Mapping[str, int]) -> Iterator[list[_Cut]]:
    """Yield layers in groups whose tensors for the smallest batch fit into memory together."""
    group: list[_Cut] = []
    held = 0
    for cut in cuts:
        size = sum(sizes[name] for name in cut.tensors)
        if group and held + size > BUDGET_BYTES // 2:
            yield group
            group, held = [], 0
        group.append(cut)
        held += size
    if group:
        yield group


def _add_powers(
    powers: dict[str, Array], group: Sequence[_Cut], held: Mapping[str, Array], alone: ort.InferenceSession
) -> None:
    """Run layers on what the fp32 graph's tensors hold, and add the powers of signal and noise, in place."""
    feeds = {
        name: held[source].astype(np.float16) if kind == TensorProto.FLOAT16 else held[source]
        for cut in group
        for name, (source, kind) in cut.feeds.items()
    }
    found = run(alone, [cut.output for cut in group], feeds)
    for cut in group:
        signal = held[cut.exact].astype(np.float64)
        noise = found[cut.output].astype(np.float64) - signal
        powers[cut.layer] += np.square(signal).sum(), np.square(noise).sum()


def decibels(signal: float, noise: float) -> float:
    """Return 10·log10(signal / noise), limited to ±200 dB so that it is a number in JSON."""
    if noise == 0:
        return MAX_SQNR_DB
    if signal == 0 or not math.isfinite(noise):
        return -MAX_SQNR_DB
    return max(-MAX_SQNR_DB, min(MAX_SQNR_DB, 10 * math.log10(signal / noise)))


class _Fixed(Graph):
    """A graph that knows which of its tensors are made of constants alone.

    Attributes:
        fixed: Their names. Found once, from the front: a search back from each layer would go through all before it.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self.fixed = set(self.constants)
        for node in model.graph.node:
            if node.input and all(name in self.fixed for name in node.input if name):
                self.fixed.update(node.output)


def _cuts(exact: onnx.ModelProto, placed: onnx.ModelProto, layers: frozenset[str]) -> Iterator[_Cut]:
    """Yield a cut for the first node of each layer that can be cut out."""
    originals = {node.name: node for node in exact.graph.node}
    graph, kinds, done = _Fixed(placed), _kinds(placed), set()
    for node in placed.graph.node:
        layer, original = layer_of(node), originals.get(node.name)
        if layer in layers and layer not in done and original is not None and layer is not None:
            done.add(layer)
            found = _cut_out(graph, kinds, layer, node, original)
            if found is not None:
                yield found


def _cut_out(
    graph: _Fixed, kinds: Mapping[str, int], layer: str, node: onnx.NodeProto, original: onnx.NodeProto
) -> _Cut | None:
    """Cut one node out with its conversions and its constants; None where its inputs are not those of the original."""
    own = onnx.NodeProto()
    own.CopyFrom(node)
    chain: list[onnx.NodeProto] = [own]
    feeds: dict[str, tuple[str, int]] = {}
    fixed: dict[str, onnx.NodeProto] = {}
    stored: dict[str, TensorProto] = {}
    for place, name in enumerate(node.input):
        if not name or _fixed(graph, name, fixed, stored):
            continue
        if place >= len(original.input):
            return None
        start = f"{layer}@{place}"
        before, source = _conversions(graph, name, start)
        chain = [*before, *chain]
        own.input[place] = f"{start}/{len(before)}" if before else start
        for item in before:
            for constant in item.input[1:]:
                if not _fixed(graph, constant, fixed, stored):
                    return None
        feeds[start] = (original.input[place], kinds.get(source, TensorProto.FLOAT))
    output = own.output[0]
    if output not in (original.output[0], *_aliases(original.output[0])):
        rest = [item for item in graph.consumers[output] if item.name.startswith(f"{node.name}/bias")]
        other = next((name for item in rest for name in item.input if name != output), "")
        if len(rest) != 1 or not _fixed(graph, other, fixed, stored):
            return None
        chain.append(rest[0])  # a Gemm's bias of an odd shape, added behind it
        output = rest[0].output[0]
    nodes = (*fixed.values(), *chain)
    return _Cut(
        layer=layer, nodes=nodes, stored=tuple(stored.values()), feeds=feeds, output=output, exact=original.output[0]
    )


def _aliases(name: str) -> tuple[str, ...]:
    return (f"{name}/original", f"{name}_fp16")


def _conversions(graph: Graph, name: str, start: str) -> tuple[list[onnx.NodeProto], str]:
    """Return the Q, DQ and Casts before a tensor, renamed into a chain from ``start``, and the tensor before them."""
    found: list[onnx.NodeProto] = []
    while (maker := graph.producers.get(name)) is not None and maker.op_type in _CONVERSIONS:
        found.append(maker)
        name = maker.input[0]
    chain = []
    tensor = start
    for place, maker in enumerate(reversed(found), 1):
        made = onnx.NodeProto()
        made.CopyFrom(maker)
        made.name, made.input[0], made.output[0] = f"{start}/{place}", tensor, f"{start}/{place}"
        tensor = made.output[0]
        chain.append(made)
    return chain, name


def _fixed(graph: _Fixed, name: str, nodes: dict[str, onnx.NodeProto], stored: dict[str, TensorProto]) -> bool:
    """Whether a tensor is made of constants alone; then add what makes it, in order."""
    if name in graph.constants:
        constant = TensorProto()
        constant.CopyFrom(graph.constants[name])
        constant.name = name
        stored[name] = constant
        return True
    if name not in graph.fixed:
        return False
    maker = graph.producers[name]
    for item in maker.input:
        if item:
            _fixed(graph, item, nodes, stored)
    nodes.setdefault(maker.output[0], maker)
    return True


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Return tensors' element types as the graph states them."""
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    return {item.name: item.type.tensor_type.elem_type for item in values}


def _model(placed: onnx.ModelProto, cuts: Sequence[_Cut]) -> onnx.ModelProto:
    """Return a model of layers side by side."""
    kinds = _kinds(placed)
    inputs = [helper.make_tensor_value_info(name, kind, None) for cut in cuts for name, (_, kind) in cut.feeds.items()]
    outputs = [
        helper.make_tensor_value_info(cut.output, kinds.get(cut.output, TensorProto.FLOAT), None) for cut in cuts
    ]
    nodes = {node.output[0]: node for cut in cuts for node in cut.nodes}
    stored = {item.name: item for cut in cuts for item in cut.stored}
    graph = helper.make_graph(list(nodes.values()), "layers", inputs, outputs, initializer=list(stored.values()))
    return helper.make_model(graph, opset_imports=placed.opset_import, ir_version=placed.ir_version)
