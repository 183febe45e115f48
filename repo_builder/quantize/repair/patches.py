"""What each product of a layer multiplies: the input as rows, one a group of output channels and position."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view

from repo_builder.core.tensors import Array
from repo_builder.quantize.repair.linear import Layer


def patches(layer: Layer, values: Array, most: int, draw: np.random.Generator) -> Array:
    """Return rows of a layer's input, float32 (groups, rows, products of an output).

    Args:
        layer: The layer.
        values: Its input.
        most: Rows to return; where there are more they are drawn.
        draw: Draws them.
    """
    if layer.node.op_type != "Conv":
        rows = values.reshape(-1, values.shape[-1])
        if len(rows) > most:
            rows = rows[np.sort(draw.choice(len(rows), most, replace=False))]
        return np.asarray(rows, np.float32)[None]
    kernel = layer.weight.shape[2:]
    strides, dilations = (_ints(layer.node, name, [1] * len(kernel)) for name in ("strides", "dilations"))
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    padded = np.pad(values, [(0, 0), (0, 0), *_pads(layer.node, values.shape[2:], spans, strides)])
    windows = sliding_window_view(padded, tuple(spans), axis=tuple(range(2, values.ndim)))  # type: ignore[call-overload]
    steps = [1, 1, *strides, *dilations]
    windows = windows[tuple(slice(None, None, step) for step in steps)]
    windows = np.moveaxis(windows, 1, len(kernel) + 1)  # samples, positions, channels, kernel
    places = windows.shape[: len(kernel) + 1]
    count = int(np.prod(places))
    chosen = np.arange(count) if count <= most else np.sort(draw.choice(count, most, replace=False))
    rows = windows[np.unravel_index(chosen, places)]
    return np.asarray(rows.reshape(len(chosen), layer.groups, -1).swapaxes(0, 1), np.float32)


def _ints(node: onnx.NodeProto, name: str, default: list[int]) -> list[int]:
    return next((list(item.ints) for item in node.attribute if item.name == name), default)


def _pads(node: onnx.NodeProto, sides: tuple[int, ...], spans: list[int], strides: list[int]) -> list[tuple[int, int]]:
    """Return the zeros before and behind each side, as ONNX's ``pads`` or ``auto_pad`` say."""
    auto = next((item.s.decode() for item in node.attribute if item.name == "auto_pad"), "NOTSET")
    if auto.startswith("SAME"):
        found = []
        for side, span, step in zip(sides, spans, strides, strict=True):
            total = max((-(-side // step) - 1) * step + span - side, 0)
            less, more = total // 2, total - total // 2
            found.append((less, more) if auto == "SAME_UPPER" else (more, less))
        return found
    pads = _ints(node, "pads", [0] * (2 * len(spans)))
    return list(zip(pads[: len(spans)], pads[len(spans) :], strict=True))
