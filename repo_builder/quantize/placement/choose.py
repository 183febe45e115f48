"""Which tensors carry Q/DQ: a reading of the profile's table over the graph, without a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper

from repo_builder.core.graphs import attribute, own
from repo_builder.core.recipe import InputQuantizer
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.placement.layers import Layers, without
from repo_builder.quantize.placement.lower import factor, lowers
from repo_builder.quantize.placement.table import Glue, Profile

CLIPS = frozenset({"Relu", "Clip"})
# ONNX's defaults of attributes that a profile's ``Glue.attributes`` may name.
_DEFAULTS: dict[str, str | int] = {"mode": "nearest"}
_MAX = InputQuantizer(calibrator="max")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Where Q/DQ stands.

    Attributes:
        index: The graph.
        layers: Which nodes are int8 layers.
        glue: Place of a node without a weight → its int8 form, for those that are to be int8.
        tensors: The tensors that carry Q/DQ, in graph order.
        made: The tensors that an int8 node makes as int8: all readers of a chosen one read it through Q/DQ.
        demands: Chosen tensor → the calibrators that its readers' layers ask for (``max`` stands alone) and the
            layers that do.
    """

    index: Index
    layers: Layers
    glue: Mapping[int, Glue]
    tensors: tuple[str, ...]
    made: frozenset[str]
    demands: Mapping[str, tuple[tuple[InputQuantizer, ...], tuple[str, ...]]]

    def int8_reads(self, place: int) -> tuple[str, ...]:
        """Return the tensors that a node reads as int8; none for a float node."""
        if place in self.layers.int8:
            return (self.index.nodes[place].input[0],)
        return tuple(operands(self.index, place, self.glue[place])) if place in self.glue else ()


def choose(index: Index, layers: Layers, profile: Profile, known: Callable[[str], bool]) -> Choice:
    """Decide which tensors carry Q/DQ.

    Args:
        index: The graph.
        layers: What the plans mean for its nodes.
        profile: The target's table.
        known: Whether a tensor has a range; only such a one can carry Q/DQ.
    """
    blocked: set[str] = set()
    while True:
        choice = _attempt(index, layers, profile, blocked)
        missing = {tensor for tensor in choice.tensors if not known(tensor)}
        if not missing:
            return replace(choice, demands=_demands(choice))
        blocked |= missing
        layers = without(layers, {place for place in layers.int8 if index.nodes[place].input[0] in missing})


def _attempt(index: Index, layers: Layers, profile: Profile, blocked: set[str]) -> Choice:
    """Decide which tensors carry Q/DQ where some cannot."""
    made = _layer_outputs(index, layers, profile)
    glue = _spread(index, layers, profile, blocked)
    _prune(index, layers, glue, made, profile)
    chosen = {index.nodes[place].input[0] for place in layers.int8} | made
    folded: set[str] = set()
    for place, form in glue.items():
        _add_pairs(index, layers, place, form, chosen, folded)
    chosen -= folded | blocked
    # Glue that was dropped again makes nothing int8; a layer whose output carries Q/DQ, for whatever reader, does.
    made.update(name for place in glue for name in index.nodes[place].output)
    for place in layers.int8:
        output = _output(index, place, profile)
        if output in chosen or profile.layers[index.nodes[place].op_type].output == "int8 if read so":
            made.add(output)
    names = dict.fromkeys((*index.inputs, *(name for node in index.nodes for name in node.output)))
    tensors = tuple(name for name in names if name in chosen)
    return Choice(index=index, layers=layers, glue=glue, tensors=tensors, made=frozenset(made), demands={})


def operands(index: Index, place: int, form: Glue) -> Iterator[str]:
    """Yield the activations that a glue node works on, each once."""
    node = index.nodes[place]
    names = node.input[:1] if form.operands == "first" else node.input
    yield from dict.fromkeys(name for name in names if name and not index.constant(name))


