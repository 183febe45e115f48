"""Where two plans of one network can be compared: regions between borders that both have, with the time of each.

TensorRT fuses differently in each precision: what is one kernel in fp16 may be three in int8, or a whole transformer
block that is compiled at once. A single layer's time can therefore not be compared. Nodes that a piece of either plan
runs together belong together; what that gives are the smallest regions that start and end at the same tensors in both.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What an engine runs as one.

    Attributes:
        name: TensorRT's name.
        nodes: The ONNX nodes that it stands for; empty where they are not told.
        us: Batch size → microseconds.
    """

    name: str
    nodes: tuple[str, ...]
    us: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class Region:
    """Nodes between borders that two plans have in common.

    Attributes:
        nodes: They.
        first_us: Batch size → microseconds in the first plan.
        second_us: The same in the second.
    """

    nodes: frozenset[str]
    first_us: Mapping[int, float]
    second_us: Mapping[int, float]

    def loss(self, totals: Mapping[int, float]) -> float:
        """Return how much longer the first takes, as a share of the second's whole time, summed over batch sizes.

        Args:
            totals: Batch size → microseconds of all of the second plan.
        """
        return sum((self.first_us[size] - self.second_us[size]) / totals[size] for size in totals)


def owners(model: onnx.ModelProto, common: Iterable[str]) -> dict[str, str]:
    """Return whose time a node's is that only one of two graphs has: a quantizer's, a cast's.

    That is the first node behind it that both have; one that ends the graph belongs to the node before it.

    Args:
        model: One of the graphs.
        common: Names of the nodes that both have.
    """
    known = frozenset(common)
    makers = {output: node for node in model.graph.node for output in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: dict[str, str] = {}
    for node in reversed(model.graph.node):  # readers come before what they read
        if node.name in known:
            continue
        behind = [found.get(item.name, item.name) for name in node.output for item in readers.get(name, ())]
        owner = next((name for name in behind if name in known), None)
        if owner is not None:
            found[node.name] = owner
    for node in model.graph.node:
        if node.name not in known and node.name not in found:
            before = [found.get(makers[name].name, makers[name].name) for name in node.input if name in makers]
            owner = next((name for name in before if name in known), None)
            if owner is not None:
                found[node.name] = owner
    return found


def compare(first: Sequence[Piece], second: Sequence[Piece], owner: Mapping[str, str]) -> tuple[Region, ...]:
    """Return the regions of two plans; pieces whose nodes are not told are in none.

    Args:
        first: The pieces of one plan.
        second: Those of the other.
        owner: Node → the node whose region its time belongs to, for those that only one graph has.
    """
    roots: dict[str, str] = {}

    def root(name: str) -> str:
        while roots.setdefault(name, name) != name:
            roots[name] = name = roots[roots[name]]
        return name

    told = [[({owner.get(node, node) for node in item.nodes}, item) for item in side] for side in (first, second)]
    for names, _ in (pair for side in told for pair in side):
        for name in names:
            roots[root(name)] = root(next(iter(names)))
    members: dict[str, set[str]] = {}
    for name in list(roots):
        members.setdefault(root(name), set()).add(name)
    sizes = sorted({size for item in (*first, *second) for size in item.us})
    times = {key: ({size: 0.0 for size in sizes}, {size: 0.0 for size in sizes}) for key in members}
    for place, side in enumerate(told):
        for names, item in side:
            if names:
                total = times[root(next(iter(names)))][place]
                for size, us in item.us.items():
                    total[size] += us
    return tuple(
        Region(nodes=frozenset(names), first_us=times[key][0], second_us=times[key][1])
        for key, names in members.items()
    )


def totals(pieces: Iterable[Piece]) -> dict[int, float]:
    """Return batch size → microseconds of all pieces."""
    found: dict[int, float] = {}
    for item in pieces:
        for size, us in item.us.items():
            found[size] = found.get(size, 0.0) + us
    return found


def promise(first: Mapping[int, float], slower: Iterable[Region], best: Mapping[int, float]) -> float:
    """Return how many times as fast as the best plan a mixture would be at most, over all batch sizes.

    Args:
        first: Batch size → microseconds of all of the first plan.
        slower: Regions in which the first is slower, which would be as in the second.
        best: Batch size → microseconds of all of the plan that it would replace.
    """
    mixed = dict(first)
    for region in slower:
        for size in mixed:
            mixed[size] += region.second_us[size] - region.first_us[size]
    return statistics.geometric_mean([best[size] / mixed[size] for size in mixed])
