"""What moves, cuts and shapes tensors, in torch; whole numbers that a graph computes stay on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Attributes = Mapping[str, Any]
Operator = Callable[..., Tensor | tuple[Tensor, ...]]


def numbers(value: Tensor | None) -> list[int]:
    """Return a tensor of whole numbers as a list; empty where it is left out."""
    return [] if value is None else [int(item) for item in value.reshape(-1).tolist()]


def together(*values: Tensor) -> list[Tensor]:
    """Return tensors on one device: constants and shapes that meet an activation go where it is."""
    where = next((item.device for item in values if item.device.type != "cpu"), None)
    return [item if where is None or item.device == where else item.to(where) for item in values]


def given(value: Tensor | None) -> Tensor:
    """Return an input that is needed.

    Raises:
        ValueError: It is left out.
    """
    if value is None:
        raise ValueError("an input that it needs is left out")
    return value


def _reshape(values: list[Tensor], attributes: Attributes) -> Tensor:
    x, wanted = values[0], numbers(values[1])
    if not attributes.get("allowzero"):
        wanted = [x.shape[place] if size == 0 else size for place, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(values: list[Tensor], attributes: Attributes) -> Tensor:
    x, axis = values[0], attributes.get("axis", 1)
    axis = axis % x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(values: list[Tensor], attributes: Attributes) -> Tensor:
    return values[0].permute(*attributes.get("perm", range(values[0].dim())[::-1]))


def _squeeze(values: list[Tensor | None], attributes: Attributes) -> Tensor:
    x = given(values[0])
    axes = numbers(values[1]) if len(values) > 1 else list(attributes.get("axes", ()))
    return x.squeeze(tuple(axes)) if axes else x.squeeze()


def _unsqueeze(values: list[Tensor], attributes: Attributes) -> Tensor:
    x = values[0]
    axes = numbers(values[1]) if len(values) > 1 else list(attributes["axes"])
    for axis in sorted(item % (x.dim() + len(axes)) for item in axes):
        x = x.unsqueeze(axis)
    return x


def _split(values: list[Tensor | None], attributes: Attributes) -> tuple[Tensor, ...]:
    x, axis = given(values[0]), attributes.get("axis", 0)
    sizes = numbers(values[1]) if len(values) > 1 else list(attributes.get("split", ()))
    return torch.split(x, sizes or math.ceil(x.shape[axis] / attributes["outputs"]), axis)


def _slice(values: list[Tensor | None], _: Attributes) -> Tensor:
    x = given(values[0])
    starts, stops = numbers(values[1]), numbers(values[2])
    axes = numbers(values[3]) if len(values) > 3 and values[3] is not None else list(range(len(starts)))
    steps = numbers(values[4]) if len(values) > 4 else [1] * len(starts)
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        places = range(*slice(start, stop if stop > -(2**62) else None, step).indices(x.shape[axis]))
        x = (
            x.narrow(axis, places[0], len(places))
            if step == 1 and len(places)
            else x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
        )
    return x


def _gather(values: list[Tensor], attributes: Attributes) -> Tensor:
    x, places = together(*values)
    axis = attributes.get("axis", 0) % x.dim()
    places = torch.where(places < 0, places + x.shape[axis], places).long()
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))


def _expand(values: list[Tensor], _: Attributes) -> Tensor:
    x, shape = values[0], numbers(values[1])
    rank = max(x.dim(), len(shape))
    have, wanted = [1] * (rank - x.dim()) + list(x.shape), [1] * (rank - len(shape)) + shape
    return x.expand([max(pair) if 0 not in pair else 0 for pair in zip(have, wanted, strict=True)])


def _pad(values: list[Tensor | None], attributes: Attributes) -> Tensor:
    x, sizes = given(values[0]), numbers(values[1])
    mode = attributes.get("mode", b"constant").decode()
    if len(values) > 3 and values[3] is not None:
        raise ValueError("it pads some axes only")
    rank = len(sizes) // 2
    order = [item for axis in range(rank)[::-1] for item in (sizes[axis], sizes[axis + rank])]
    if mode == "constant":
        value = float(values[2]) if len(values) > 2 and values[2] is not None else 0.0
        return functional.pad(x, order, value=value)
    return functional.pad(x, order[: 2 * (x.dim() - 2)], mode={"edge": "replicate"}.get(mode, mode))


def _resize(values: list[Tensor | None], attributes: Attributes) -> Tensor:
    x = given(values[0])
    sizes, scales = (values[3] if len(values) > 3 else None), (values[2] if len(values) > 2 else None)
    whole = numbers(sizes) if sizes is not None else []
    if not whole:
        factors = given(scales).tolist()
        whole = [math.floor(size * factor) for size, factor in zip(x.shape, factors, strict=True)]
    mode = attributes.get("mode", b"nearest").decode()
    how = attributes.get("coordinate_transformation_mode", b"half_pixel").decode()
    corners = how == "align_corners"
    if mode == "nearest" and (how, attributes.get("nearest_mode", b"round_prefer_floor")) == ("asymmetric", b"floor"):
        return functional.interpolate(x, whole[2:])
    if mode in ("linear", "cubic") and (corners or how in ("half_pixel", "pytorch_half_pixel")):
        kind = {"linear": {3: "linear", 4: "bilinear", 5: "trilinear"}.get(x.dim(), ""), "cubic": "bicubic"}[mode]
        return functional.interpolate(x, whole[2:], mode=kind, align_corners=corners)
    raise ValueError(f"resizing by {mode}, {how} has no form in torch")


def _depth_to_space(values: list[Tensor], attributes: Attributes) -> Tensor:
    size = attributes["blocksize"]
    if attributes.get("mode", b"DCR") == b"CRD":
        return functional.pixel_shuffle(values[0], size)
    count, channels, height, width = values[0].shape
    parts = values[0].reshape(count, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return parts.reshape(count, channels // size**2, height * size, width * size)


def _constant_of_shape(values: list[Tensor], attributes: Attributes) -> Tensor:
    value: Tensor = attributes.get("value", torch.zeros(1))
    return value.expand(numbers(values[0])) if len(values[0]) else value.reshape(())


def _trilu(values: list[Tensor | None], attributes: Attributes) -> Tensor:
    shift = numbers(values[1])[0] if len(values) > 1 and values[1] is not None else 0
    return (torch.triu if attributes.get("upper", 1) else torch.tril)(given(values[0]), shift)


MOVING: dict[str, Operator] = {
    "Concat": lambda values, attributes: torch.cat(together(*values), attributes["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Range": lambda values, _: torch.arange(*(item.item() for item in values), dtype=values[0].dtype),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda values, attributes: torch.tensor(
        values[0].shape[attributes.get("start", 0) : attributes.get("end")], dtype=torch.int64
    ),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": lambda values, _: values[0].repeat(*numbers(values[1])),
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
