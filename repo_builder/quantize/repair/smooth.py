"""Outliers of a norm's outputs moved into the weights behind it.

G. Xiao, J. Lin, M. Seznec, H. Wu, J. Demouth, S. Han, "SmoothQuant: Accurate and Efficient Post-Training Quantization
for Large Language Models" (ICML 2023), equations 3 and 4.

(X / s)·(s·W) = X·W. With s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), j an input channel, activations have fewer
outliers, and weights, which are easier to quantize, take them on. Where only linear layers read the norm's output, 1/s
becomes part of the norm's own scale and bias. Where others do, as the residual sum behind a post-norm does, they read
what they read before, and one product with 1/s a channel stands in front of the linear layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from repo_builder.core.graphs import attribute, own
from repo_builder.core.tensors import Array
from repo_builder.quantize.observe import stream
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.repair.linear import Editor, Layer, layers
from repo_builder.quantize.repair.protocol import Repaired, State, Work

_LEAST, _LARGEST = 2.0**-100, 2.0**100  # a channel below is as good as zero, one above nears infinity: both stay
_MOST = 2.0**16


@dataclass(frozen=True, kw_only=True)
class Seam:
    """A norm's output and the linear layers that read it.

    Attributes:
        tensor: What the norm makes.
        readers: The linear layers that are to be int8.
        holders: Node and input of each constant of the norm that 1/s can become part of; empty where another reads
            ``tensor``, too.
    """

    tensor: str
    readers: tuple[Layer, ...]
    holders: tuple[tuple[int, int], ...]


def smooth(state: State, work: Work) -> Repaired:
    """Smooth every norm's output that int8 linear layers read."""
    alpha = work.spec.repair.smooth
    index = Index(state.model)
    found = list(seams(index, layers(index, work.plans)))
    if alpha is None or not found:
        return Repaired(did="no norm feeds an int8 linear layer")
    sizes = channel_sizes(state.model, [item.tensor for item in found], work)
    editor, folded, largest = Editor(index), 0, 1.0
    behind: list[tuple[int, onnx.NodeProto]] = []
    for seam in found:
        factors = factors_of(seam, sizes[seam.tensor], alpha)
        if (factors == 1).all():
            continue
        largest = max(largest, float(factors.max()), float(1 / factors.min()))
        folded += bool(seam.holders)
        behind += apply(editor, index, seam, factors)
    if largest == 1:
        return Repaired(did="its factors are 1 everywhere")
    model = editor.done(behind)
    ranges, seen = work.calibrate(model)
    did = f"{len(found)} norms, by factors up to {largest:.3g}, {folded} of them in the norm itself"
    if behind:
        did += f", {len(behind)} by a product before the linear layers, as others read the norm, too"
    return Repaired(state=State(model=model, ranges=ranges, seen=seen), did=did)


def seams(index: Index, known: Mapping[int, Layer]) -> Iterator[Seam]:
    """Yield the outputs of norms that int8 linear layers read."""
    by_input: dict[str, list[Layer]] = {}
    for layer in known.values():
        node = layer.node
        if node.op_type != "Conv" and layer.plan.precision == "int8" and list(node.input).count(node.input[0]) == 1:
            by_input.setdefault(node.input[0], []).append(layer)
    for tensor, readers in by_input.items():
        width = readers[0].inputs
        holders = _norm(index, tensor, width)
        if holders is None or any(item.inputs != width for item in readers):
            continue
        alone = len(index.readers[tensor]) == len(readers) and tensor not in index.outputs | index.inner
        yield Seam(tensor=tensor, readers=tuple(readers), holders=tuple(holders) if alone else ())


def _norm(index: Index, tensor: str, width: int) -> list[tuple[int, int]] | None:
    """Return node and input of the constants of the norm that makes a tensor, None where no norm does.

    A norm is LayerNormalization over the last axis, or the product with one constant a channel and the sum with
    another that end one written in small steps; the sum may be missing (RMS).
    """
    place = index.makers.get(tensor)
    node = index.nodes[place] if place is not None else None
    if place is None or node is None or not own(node):
        return None
    if node.op_type == "LayerNormalization":
        inputs = [at for at in (1, 2) if len(node.input) > at and node.input[at]]
        good = attribute(node, "axis", -1) == -1 and all(_vector(index, node.input[at], width) for at in inputs)
        return [(place, at) for at in inputs] if good else None
    if node.op_type not in ("Add", "Mul"):
        return None
    constant = next((at for at, name in enumerate(node.input) if _vector(index, name, width)), None)
    if constant is None:
        return None
    if node.op_type == "Mul":
        return [(place, constant)]
    product = node.input[1 - constant]
    alone = len(index.readers[product]) == 1 and product not in index.outputs | index.inner
    maker = index.makers.get(product, -1)
    inner = _norm(index, product, width) if alone and maker >= 0 and index.nodes[maker].op_type == "Mul" else None
    return None if inner is None else [*inner, (place, constant)]


def _vector(index: Index, name: str, width: int) -> bool:
    value = index.value(name) if name and index.constant(name) else None
    return value is not None and value.dtype == np.float32 and value.shape == (width,)


def channel_sizes(model: onnx.ModelProto, tensors: Sequence[str], work: Work) -> dict[str, Array]:
    """Return the largest absolute value of each channel (the last axis) of tensors over the samples, float64."""
    found: dict[str, Array] = {}
    for part in stream(model, tensors, work.samples, batch_size=work.spec.batch_size):
        for name, values in part.items():
            sizes = np.abs(values.reshape(-1, values.shape[-1])).max(axis=0, initial=0).astype(np.float64)
            found[name] = np.maximum(sizes, found[name]) if name in found else sizes
    return found


def factors_of(seam: Seam, sizes: Array, alpha: float) -> Array:
    """Return s, float64 (channels,): 1 where a channel or its weights are as good as zero, or near infinity."""
    weights = np.max([item.input_sizes(item.weight.astype(np.float64)) for item in seam.readers], axis=0)
    usable = (np.minimum(sizes, weights) > _LEAST) & (np.maximum(sizes, weights) < _LARGEST)
    sizes, weights = np.where(usable, sizes, 1.0), np.where(usable, weights, 1.0)
    found = np.where(usable, sizes**alpha / weights ** (1 - alpha), 1.0)
    # one factor for all channels changes nothing: their geometric mean is taken out, so that values keep their size
    middle = np.exp(np.log(found[usable]).mean()) if usable.any() else 1.0
    return np.where(usable, np.clip(found / middle, 1 / _MOST, _MOST), 1.0)


def apply(editor: Editor, index: Index, seam: Seam, factors: Array) -> Iterator[tuple[int, onnx.NodeProto]]:
    """Write a seam's factors; yield the product to put behind the norm where there has to be one."""
    for layer in seam.readers:
        editor.give(layer.place, 1, layer.weight.astype(np.float64) * layer.along_inputs(factors), "smoothed")
    for place, position in seam.holders:
        value = index.value(index.nodes[place].input[position])
        if value is not None:
            editor.give(place, position, value.astype(np.float64) / factors, "smoothed")
    if not seam.holders:
        scaled = editor.name(f"{seam.tensor}/smoothed")
        factor = editor.constant(f"{seam.tensor}/smoothing", 1 / factors)
        for layer in seam.readers:
            editor.nodes[layer.place].input[0] = scaled
        yield index.makers[seam.tensor], helper.make_node("Mul", [seam.tensor, factor], [scaled], editor.name(scaled))