def folds(index: Index, node: onnx.NodeProto) -> bool:
    """Whether the Q behind a Relu or Clip does what the node does: it starts at 0, as codes of a tensor ≥ 0 do."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip" or len(node.input) < 2 or not all(index.constant(name) for name in node.input[1:]):
        return node.op_type == "Clip" and len(node.input) < 2 and attribute(node, "min", -1) == 0
    low = index.value(node.input[1]) if node.input[1] else None
    return low is not None and bool(np.all(low == 0))


def _spread(index: Index, layers: Layers, profile: Profile, blocked: set[str]) -> dict[int, Glue]:
    """Follow int8 from the layers through all glue that can take it."""
    made = _layer_outputs(index, layers, profile)
    made.update(
        index.nodes[place].output[0]
        for place in layers.int8
        if profile.layers[index.nodes[place].op_type].output == "int8 if read so"
    )
    glue: dict[int, Glue] = {}
    for place, node in enumerate(index.nodes):
        if place in layers.int8:
            continue
        form = _form(index, layers, profile, place, blocked)
        if form is None:
            continue
        taken = [name in made for name in operands(index, place, form)]
        if place in layers.asked or (taken and (all(taken) if form.needs == "all" else any(taken))):
            glue[place] = form
            made.update(node.output)
    return glue


def _form(index: Index, layers: Layers, profile: Profile, place: int, blocked: set[str]) -> Glue | None:
    """Return a node's row of the table, None where it has none or cannot be int8."""
    node = index.nodes[place]
    form = profile.glue.get(node.op_type) if own(node) else None
    plan = layers.plans.get(place)
    if form is None or (plan is not None and plan.precision != "int8") or (form.asked and place not in layers.asked):
        return None
    tensors = [*operands(index, place, form), *(name for name in node.output if name)]
    if not all(name in index.floats and name not in blocked for name in tensors):
        return None
    if not form.constants and form.operands == "all" and any(index.constant(name) for name in node.input):
        return None
    if form.rescales and factor(index, node) is not None and not _shares(index, profile, node.output[0]):
        form = Glue(operands="all", constants=True, lowered="rescale", pairs="inputs")
    if form.lowered and not lowers(index, node, form.lowered):
        return None
    if form.pairs == "output" and not folds(index, node):
        form = Glue()  # a clip that starts elsewhere: Q on both sides, in float between them
    return form if all(_written(node, key) == value for key, value in form.attributes.items()) else None


def _written(node: onnx.NodeProto, name: str) -> str | int | None:
    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else int(value)
    return _DEFAULTS.get(name)


def _shares(index: Index, profile: Profile, tensor: str) -> bool:
    """Whether a reader of a tensor needs it to have codes that it can hand on."""
    kinds = [index.nodes[place].op_type for place in index.readers[tensor]]
    return any(kind in profile.glue and (profile.glue[kind].one_scale or kind in CLIPS) for kind in kinds)


def _folded(index: Index, place: int, form: Glue) -> bool:
    """Whether a clip's input carries no Q/DQ: nothing else sees the values that the clip cuts."""
    tensor = index.nodes[place].input[0]
    alone = index.readers[tensor] == [place] and tensor not in index.outputs | index.inner
    return form.pairs == "output" and alone and tensor in index.makers


def _layer_outputs(index: Index, layers: Layers, profile: Profile) -> set[str]:
    """Return the outputs that int8 layers make as int8 whoever reads them."""
    found = set()
    for place in layers.int8:
        form, output = profile.layers[index.nodes[place].op_type], _output(index, place, profile)
        if form.output == "int8" or (form.output == "int8 before a clip" and _one_clip_reads(index, output)):
            found.add(output)
    return found


def _output(index: Index, place: int, profile: Profile) -> str:
    """Return what a layer makes: the sum with its bias where the target makes one operator of both."""
    added = bias_add(index, place) if profile.fuses_bias else None
    output: str = index.nodes[place if added is None else added].output[0]
    return output


def _one_clip_reads(index: Index, tensor: str) -> bool:
    readers = index.readers[tensor]
    alone = len(readers) == 1 and tensor not in index.outputs and tensor not in index.inner
    return alone and own(index.nodes[readers[0]]) and index.nodes[readers[0]].op_type in CLIPS


def bias_add(index: Index, place: int) -> int | None:
    """Return the place of the Add that ONNX Runtime makes one Gemm with a MatMul, None where it does not.

    It does where nothing else reads the product, the added constant is one number a channel, and the shape of the
    MatMul's input is known: as a matrix, or else in every dimension.
    """
    node = index.nodes[place]
    readers = index.readers[node.output[0]]
    if node.op_type != "MatMul" or len(readers) != 1 or node.output[0] in index.outputs | index.inner:
        return None
    shape, added = index.shapes.get(node.input[0]), index.nodes[readers[0]]
    value = next((index.value(name) for name in added.input if index.constant(name)), None)
    weight = index.value(node.input[1])
    if added.op_type != "Add" or not own(added) or shape is None or value is None or weight is None:
        return None
    if not np.isfinite(value).all():  # a mask: no code stands for infinity
        return None
    matrix = len(shape) == 2
    vector = value.shape == weight.shape[1:] or (matrix and value.shape == (1, weight.shape[1]))
    return readers[0] if vector and (matrix or None not in shape) else None


