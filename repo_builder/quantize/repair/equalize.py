"""Cross-layer equalisation: channels between two layers brought to one size.

M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction" (ICCV 2019), section 4.1.

Where y = W2·f(W1·x + b1) and f(s·v) = s·f(v) for every s > 0, a channel i may be made s_i times smaller before f and as
much larger behind it: (W1/s, b1/s, W2·s) computes the same y. With s_i = sqrt(r1_i / r2_i), r being the largest
absolute weight of the channel on either side, both sides have the same size sqrt(r1_i·r2_i), and 8 bits over all
channels serve each alike. Pairs of layers are taken in turns until nothing moves.

Between two layers may stand what ``chains.py`` names. A Clip at 0 and 6 is none of it: with ``relu6 = "relu"`` it
becomes a Relu first, which changes the network where values reach 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from repo_builder.core.graphs import attribute
from repo_builder.core.tensors import Array
from repo_builder.quantize.observe import stream
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.repair.chains import Pair, pairs
from repo_builder.quantize.repair.linear import Editor, layers
from repo_builder.quantize.repair.protocol import Repaired, State, Work

_SWEEPS = 40
_STILL = 1e-3  # of a factor: nothing moves any more
_LEAST = 2.0**-100  # a channel whose weights never exceed this is as good as zero, and stays
_MOST = 2.0**16  # by which a channel may change in all


def equalize(state: State, work: Work) -> Repaired:
    """Equalize all pairs of layers of which one is to be int8 and none fp16."""
    index = Index(state.model)
    found = list(pairs(index, layers(index, work.plans)))
    left = [item for item in found if item.clips and work.spec.repair.relu6 == "keep"]
    more = f'; {len(left)} more go through a Clip and stay (relu6 = "relu" takes them in)' if left else ""
    scaled = Scaling(index, [item for item in found if item not in left])
    scaled.solve()
    if not scaled.moved:
        return Repaired(did=f"there are no two layers to equalize{more}")
    model = scaled.written()
    ranges, seen = work.calibrate(model)
    count = len(scaled.moved)
    did = f"{count} pair{'s' * (count > 1)} of layers, by factors up to {scaled.largest:.3g}"
    return Repaired(state=State(model=model, ranges=ranges, seen=seen), did=f"{did}{_cut(work, index, scaled)}{more}")


class Scaling:
    """Weights and biases of pairs under scaling, float64, until they are written.

    Args:
        index: The graph.
        found: Its pairs; those whose bias is not one constant a channel are left alone.

    Attributes:
        moved: The pairs of which a channel changed.
        largest: The largest factor, or one over the smallest.
    """

    def __init__(self, index: Index, found: Sequence[Pair]) -> None:
        self.index, self.largest = index, 1.0
        self.moved: list[Pair] = []
        self._biases = {item.first.place: _bias(index, item) for item in found}
        self._pairs = [item for item in found if self._biases[item.first.place] is not None]
        both = [layer for item in self._pairs for layer in (item.first, item.second)]
        self._weights = {layer.place: layer.weight.astype(np.float64) for layer in both}
        self._factors = {item.first.place: np.ones(item.first.outputs) for item in self._pairs}

    def solve(self) -> None:
        """Sweep over the pairs until nothing moves."""
        for _ in range(_SWEEPS):
            if max((self._step(item) for item in self._pairs), default=0.0) < _STILL:
                break
        self.moved = [item for item in self._pairs if (np.abs(self._factors[item.first.place] - 1) > _STILL).any()]
        found = [self._factors[item.first.place] for item in self.moved]
        self.largest = max((float(max(one.max(), 1 / one.min())) for one in found), default=1.0)

    def _step(self, pair: Pair) -> float:
        """Equalize one pair; return how far the largest factor is from 1."""
        first, second = pair.first, pair.second
        before, behind = self._weights[first.place], self._weights[second.place]
        made = first.output_sizes(before)
        taken = second.input_sizes(behind).reshape(-1, pair.repeats).max(axis=1)
        usable = (made > _LEAST) & (taken > _LEAST)
        factors = np.sqrt(np.where(usable, made, 1.0) / np.where(usable, taken, 1.0))
        old = self._factors[first.place]
        total = np.clip(old * factors, 1 / _MOST, _MOST)
        factors = total / old
        before = before / first.along_outputs(factors)
        behind = behind * second.along_inputs(np.repeat(factors, pair.repeats))
        bias, _ = self._biases[first.place] or (np.zeros(1), None)
        if not all(np.isfinite(_float32(item)).all() for item in (before, behind, bias / total)):
            return 0.0  # float32 does not hold it
        self._weights[first.place], self._weights[second.place] = before, behind
        self._factors[first.place] = total
        return float(np.abs(factors - 1).max(initial=0.0))

    def written(self) -> onnx.ModelProto:
        """Return the graph with the scaled weights and biases, and with Relu for the Clips between."""
        editor = Editor(self.index)
        for place in {layer.place: None for item in self.moved for layer in (item.first, item.second)}:
            editor.give(place, 1, self._weights[place], "equalized")
        for pair in self.moved:
            bias, position = self._biases[pair.first.place] or (np.zeros(1), None)
            if position is not None:
                holder = pair.first.place if pair.added is None else pair.added
                editor.give(holder, position, bias / self._factors[pair.first.place], "equalized_bias")
            for place in pair.clips:
                node = editor.nodes[place]
                node.op_type = "Relu"
                del node.input[1:], node.attribute[:]
        return editor.done()


def _float32(value: Array) -> Array:
    with np.errstate(over="ignore"):
        return value.astype(np.float32)


def _bias(index: Index, pair: Pair) -> tuple[Array, int | None] | None:
    """Return a first layer's bias, float64, and the input that holds it; None where it is not one constant a channel.

    No bias is zeros that nothing holds.
    """
    node = pair.first.node if pair.added is None else index.nodes[pair.added]
    if pair.added is not None:
        position: int | None = 0 if index.constant(node.input[0]) else 1
    else:
        position = 2 if len(node.input) > 2 and node.input[2] else None
    if position is None:
        return np.zeros(pair.first.outputs), None
    value = index.value(node.input[position])
    if value is None or value.dtype != np.float32 or value.size not in (1, pair.first.outputs):
        return None
    if value.size > 1 and value.shape[-1] != value.size:
        return None
    return np.broadcast_to(value.astype(np.float64).ravel(), (pair.first.outputs,)), position


def _cut(work: Work, index: Index, scaled: Scaling) -> str:
    """Say how many Clips became Relu, and of how many of their values on calibration samples they cut something."""
    places = [place for pair in scaled.moved for place in pair.clips]
    if not places:
        return ""
    bounds: dict[str, float] = {}
    for place in places:
        node = index.nodes[place]
        value = index.value(node.input[2]) if len(node.input) > 2 else None
        bounds[node.input[0]] = float(np.min(value)) if value is not None else attribute(node, "max", np.inf)
    cut = total = 0
    for part in stream(index.model, list(bounds), work.samples, batch_size=work.spec.batch_size):
        cut += sum(int((values > bounds[name]).sum()) for name, values in part.items())
        total += sum(values.size for values in part.values())
    said = "1 Clip became a Relu and" if len(places) == 1 else f"{len(places)} Clips became Relu and"
    return f"; {said} would have cut {cut / max(1, total):.2%} of the values there"
