"""4-bit codes that make up for each other's rounding: ``calibrator = "gptq"``.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (ICLR 2023), section 3.

What an output w of a layer loses to codes that stand for ŵ is E[((ŵ - w)·x)²] = (ŵ - w)ᵀ·H·(ŵ - w) with H = E[x·xᵀ]
over the layer's inputs. Weights are rounded one input after another, those first whose inputs are largest, and what one
costs is taken back by those that are left: with U upper triangular and UᵀU = H⁻¹, rounding w_i changes every later w_j
by -U_ij·(w_i - ŵ_i) / U_ii. Scales and zero points are those of round to nearest (``max``), and an output whose codes
lose more than the nearest ones keeps these: none is worse than round to nearest on the calibration samples.

H is summed as samples stream by; memory is bounded by the H that are held, whatever the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from repo_builder.core import progress
from repo_builder.core.errors import QuantizeError
from repo_builder.core.graphs import layer_of, own
from repo_builder.core.tensors import Array
from repo_builder.quantize.observe import stream
from repo_builder.quantize.placement import blocks
from repo_builder.quantize.placement.blocked import matrix, why_not
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.ranges import BlockRange
from repo_builder.quantize.rules import LayerPlan

_ROWS = 8192  # of a layer's input that make its H
_BUDGET_BYTES = 256 << 20  # of H that are held at a time
_DAMPING = 0.01  # of H's mean diagonal, added to it: directions that no sample takes are not free
_AT_ONCE = 128  # inputs whose errors reach the others together


def compensated(
    model: onnx.ModelProto,
    plans: Sequence[LayerPlan],
    found: Mapping[str, BlockRange],
    samples: Mapping[str, Array],
    batch_size: int,
) -> dict[str, BlockRange]:
    """Return the blocks of int4 layers with codes for those whose rule says ``gptq``.

    Args:
        model: The fp32 graph.
        plans: What each layer is to become.
        found: Layer → its blocks, from ``block_ranges``.
        samples: Calibration samples by input name, batch first.
        batch_size: Samples of a run, at most.

    Raises:
        QuantizeError: The model does not run on the samples, or a layer's input is not finite.
    """
    made = dict(found)
    asked = {item.name for item in plans if item.rule is not None and item.rule.weight.calibrator == "gptq"}
    nodes = _nodes(Index(model), asked & found.keys())
    if not nodes:
        return made
    with progress.step("compensate int4") as step:
        for some in _shares(nodes, found):
            products = _products(model, some, samples, batch_size)
            for name, matrices in some.items():
                weight = matrix(Index(model), matrices[0])
                made[name] = replace(found[name], codes=chosen(weight, found[name], products.pop(name)))
        step.note(f"{len(nodes)} layers")
    return made


def _nodes(index: Index, layers: set[str]) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes that compute each layer: a module that is used twice has several."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in index.nodes:
        layer = layer_of(node) if own(node) else None
        if layer in layers and not why_not(index, node):
            found.setdefault(layer, []).append(node)
    return found


def _shares(
    nodes: Mapping[str, list[onnx.NodeProto]], found: Mapping[str, BlockRange]
) -> Iterator[dict[str, list[onnx.NodeProto]]]:
    """Yield layers whose H fit into memory together."""
    share: dict[str, list[onnx.NodeProto]] = {}
    held = 0
    for name, some in nodes.items():
        size = found[name].inputs ** 2 * 4
        if share and held + size > _BUDGET_BYTES:
            yield share
            share, held = {}, 0
        share[name] = some
        held += size
    yield share


def _products(
    model: onnx.ModelProto, nodes: Mapping[str, list[onnx.NodeProto]], samples: Mapping[str, Array], batch_size: int
) -> dict[str, Array]:
    """Return H of each layer, float32 (inputs, inputs), a mean over rows of its input."""
    readers: dict[str, list[str]] = {}
    for name, some in nodes.items():
        for node in some:
            readers.setdefault(node.input[0], []).append(name)
    most = max(1, _ROWS // -(-len(next(iter(samples.values()))) // batch_size))
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for part in stream(model, list(readers), samples, batch_size=batch_size):
        for tensor, values in part.items():
            rows = values.reshape(-1, values.shape[-1])
            rows = np.ascontiguousarray(rows[:: -(-len(rows) // most)], np.float32) if len(rows) else rows
            product = rows.T @ rows
            if not np.isfinite(product).all():
                message = "its input holds NaN, infinity or values whose squares are, on the calibration data"
                raise QuantizeError(message, where=readers[tensor][0], hint='give its weight calibrator = "mse"')
            for name in readers[tensor]:
                sums[name] = sums[name] + product if name in sums else product
                counts[name] = counts.get(name, 0) + len(rows)
    return {name: value / np.float32(max(1, counts[name])) for name, value in sums.items()}


def chosen(weight: Array, found: BlockRange, products: Array) -> Array:
    """Return codes that lose no more than the nearest ones at any output, as ``blocks.codes`` gives them.

    Args:
        weight: float32 (inputs, outputs).
        found: Its blocks.
        products: H, (inputs, inputs).
    """
    nearest = blocks.codes(weight, replace(found, codes=None))
    codes = _rounded(weight, found, products)
    worse = ~(loss(weight, codes, found, products) < loss(weight, nearest, found, products))
    codes[:, worse] = nearest[:, worse]
    return codes


def loss(weight: Array, codes: Array, found: BlockRange, products: Array) -> Array:
    """Return what each output loses to codes, float64 (outputs,).

    Args:
        weight: float32 (inputs, outputs).
        codes: Of it.
        found: Its blocks.
        products: H, (inputs, inputs).
    """
    error = blocks.values(codes, found) - weight
    return np.asarray(np.einsum("io,io->o", error, products @ error, dtype=np.float64))


def _rounded(weight: Array, found: BlockRange, products: Array) -> Array:
    size = len(weight)
    mean = float(np.diag(products).mean())
    matrix = products.astype(np.float64) / (mean if mean > 0 else 1.0)
    matrix[np.diag_indices(size)] += _DAMPING
    order = np.argsort(-np.diag(matrix), kind="stable")
    factor = _factor(matrix[np.ix_(order, order)]).astype(np.float32)
    left = np.ascontiguousarray(weight[order], np.float32)
    codes = np.empty(weight.shape, np.int8 if found.zero is None else np.uint8)
    for start in range(0, size, _AT_ONCE):
        stop = min(size, start + _AT_ONCE)
        errors = np.empty((stop - start, weight.shape[1]), np.float32)
        for place in range(start, stop):
            row = order[place]
            codes[row], value = blocks.nearest(left[place], found, int(row) // found.block)
            error = (left[place] - value) / factor[place, place]
            left[place + 1 : stop] -= np.outer(factor[place, place + 1 : stop], error)
            errors[place - start] = error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return codes


def _factor(matrix: Array) -> Array:
    """Return U, upper triangular, with UᵀU the inverse of a positive definite matrix."""
    turned = np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]  # matrix = R·Rᵀ, R upper triangular
    return np.asarray(np.linalg.inv(turned))
