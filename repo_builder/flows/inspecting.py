"""What every layer of a compiled model is, whatever its target."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from repo_builder.compile import inspection
from repo_builder.compile.inspection import Inspection
from repo_builder.core import loading
from repo_builder.core.errors import MissingDependency, RepositoryError
from repo_builder.core.graphs import layer_of
from repo_builder.export import qdq


@dataclass(frozen=True, kw_only=True)
class GraphLayer:
    """A layer of an ONNX graph.

    Attributes:
        layer: Its name.
        operator: Its ONNX operator.
        precision: The precision that the graph gives it.
        got: The precision that ONNX Runtime runs it in; None where ONNX Runtime is not installed, as for the next two.
        runs_as: The operator that it became there.
        reason: Why it is another one; empty where it is not.
        block: Size of the blocks of its 4-bit weights; None where it has none.
    """

    layer: str
    operator: str
    precision: str
    got: str | None = None
    runs_as: str | None = None
    reason: str | None = None
    block: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, without what is not known."""
        said = {key: value for key, value in dataclasses.asdict(self).items() if value is not None and key != "block"}
        return said if self.block is None else said | {"weight_bits": 4, "block": self.block}


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """What was found.

    Attributes:
        model: The file that was looked at.
        source: Where it was told, as in ``graph, onnxruntime`` or ``manifest, engine``.
        graph: Layers of an ONNX graph; empty for a plan.
        plan: What a plan's manifest and engine tell; None for an ONNX graph.
    """

    model: Path
    source: str
    graph: tuple[GraphLayer, ...] = ()
    plan: Inspection | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, as ``inspect --json`` prints them."""
        if self.plan is not None:
            return dataclasses.asdict(self.plan) | {"model": str(self.model)}
        return {"model": str(self.model), "source": self.source, "layers": [item.to_dict() for item in self.graph]}


def inspect(path: Path) -> Inspected:
    """Say what every layer of a compiled model is.

    Args:
        path: A model's folder in a repository, ``build/NAME``, a .plan or an .onnx file.

    Raises:
        RepositoryError: There is no model there, or it cannot be read.
        CompileError: A plan that no manifest tells of cannot be asked here.
    """
    model = inspection.locate(path)
    if model.suffix == ".onnx":
        return _of_graph(model)
    found = inspection.inspect_plan(model)
    return Inspected(model=found.model, source=found.source, plan=found)


def _of_graph(model: Path) -> Inspected:
    try:
        graph = onnx.load(model, load_external_data=False)
    except Exception as error:  # onnx's and protobuf's errors share no base class
        hint = "copy it again, or export it again with repo-builder build --force"
        raise RepositoryError(f"is not an ONNX model ({error})", where=str(model), hint=hint) from error
    nodes = graph.graph.node
    operators = {layer_of(node): node.op_type for node in nodes}
    blocks = {layer_of(node): item.i for node in nodes for item in node.attribute if item.name == "block_size"}
    rows = [
        GraphLayer(layer=name, operator=operators[name], precision=kind, block=blocks.get(name))
        for name, kind in qdq.layer_precisions(graph).items()
    ]
    try:
        with loading.needs("onnxruntime", what="showing what layers become"):
            from repo_builder.compile.onnxruntime.became import became
    except MissingDependency:  # the graph alone tells what was asked
        return Inspected(model=model, source="graph", graph=tuple(rows))
    told = {item.name: item for item in became(model, [row.layer for row in rows])}
    known = (
        dataclasses.replace(row, got=item.got, runs_as=item.operator, reason=item.reason)
        for row in rows
        for item in (told[row.layer],)
    )
    return Inspected(model=model, source="graph, onnxruntime", graph=tuple(known))
