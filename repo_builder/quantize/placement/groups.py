"""Which int8 layers stand or fall together: runs of them that hand each other codes, directly or through glue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from repo_builder.core.graphs import WEIGHTLESS_OPS, layer_of, own
from repo_builder.quantize.placement.choose import Choice, choose
from repo_builder.quantize.placement.dynamic import static
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.layers import find, is_product
from repo_builder.quantize.placement.table import Profile
from repo_builder.quantize.prepare import current
from repo_builder.quantize.ranges import Ranges
from repo_builder.quantize.rules import LayerPlan

_FEW_CHANNELS = 4


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers of one run.

    Attributes:
        layers: Their names, in graph order.
        tensors: The tensors with Q/DQ that they share.
    """

    layers: tuple[str, ...]
    tensors: frozenset[str]


def groups(
    model: onnx.ModelProto, plans: Sequence[LayerPlan], ranges: Ranges, profile: Profile
) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    """Return the runs of int8 layers, and the layers that read the network's own input of few channels (images).

    Args:
        model: The fp32 graph, as ``place`` takes it; of any opset that ``place`` takes.
        plans: What each layer is to become.
        ranges: As for ``place``.
        profile: The target.
    """
    index = Index(current(model))
    known = ranges.tensors.__contains__
    choice = choose(index, find(index, static(plans), profile), profile, known)
    layers = choice.layers
    root = _joined(choice)
    names: dict[int, dict[str, None]] = {}
    for place in sorted(layers.int8):
        names.setdefault(root(place), {})[layers.plans[place].name] = None
    tensors: dict[int, set[str]] = {}
    for tensor in choice.tensors:
        for place in _holders(choice, tensor):
            tensors.setdefault(root(place), set()).add(tensor)
    found = tuple(Group(layers=tuple(item), tensors=frozenset(tensors.get(key, ()))) for key, item in names.items())
    first = [layers.plans[place].name for place in sorted(layers.int8) if _first(index, place)]
    return found, tuple(first)


def unweighted(
    model: onnx.ModelProto, plans: Sequence[LayerPlan], ranges: Ranges, profile: Profile
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return layers without a weight, in graph order: those that are int8 between others, and products that may be.

    Args:
        model: As for ``groups``.
        plans: As for ``groups``.
        ranges: As for ``groups``.
        profile: As for ``groups``.
    """
    index = Index(current(model))
    choice = choose(index, find(index, static(plans), profile), profile, ranges.tensors.__contains__)
    sums: dict[str, None] = {}
    products: dict[str, None] = {}
    for place, node in enumerate(index.nodes):
        name = layer_of(node) if own(node) else None
        if name is None or (node.op_type == "Add" and any(index.constant(item) for item in node.input)):
            continue
        if place in choice.glue and node.op_type in WEIGHTLESS_OPS:
            sums[name] = None
        elif place not in choice.layers.int8 and is_product(index, node) and node.op_type in profile.glue:
            products[name] = None
    return tuple(sums), tuple(products)


def _first(index: Index, place: int) -> bool:
    """Whether a node is a convolution of the network's own input, which has few channels."""
    node = index.nodes[place]
    weight = index.value(node.input[1])
    return (
        node.op_type == "Conv"
        and node.input[0] in index.inputs
        and weight is not None
        and weight.shape[1] <= _FEW_CHANNELS
    )


def _holders(choice: Choice, tensor: str) -> list[int]:
    """Return the places of the int8 nodes that make or read a tensor with Q/DQ."""
    places = [place for place in choice.index.readers[tensor] if tensor in choice.int8_reads(place)]
    maker = choice.index.makers.get(tensor)
    if maker is not None and tensor in choice.made:
        places.append(maker)
    return places


def _joined(choice: Choice) -> Callable[[int], int]:
    """Return what names each node's run: one place of it. Nodes that share codes are one run, and so is a layer."""
    parents: dict[int, int] = {}

    def root(place: int) -> int:
        while parents.get(place, place) != place:
            place = parents[place]
        return place

    def join(places: Sequence[int]) -> None:
        for place in places[1:]:
            parents[root(place)] = root(places[0])

    runs: dict[str, list[int]] = {}
    for place in sorted(choice.layers.int8):
        runs.setdefault(choice.layers.plans[place].name, []).append(place)
    for places in runs.values():
        join(places)
    for tensor in choice.tensors:
        join(_holders(choice, tensor))
    for place in choice.glue:  # a clip that is folded into the layer before has no Q/DQ in front
        makers = (choice.index.makers.get(tensor) for tensor in choice.int8_reads(place) if tensor in choice.made)
        join([place, *(maker for maker in makers if maker is not None)])
    return root
