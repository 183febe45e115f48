"""The ONNX graph of a part: steps' nodes one behind the other, and those of the network among them as they are."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper

from repo_builder.core import graphs
from repo_builder.core.errors import RecipeError
from repo_builder.core.portable import needed_ir_version
from repo_builder.core.tensors import TensorSpec
from repo_builder.pipeline.chain import NETWORK, Link
from repo_builder.pipeline.form import Unfit, kind_of
from repo_builder.pipeline.parts import Part
from repo_builder.pipeline.writer import OPSETS, Writer

_OPSET = 17  # of steps by themselves: what ONNX Runtime reads since 1.12
_PREFIX = "pipeline/"
_BATCH = "batch"


def obstacle(network: onnx.ModelProto) -> str:
    """Return why steps cannot be put into a network's graph; empty where they can."""
    version = graphs.opset(network)
    if version not in OPSETS:
        return f"the network's operator set is {version}, and steps are written for {OPSETS.start} to {OPSETS.stop - 1}"
    return ""


def write(part: Part, network: onnx.ModelProto | None, classes: tuple[str, ...], rows: int = -1) -> onnx.ModelProto:
    """Return the graph of a part without Python; tensors that it takes and gives have their names of the chain.

    Args:
        part: The part.
        network: The network, where it is in the part; its nodes, weights and operator sets stay as they are, and
            tensors are renamed where their names are the chain's.
        classes: Names of the classes.
        rows: Samples that the network takes, no more and no less; -1 for any number.

    Raises:
        RecipeError: Labels do not fit.
    """
    names = {item.name: item.name for item in part.takes}  # tensor of the chain → tensor of the graph
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    model = onnx.ModelProto()
    for link in part.links:
        if link.kind == NETWORK and link.spec is None:
            if network is None:
                raise ValueError("the part holds the network")
            model.CopyFrom(network)
            names |= _joined(model, link, names, {item.name for item in (*part.takes, *part.gives)})
            nodes.extend(model.graph.node)
            continue
        writer = Writer(f"{_PREFIX}{link.place.partition('.')[2]}.{link.kind}/")
        names |= dict(zip((item.name for item in link.gives), _written(link, writer, names, classes), strict=False))
        nodes.extend(writer.nodes)
        constants.extend(writer.constants)
    if not model.opset_import:
        model.opset_import.append(helper.make_opsetid("", _OPSET))
    _rename_outputs(part, names, nodes)
    kept = list(nodes)
    del model.graph.node[:], model.graph.input[:], model.graph.output[:]
    model.graph.name = model.graph.name or "pipeline"
    model.graph.node.extend(kept)
    model.graph.initializer.extend(constants)
    model.graph.input.extend(_value(item, rows) for item in part.takes)
    model.graph.output.extend(_value(item, rows) for item in part.gives)
    model.ir_version = min(model.ir_version or onnx.IR_VERSION, max(8, needed_ir_version(model)))
    return model


def _written(link: Link, writer: Writer, names: Mapping[str, str], classes: tuple[str, ...]) -> list[str]:
    form = link.form
    if form is None or form.write is None:
        raise ValueError(f"{link} has no ONNX form")
    taken = [(names[item.name], kind_of(item)) for item in link.takes]
    try:
        return list(form.write(link.spec, writer, taken, classes))
    except Unfit as error:
        raise RecipeError(f"({link.kind}) {error}", where=link.place) from None


def _joined(model: onnx.ModelProto, link: Link, names: Mapping[str, str], taken: set[str]) -> dict[str, str]:
    """Give the network's tensors names that go with the chain's, in place; return those of its outputs."""
    graph = model.graph
    initial = {item.name for item in graph.initializer} | {item.values.name for item in graph.sparse_initializer}
    inputs = [item.name for item in graph.input if item.name not in initial]
    own = {name for node in graph.node for name in node.output} | initial | set(inputs)
    renamed = {name: f"{NETWORK}/{name}" for name in own if name in taken}
    by_name = {spec.name: wire for spec, wire in zip(link.binds, link.takes, strict=True)}
    renamed |= {name: names[by_name[name].name] for name in inputs}
    graphs.rename(graph.node, renamed)
    for item in (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)):
        item.name = renamed.get(item.name, item.name)
    kept = [item for item in graph.value_info if item.name not in renamed]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    given = zip(link.yields, link.gives, strict=True)
    return {wire.name: renamed.get(spec.name, spec.name) for spec, wire in given}


def _rename_outputs(part: Part, names: dict[str, str], nodes: list[onnx.NodeProto]) -> None:
    """Give what the part gives its names of the chain; what is an input at once goes through an Identity."""
    taken = {names[item.name] for item in part.takes}
    renamed: dict[str, str] = {}
    for item in part.gives:
        have = names[item.name]
        if have == item.name:
            continue
        if have in taken or have in renamed:
            nodes.append(helper.make_node("Identity", [have], [item.name], name=f"{_PREFIX}{item.name}"))
        else:
            renamed[have] = item.name
    graphs.rename(nodes, renamed)


def _value(spec: TensorSpec, rows: int) -> onnx.ValueInfoProto:
    kind = onnx.TensorProto.DataType.Value(spec.dtype.onnx)
    sizes = [f"{spec.name}.{place}" if size == -1 else size for place, size in enumerate(spec.shape, 1)]
    return helper.make_tensor_value_info(spec.name, kind, [rows if rows > 0 else _BATCH, *sizes])
