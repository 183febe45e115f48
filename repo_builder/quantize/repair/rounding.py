"""Adaptive rounding: weights rounded up or down as the layer's outputs ask.

M. Nagel, R. A. Amjad, M. van Baalen, C. Louizos, T. Blankevoort, "Up or Down? Adaptive Rounding for Post-Training
Quantization" (ICML 2020), section 3.

Of the codes below and above each weight, those are taken that change the layer's outputs least, not those that are
nearest: for a row w of the weight and inputs x, the error e = ŵ - w costs E[(e·x)²] = eᵀ·H·e with H = E[x·xᵀ] (equation
13). The publication relaxes that problem and descends in torch. Here it is solved as it is, by coordinates: from the
nearest codes on, the one code of each row whose change lowers the cost most is changed, until none does. Every step
lowers the cost, so no row ends worse than nearest on the samples, and equal samples give equal codes.

H is summed over samples as they stream by; memory is bounded by H, whatever their number. The codes end in
``WeightRange.codes``, so every target with 127 steps writes the very same int8 weight.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from repo_builder.core.tensors import Array
from repo_builder.quantize.observe import stream
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.weights import LARGEST, weights_of
from repo_builder.quantize.ranges import WeightRange
from repo_builder.quantize.repair.linear import Layer, layers
from repo_builder.quantize.repair.patches import patches
from repo_builder.quantize.repair.protocol import Repaired, State, Work

_ROWS = 8192  # of a layer's input that make its H
_BUDGET_BYTES = 256 << 20  # of H that are held at a time
_DAMPING = 0.01  # of H's mean diagonal, added to it: directions that no sample takes are not free
_MOST_STEPS = 1_000_000_000  # products of one layer's search


def adaptive(state: State, work: Work) -> Repaired:
    """Choose the codes of all int8 layers with a weight of Conv, Gemm or MatMul."""
    index = Index(state.model)
    known = layers(index, work.plans, several=True)
    by_name: dict[str, list[Layer]] = {}
    for layer in known.values():
        if layer.plan.precision == "int8" and layer.plan.name in state.ranges.weights:
            by_name.setdefault(layer.plan.name, []).append(layer)
    weights, changed, total = dict(state.ranges.weights), 0, 0
    for some in _shares(list(by_name.values())):
        products = _products(state, work, some)
        for nodes in some:
            name = nodes[0].plan.name
            codes, moved = _chosen(index, nodes[0], weights[name], products.pop(name))
            weights[name] = replace(weights[name], codes=codes)
            changed, total = changed + moved, total + codes.size
    if not changed:
        return Repaired(
            did="the nearest codes are the best already" if total else "no int8 layer's weight is a constant"
        )
    ranges = replace(state.ranges, weights=weights)
    did = f"{changed / total:.1%} of the weights of {len(by_name)} layers get another code than the nearest"
    return Repaired(state=replace(state, ranges=ranges), did=did)


def _shares(found: Sequence[list[Layer]]) -> Iterator[list[list[Layer]]]:
    """Yield layers whose H fit into memory together."""
    share: list[list[Layer]] = []
    held = 0
    for nodes in found:
        rows = nodes[0].rows(nodes[0].weight)
        size = rows.shape[0] * rows.shape[2] ** 2 * 4
        if share and held + size > _BUDGET_BYTES:
            yield share
            share, held = [], 0
        share.append(nodes)
        held += size
    if share:
        yield share


def _products(state: State, work: Work, some: Sequence[list[Layer]]) -> dict[str, Array]:
    """Return H of each layer, float32 (groups, products, products), a mean over rows of its input."""
    readers: dict[str, list[Layer]] = {}
    for nodes in some:
        for layer in nodes:
            readers.setdefault(layer.node.input[0], []).append(layer)
    draws = {nodes[0].plan.name: np.random.default_rng([work.seed, _number(nodes[0].plan.name)]) for nodes in some}
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    runs = -(-len(next(iter(work.samples.values()))) // work.spec.batch_size)
    for part in stream(state.model, list(readers), work.samples, batch_size=work.spec.batch_size):
        for tensor, values in part.items():
            for layer in readers[tensor]:
                name = layer.plan.name
                rows = patches(layer, values, max(1, _ROWS // runs), draws[name])
                found = rows.swapaxes(1, 2) @ rows
                sums[name] = sums[name] + found if name in sums else found
                counts[name] = counts.get(name, 0) + rows.shape[1]
    return {name: value / np.float32(counts[name]) for name, value in sums.items()}


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


def _chosen(index: Index, layer: Layer, kept: WeightRange, products: Array) -> tuple[Array, int]:
    """Return a layer's codes, int8 as its weight is stored, and how many are not the nearest."""
    plain = replace(kept, codes=None, shift=None)
    found = weights_of(index, layer.node, plain, steps=LARGEST, step=None, layer=layer.plan.name)
    nearest = found.codes(LARGEST)
    exact = layer.rows(found.weight / found.along(found.scale).astype(np.float64))
    codes = np.stack([
        solve(rows, codes, part)
        for rows, codes, part in zip(exact, layer.rows(nearest), products, strict=True)
    ])  # fmt: skip
    made = layer.stored(codes)
    return (made if layer.positive else -made), int((made != nearest).sum())


def solve(exact: Array, nearest: Array, products: Array) -> Array:
    """Return codes next to the exact values that lower eᵀ·H·e, row by row, from the nearest on.

    Args:
        exact: The weight in steps, float64 (rows, products).
        nearest: Its nearest codes, int8 (rows, products).
        products: H, (products, products).

    Returns:
        int8 (rows, products); a value beyond the codes' range keeps its code.
    """
    size = float(np.diag(products).mean())
    matrix = products.astype(np.float32) / np.float32(size) if size > 0 else np.zeros_like(products, np.float32)
    matrix = matrix + np.float32(_DAMPING) * np.eye(len(matrix), dtype=np.float32)
    diagonal = np.diag(matrix).copy()
    codes = nearest.astype(np.float32)
    errors = (codes - exact).astype(np.float32)
    steps = np.where(errors > 0, -1.0, 1.0).astype(np.float32)  # to the code on the other side
    free = (np.abs(codes + steps) <= LARGEST) & (np.abs(exact) <= LARGEST)
    slopes = errors @ matrix
    rows = np.arange(len(codes))
    for _ in range(max(1, min(4 * codes.shape[1], _MOST_STEPS // max(1, codes.size)))):
        gains = np.where(free[rows], 2 * steps[rows] * slopes[rows] + diagonal, 0)
        best = gains.argmin(axis=1)
        better = gains[np.arange(len(rows)), best] < -1e-6 * diagonal[best]
        rows, best = rows[better], best[better]
        if not len(rows):
            break
        step = steps[rows, best]
        codes[rows, best] += step
        slopes[rows] += step[:, None] * matrix[best]
        steps[rows, best] = -step
    return np.asarray(codes, np.int8)