def _prune(index: Index, layers: Layers, glue: dict[int, Glue], made: set[str], profile: Profile) -> None:
    """Drop glue that no int8 node reads in the end, in place: at a network's float ends int8 only costs.

    What is folded into an int8 layer stays, and so does what a rule asks for, and what ends a network with less.
    """
    for place in sorted(glue, reverse=True):
        form = glue[place]
        node = index.nodes[place]
        reader = any(item in layers.int8 or item in glue for name in node.output for item in index.readers[name])
        folded = form.pairs == "output" and node.input[0] in made
        ending = form.shrinks and _ends(index, node.output[0], profile)
        if not (reader or folded or ending or place in layers.asked):
            del glue[place]


def _ends(index: Index, tensor: str, profile: Profile) -> bool:
    """Whether a tensor is an output of the network and nothing else, but for moves between."""
    moved = [index.nodes[place] for place in index.readers[tensor]]
    moves = all(own(node) and profile.glue.get(node.op_type, Glue()).one_scale for node in moved)
    read = bool(moved) or tensor in index.outputs
    return read and moves and all(_ends(index, name, profile) for node in moved for name in node.output)


def _add_pairs(index: Index, layers: Layers, place: int, form: Glue, chosen: set[str], folded: set[str]) -> None:
    """Add the tensors that carry Q/DQ on a glue node's account, and those that need none because of it."""
    node = index.nodes[place]
    reads = list(operands(index, place, form))
    if form.pairs in ("inputs", "inputs and output"):
        chosen.update(reads)
    if form.lowered == "rescale":
        folded.update(node.output)
    if form.pairs in ("output", "inputs and output"):
        chosen.update(name for name in node.output if name)
    if form.pairs == "output":
        (folded if _folded(index, place, form) else chosen).update(reads)
    if form.pairs == "residual":
        own_sums = [
            name
            for name in reads
            if index.makers.get(name) in layers.int8 and index.readers[name] == [place] and name not in index.outputs
        ]
        chosen.update(name for name in reads if name not in own_sums[:1])


def _demands(choice: Choice) -> dict[str, tuple[tuple[InputQuantizer, ...], tuple[str, ...]]]:
    """Find whose calibrators govern each chosen tensor, from the outputs backwards.

    An int8 layer that reads it asks for its rule's; glue asks for what its outputs' readers do; a float reader that
    sees the rounded values asks for all that calibration saw. A tensor that nothing asks about has its maker's rule.
    """
    index, chosen = choice.index, set(choice.tensors)
    asks: dict[str, dict[InputQuantizer, list[str]]] = {}
    names = [name for node in index.nodes for name in node.output if name]
    for tensor in (*reversed(names), *index.inputs):
        found: dict[InputQuantizer, list[str]] = {}
        for place in index.readers[tensor]:
            plan = choice.layers.plans.get(place)
            if tensor not in choice.int8_reads(place):
                if tensor in choice.made:
                    found.setdefault(_MAX, [])
            elif plan is not None:
                found.setdefault(plan.int8_rule.input, []).append(plan.name)
            else:
                for name in index.nodes[place].output:
                    for spec, layers in asks.get(name, {}).items():
                        found.setdefault(spec, []).extend(layers)
        if tensor in choice.made and (tensor in index.outputs or tensor in index.inner):
            found.setdefault(_MAX, [])
        asks[tensor] = found
    return {tensor: _widest(choice, tensor, asks[tensor]) for tensor in choice.tensors if tensor in chosen}


def _widest(
    choice: Choice, tensor: str, found: dict[InputQuantizer, list[str]]
) -> tuple[tuple[InputQuantizer, ...], tuple[str, ...]]:
    if not found:
        plan = choice.layers.plans.get(choice.index.makers.get(tensor, -1))
        found = {plan.int8_rule.input: [plan.name]} if plan is not None and plan.precision == "int8" else {_MAX: []}
    if any(spec.calibrator == "max" for spec in found):
        found = {spec: layers for spec, layers in found.items() if spec.calibrator == "max"}
    layers = tuple(dict.fromkeys(name for names in found.values() for name in names))
    return tuple(sorted(found, key=lambda spec: (spec.calibrator, spec.percentile or 0))), layers
