"""From the engine inspector's JSON to what each layer of the recipe became.

TensorRT fuses: one engine layer stands for several ONNX nodes, and its name (from 8.6 on its metadata too) lists them.
Layers that TensorRT makes of a whole region name only its first and last node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from repo_builder.compile.tensorrt.graph import GraphLayer

_METADATA = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_REGION = re.compile(r"\{ForeignNode\[(?P<first>.+?)\.\.\.(?P<last>.+?)\]\}")
_SEPARATORS = re.compile(r" \+ | \|\| |\[ONNX Layer: |\]|PWN\(|COPY \(|\)|\(|, |\{|\}")
_TYPES = (
    ("int8", "int8"),
    ("bf16", "bf16"),
    ("bfloat16", "bf16"),
    ("fp16", "fp16"),
    ("half", "fp16"),
    ("fp8", "fp8"),
    ("fp32", "fp32"),
    ("float", "fp32"),
    ("int32", "int32"),
    ("int64", "int64"),
    ("bool", "bool"),
)
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: TensorRT's name, which lists what was fused.
        kind: TensorRT's type, as in ``CaskConvolution``.
        precision: What it computes in: the type of its weights and first input, ``unknown`` where they are not told.
        tactic: The kernel's name; empty where it is not told.
        nodes: The ONNX nodes that it stands for.
    """

    name: str
    kind: str
    precision: str
    tactic: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One layer of the recipe, asked against got.

    Attributes:
        layer: Its name in the recipe.
        node: Its ONNX node.
        asked: ``int8``, ``fp16`` or ``fp32``.
        got: What the engine computes it in, ``unknown`` where the engine does not say.
        engine_layer: The engine's layer that stands for it; empty where none was found.
        kind: That layer's type.
        tactic: Its kernel.
    """

    layer: str
    node: str
    asked: str
    got: str
    engine_layer: str = ""
    kind: str = ""
    tactic: str = ""

    @property
    def holds(self) -> bool:
        """Whether the layer became what was asked."""
        return self.asked == self.got


def parse(information: Mapping[str, Any], nodes: Sequence[str] = ()) -> tuple[EngineLayer, ...]:
    """Read the inspector's JSON.

    Args:
        information: What ``get_engine_information`` returned for a plan built with detailed verbosity.
        nodes: Names of the graph's nodes in its order, by which regions are resolved; empty takes names as they stand.
    """
    return tuple(_layer(item, nodes) for item in information.get("Layers", ()))


def _layer(item: Mapping[str, Any] | str, nodes: Sequence[str]) -> EngineLayer:
    if isinstance(item, str):  # a plan built without detailed verbosity tells names only
        return EngineLayer(name=item, kind="", precision=UNKNOWN, tactic="", nodes=_nodes(item, "", nodes))
    name = str(item.get("Name", ""))
    return EngineLayer(
        name=name,
        kind=str(item.get("LayerType", "")),
        precision=_precision(item),
        tactic=str(item.get("TacticName", "")),
        nodes=_nodes(name, str(item.get("Metadata", "")), nodes),
    )


def _precision(item: Mapping[str, Any]) -> str:
    """Return the type that a layer computes in.

    A layer with weights computes in their type: an int8 kernel reads int8 activations too, whatever it writes.
    """
    weights = item.get("Weights")
    stored = _type(str(weights.get("Type", ""))) if isinstance(weights, Mapping) else UNKNOWN
    inputs = [_type(str(entry.get("Format/Datatype", ""))) for entry in item.get("Inputs", ())]
    first = inputs[0] if inputs else UNKNOWN
    if stored == UNKNOWN:
        return first
    return stored if first in (stored, UNKNOWN) else f"{stored} of {first}"


def _type(text: str) -> str:
    """Return the element type that a description names, as in ``Channel major FP16 format``."""
    lowered = text.lower()
    return next((name for token, name in _TYPES if token in lowered), UNKNOWN)


def _nodes(name: str, metadata: str, nodes: Sequence[str]) -> tuple[str, ...]:
    """Return the ONNX nodes that an engine layer's name and metadata list."""
    known = {node: place for place, node in enumerate(nodes)}
    found = [part.strip() for part in _SEPARATORS.split(name) if part and part.strip()]
    found += _METADATA.findall(metadata)
    region = _REGION.search(name)
    if region and known:
        ends = sorted(known[region[end]] for end in ("first", "last") if region[end] in known)
        found += nodes[ends[0] : ends[-1] + 1] if ends else ()
    if known:
        found = [part for part in found if part in known]
    return tuple(dict.fromkeys(found))


def judge(layers: Iterable[GraphLayer], engine: Sequence[EngineLayer]) -> tuple[Verdict, ...]:
    """Compare what was asked of each layer of the recipe with what the engine does."""
    place: dict[str, EngineLayer] = {}
    for item in engine:
        for node in item.nodes:
            if node not in place or _rank(item) > _rank(place[node]):
                place[node] = item
    verdicts: list[Verdict] = []
    for layer in layers:
        found = place.get(layer.node)
        verdicts.append(
            Verdict(
                layer=layer.name,
                node=layer.node,
                asked=layer.asked,
                got=found.precision if found else UNKNOWN,
                engine_layer=found.name if found else "",
                kind=found.kind if found else "",
                tactic=found.tactic if found else "",
            )
        )
    return tuple(verdicts)


def _rank(layer: EngineLayer) -> int:
    """How likely an engine layer is the one that does a node's arithmetic, of several that name it."""
    return 0 if layer.kind in ("Reformat", "NoOp", "Constant", "Shuffle") else 1


def counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return how many layers run in each precision."""
    found: dict[str, int] = {}
    for item in verdicts:
        found[item.got] = found.get(item.got, 0) + 1
    return found


def to_json(verdicts: Iterable[Verdict]) -> list[dict[str, str]]:
    """Return verdicts as plain JSON values."""
    return [asdict(item) for item in verdicts]


def from_json(value: Iterable[Mapping[str, str]]) -> tuple[Verdict, ...]:
    """Return what ``to_json`` was given."""
    return tuple(Verdict(**item) for item in value)
