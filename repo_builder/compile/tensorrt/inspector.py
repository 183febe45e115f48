"""From the engine inspector's JSON to what each layer of the recipe became.

TensorRT fuses: one engine layer stands for several ONNX nodes, and its name (from 8.6 on its metadata too) lists them.
A whole region that it compiles at once (a ForeignNode) names only its first and last node and tells no types inside:
what is known of it are the types that it reads and writes, so its layers are ``fused``, neither right nor wrong.

The keys are those of TensorRT 8.5 to 10 (``Format/Datatype``) and of 11, which tells ``DataType`` and ``Format`` apart:
NVIDIA, "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repo_builder.compile.tensorrt.graph import GraphLayer
from repo_builder.core.records import FUSED, UNKNOWN, Verdict

_METADATA = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_REGION = re.compile(r"\{ForeignNode\[(?P<first>.+?)(?:\.\.\.(?P<last>.+?))?\]\}")
_PROFILE = re.compile(r" \[profile \d+\]$")
_COPY = re.compile(r"^Reformatting CopyNode for (?:Input|Output) Tensor \d+ (?:to|from) ")
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
_COMPUTES_NOTHING = frozenset({"Reformat", "NoOp", "Constant", "Shuffle"})


@dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: TensorRT's name, which lists what was fused.
        kind: TensorRT's type, as in ``CaskConvolution``.
        precision: What it computes in: the type of its weights and first input; ``fused`` for a region, ``unknown``
            where nothing is told.
        tactic: The kernel's name; empty where it is not told.
        nodes: The ONNX nodes that it stands for.
        reads: Types of its inputs.
        writes: Types of its outputs.
    """

    name: str
    kind: str
    precision: str
    tactic: str
    nodes: tuple[str, ...]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


def parse(information: Mapping[str, Any], nodes: Sequence[str] = ()) -> tuple[EngineLayer, ...]:
    """Read the inspector's JSON.

    Args:
        information: What ``get_engine_information`` returned for a plan built with detailed verbosity.
        nodes: Names of the graph's nodes in its order, by which regions are resolved; empty takes names as they stand.
    """
    return tuple(_layer(item, nodes) for item in information.get("Layers", ()))


def _layer(item: Mapping[str, Any] | str, nodes: Sequence[str]) -> EngineLayer:
    if isinstance(item, str):  # a plan built without detailed verbosity tells names only
        precision = FUSED if _REGION.search(item) else UNKNOWN
        return EngineLayer(name=item, kind="", precision=precision, tactic="", nodes=_nodes(item, "", nodes))
    name = str(item.get("Name", ""))
    return EngineLayer(
        name=name,
        kind=str(item.get("LayerType", "")),
        precision=_precision(item),
        tactic=str(item.get("TacticName", "")),
        nodes=_nodes(name, str(item.get("Metadata", "")), nodes),
        reads=_types(item.get("Inputs", ())),
        writes=_types(item.get("Outputs", ())),
    )


