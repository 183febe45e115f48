"""Which int8 layers hand each other codes."""

from __future__ import annotations

from typing import Any

from onnx import helper

from repo_builder.core.recipe import LayerRule
from repo_builder.quantize.placement import PROFILES, wanted
from repo_builder.quantize.placement.groups import groups

N = helper.make_node
CPU = PROFILES["onnxruntime-cpu"]


def of(kit: Any, nodes: list[Any], stored: dict[str, Any], shape: list[Any], *rules: LayerRule) -> Any:
    model = kit.prepare(kit.model(nodes, stored, {"x": shape}))
    plans = kit.plans_of(model, *rules)
    values = kit.noise(4, *(item for item in shape if isinstance(item, int)))
    needed = wanted(model, plans, [CPU])
    return groups(model, plans, kit.ranges_of(model, plans, list(needed), {"x": values}), CPU)


def test_layers_that_pass_codes_on_are_one_run_and_floats_between_them_part_it(kit: Any) -> None:
    """Convolutions share codes through Relu and the sum; a MatMul's float output ends the run."""
    stored = {f"w{place}": kit.noise(8, 8, 1, 1, seed=place) for place in range(3)}
    stored |= {"m0": kit.noise(4, 4, seed=7), "m1": kit.noise(4, 4, seed=8)}
    nodes = [
        N("Conv", ["x", "w0"], ["a"], name="a"),
        N("Relu", ["a"], ["b"], name="relu"),
        N("Conv", ["b", "w1"], ["c"], name="c"),
        N("Conv", ["b", "w2"], ["d"], name="d"),
        N("Add", ["c", "d"], ["s"], name="sum"),
        N("MatMul", ["s", "m0"], ["e"], name="e"),
        N("Softmax", ["e"], ["f"], name="soft"),
        N("MatMul", ["f", "m1"], ["y"], name="g"),
    ]
    found, first = of(kit, nodes, stored, ["n", 8, 4, 4])
    assert [item.layers for item in found] == [("a", "c", "d", "e"), ("g",)]
    assert {"b", "s"} <= found[0].tensors
    assert found[1].tensors == {"f"}
    assert first == ()  # eight channels are no image


def test_a_convolution_of_an_image_is_the_first(kit: Any) -> None:
    nodes = [N("Conv", ["x", "w0"], ["a"], name="stem"), N("Conv", ["a", "w1"], ["y"], name="next")]
    stored = {"w0": kit.noise(8, 3, 1, 1, seed=1), "w1": kit.noise(8, 8, 1, 1, seed=2)}
    found, first = of(kit, nodes, stored, ["n", 3, 4, 4])
    assert first == ("stem",)
    assert [item.layers for item in found] == [("stem", "next")]
