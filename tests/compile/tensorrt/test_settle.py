"""How often is built, and what is pinned: a builder that obeys what it is told is stood in for."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from repo_builder.compile.tensorrt import settle as room
from repo_builder.compile.tensorrt.graph import GraphLayer, GraphPrecisions
from repo_builder.core.errors import CompileError

LAYERS = {"a": "fp32", "b": "fp16", "q": "int8"}


class Machine:
    """Runs float layers in fp16 unless they are pinned; refuses pins on ``refuses``."""

    def __init__(self, refuses: frozenset[str] = frozenset()) -> None:
        self.refuses, self.asked, self.deserialized = refuses, [], []

    def build(self, request: Any, say: Any) -> Any:
        self.asked.append(request.pinned)
        wrong = sorted(request.pinned & self.refuses)
        if wrong:
            raise CompileError(f"could not find any implementation for node {wrong[0]}")
        return SimpleNamespace(plan=request.pinned, seconds=2.0)

    def deserialize(self, pinned: frozenset[str]) -> Any:
        self.deserialized.append(pinned)
        return SimpleNamespace(inspect=lambda: self.inspected(pinned), of=pinned)

    def inspected(self, pinned: frozenset[str]) -> dict[str, Any]:
        types = {name: "FP32" if name in pinned else "FP16" for name in ("a", "b")} | {"q": "Int8"}
        told = {name: [{"Format/Datatype": kind}] for name, kind in types.items()}
        return {"Layers": [{"Name": name, "LayerType": "Conv", "Inputs": inputs} for name, inputs in told.items()]}


@dataclasses.dataclass(frozen=True)
class Request:
    precisions: GraphPrecisions
    model: str = "m.onnx"
    pinned: frozenset[str] = frozenset()


def settle(machine: Machine, asked: dict[str, str], pinned: frozenset[str] = frozenset(), **options: Any) -> Any:
    floats = {name: kind for name, kind in asked.items() if kind != "int8"}
    precisions = GraphPrecisions(
        layers=tuple(GraphLayer(name=name, node=name, asked=kind) for name, kind in asked.items()),
        nodes=tuple(asked),
        float_makers={f"{name}_out": name for name in floats},
        float_nodes=floats,
        has_int8=True,
        has_fp16=True,
    )
    request: Any = Request(precisions, pinned=pinned)
    return room.settle(request, build=machine.build, deserialize=machine.deserialize, say=lambda line: None, **options)


def test_what_is_as_asked_is_built_once_without_constraints() -> None:
    machine = Machine()
    found = settle(machine, {"b": "fp16", "q": "int8"})
    assert machine.asked == [frozenset()]
    assert (found.builds, found.seconds, found.notes) == (1, 2.0, ())


def test_only_what_departed_is_pinned() -> None:
    machine = Machine()
    found = settle(machine, LAYERS)
    assert machine.asked == [frozenset(), frozenset({"a"})]
    assert {item.layer: item.got for item in found.verdicts} == LAYERS
    assert found.seconds == 4.0


def test_a_pin_without_an_implementation_is_taken_back_and_named() -> None:
    machine = Machine(frozenset({"a"}))
    found = settle(machine, LAYERS)
    assert machine.asked == [frozenset(), frozenset({"a"})]  # without it, that is the first build again
    assert [item.got for item in found.verdicts if item.layer == "a"] == ["fp16"]
    (note,) = found.notes
    assert "a (could not find any implementation for node a)" in note


def test_a_graph_that_cannot_be_built_at_all_is_refused() -> None:
    class Broken(Machine):
        def build(self, request: Any, say: Any) -> Any:
            raise CompileError("no plan")

    with pytest.raises(CompileError, match="no plan"):
        settle(Broken(), LAYERS)


def test_a_plan_is_deserialized_once_and_handed_on() -> None:
    machine = Machine()
    found = settle(machine, LAYERS)
    assert machine.deserialized == [frozenset(), frozenset({"a"})]
    assert found.plan.of == found.built.plan == found.pinned == frozenset({"a"})


def test_a_form_beside_another_is_built_once_with_what_was_pinned_in_that() -> None:
    machine = Machine()
    found = settle(machine, LAYERS, frozenset({"a"}), most=1)
    assert machine.asked == [frozenset({"a"})]
    assert not [item for item in found.verdicts if item.departs]
    (departed,) = [item.layer for item in settle(Machine(), LAYERS, most=1).verdicts if item.departs]
    assert departed == "a"  # which its caller judges