def _types(tensors: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the element types of an engine layer's inputs or outputs, by the keys of any version."""
    return tuple(_type(str(item.get("DataType") or item.get("Format/Datatype") or "")) for item in tensors)


def _precision(item: Mapping[str, Any]) -> str:
    """Return the type that a layer computes in.

    A layer with weights computes in their type: an int8 kernel reads int8 activations too, whatever it writes.
    """
    if _REGION.search(str(item.get("Name", ""))) and item.get("LayerType") not in _COMPUTES_NOTHING:
        return FUSED
    weights = item.get("Weights")
    stored = UNKNOWN
    if isinstance(weights, Mapping):
        stored = _type(str(weights.get("DataType") or weights.get("Type") or ""))
    inputs = _types(item.get("Inputs", ()))
    first = inputs[0] if inputs else UNKNOWN
    if stored == UNKNOWN:
        return first
    return stored if first in (stored, UNKNOWN) else f"{stored} of {first}"


def _type(text: str) -> str:
    """Return the element type that a description names, as in ``Channel major FP16 format``."""
    lowered = text.lower()
    return next((name for token, name in _TYPES if token in lowered), UNKNOWN)


def plain_name(name: str) -> str:
    """Return an engine layer's name without the profile that its kernels are for."""
    return _PROFILE.sub("", name)


def nodes_of(name: str, nodes: Sequence[str]) -> tuple[str, ...]:
    """Return the ONNX nodes that a name alone lists; a copy between formats is of the layer that it is made for."""
    return _nodes(_COPY.sub("", name), "", nodes)


def _nodes(name: str, metadata: str, nodes: Sequence[str]) -> tuple[str, ...]:
    """Return the ONNX nodes that an engine layer's name and metadata list."""
    known = {node: place for place, node in enumerate(nodes)}
    found = [part.strip() for part in _SEPARATORS.split(name) if part and part.strip()]
    found += _METADATA.findall(metadata)
    region = _REGION.search(name)
    if region and known:
        # either end may itself list several nodes, and nodes that TensorRT made up: those that the graph has count
        listed = [part.strip() for end in region.groups() if end for part in _SEPARATORS.split(end) if part]
        ends = sorted(known[part] for part in listed if part in known)
        found += nodes[ends[0] : ends[-1] + 1] if ends else ()
    if known:
        found = [part for part in found if part in known]
    return tuple(dict.fromkeys(found))


def judge(
    layers: Iterable[GraphLayer], engine: Sequence[EngineLayer], nodes: Sequence[str] = ()
) -> tuple[Verdict, ...]:
    """Compare what was asked of each layer of the recipe with what the engine does.

    Args:
        layers: What was asked.
        engine: What ``parse`` returned.
        nodes: Names of the graph's nodes in its order, by which layers that no engine layer names are sought.
    """
    place: dict[str, EngineLayer] = {}
    for item in engine:
        for node in item.nodes:
            if node not in place or _rank(item) > _rank(place[node]):
                place[node] = item
    regions = [item for item in engine if item.precision == FUSED]
    order = {name: place for place, name in enumerate(nodes)}
    verdicts: list[Verdict] = []
    for layer in layers:
        found = place.get(layer.node) or _around(layer.node, regions, order)
        verdicts.append(
            Verdict(
                layer=layer.name,
                node=layer.node,
                asked=layer.asked,
                got=found.precision if found else UNKNOWN,
                engine_layer=found.name if found else "",
                kind=found.kind if found else "",
                tactic=found.tactic if found else "",
                region=_told(found) if found and found.precision == FUSED else "",
            )
        )
    return tuple(verdicts)


def _around(node: str, regions: Sequence[EngineLayer], order: Mapping[str, int]) -> EngineLayer | None:
    """Return the region that a node which no engine layer names must be in: the last that begins before it.

    A region's ends are often nodes that TensorRT made up, so that the graph's order does not tell where it ends.
    """
    begins = [(min((order[name] for name in item.nodes if name in order), default=-1), item) for item in regions]
    before = [pair for pair in begins if pair[0] <= order.get(node, len(order))]
    return max(before, key=lambda pair: pair[0])[1] if before else None


def _told(region: EngineLayer) -> str:
    sides = (
        ", ".join(dict.fromkeys(item for item in side if item != UNKNOWN)) for side in (region.reads, region.writes)
    )
    return " → ".join(side or "types not told" for side in sides)


def _rank(layer: EngineLayer) -> int:
    """How likely an engine layer is the one that does a node's arithmetic, of several that name it.

    One that names a node as its own says more than a region whose ends enclose it.
    """
    if layer.kind in _COMPUTES_NOTHING:
        return 0
    return 1 if layer.precision == FUSED else 2


def counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return how many layers run in each precision."""
    found: dict[str, int] = {}
    for item in verdicts:
        found[item.got] = found.get(item.got, 0) + 1
    return found
