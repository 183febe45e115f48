"""From the inspector's JSON to verdicts. recorded_inspector.json was recorded on an H200 with TensorRT 8.5.3.1."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from repo_builder.compile.tensorrt import inspector as trt_inspector
from repo_builder.compile.tensorrt.graph import GraphLayer
from repo_builder.core import codec
from repo_builder.core.records import Verdict

RECORDED: dict[str, Any] = json.loads((Path(__file__).parents[1] / "recorded_inspector.json").read_text())


def graph_layers(record: dict[str, Any]) -> list[GraphLayer]:
    return [GraphLayer(name=name, node=record["layers"][name], asked=kind) for name, kind in record["asked"].items()]


@pytest.fixture(params=sorted(RECORDED))
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    return copy.deepcopy(RECORDED[request.param])


def test_real_engines_are_what_was_asked(record: dict[str, Any]) -> None:
    engine = trt_inspector.parse(record["inspector"], record["nodes"])
    verdicts = trt_inspector.judge(graph_layers(record), engine)
    assert [(item.layer, item.got) for item in verdicts] == list(record["asked"].items())
    assert all(item.holds and item.tactic for item in verdicts)
    asked = list(record["asked"].values())
    assert trt_inspector.counts(verdicts) == {kind: asked.count(kind) for kind in dict.fromkeys(asked)}


def test_another_precision_is_found_out(record: dict[str, Any]) -> None:
    """Every layer in turn, with the type of its weights changed in the recording."""
    others = {"Int8": "Half", "Half": "Float", "Float": "Int8"}
    for place, layer in enumerate(record["inspector"]["Layers"]):
        if not layer.get("Weights"):
            continue
        changed = copy.deepcopy(record)
        changed["inspector"]["Layers"][place]["Weights"]["Type"] = others[layer["Weights"]["Type"]]
        engine = trt_inspector.parse(changed["inspector"], changed["nodes"])
        wrong = [item for item in trt_inspector.judge(graph_layers(changed), engine) if not item.holds]
        assert len(wrong) == 1
        assert wrong[0].engine_layer == layer["Name"]


def test_fused_layers_name_all_their_nodes() -> None:
    record = RECORDED["small/mixed"]
    engine = trt_inspector.parse(record["inspector"], record["nodes"])
    by_node = {node: item for item in engine if item.tactic for node in item.nodes}
    assert by_node["conv1"] == by_node["/conv1/Relu"]
    assert by_node["linear1"].kind == "CaskConvolution"
    assert "linear1.weight/QuantizeLinear" in by_node["linear1"].nodes


def test_a_layer_that_the_engine_does_not_name_is_unknown() -> None:
    layers = [GraphLayer(name="ghost", node="ghost", asked="int8")]
    (verdict,) = trt_inspector.judge(layers, trt_inspector.parse(RECORDED["small/int8"]["inspector"]))
    assert (verdict.got, verdict.holds, verdict.engine_layer) == ("unknown", False, "")


def verdict_of(asked: str, layer: dict[str, Any], nodes: tuple[str, ...] = ("a", "b", "c")) -> Any:
    engine = trt_inspector.parse({"Layers": [{"Name": "b", "LayerType": "Conv", **layer}]}, nodes)
    return trt_inspector.judge([GraphLayer(name="b", node="b", asked=asked)], engine, nodes)[0]


@pytest.mark.parametrize(
    ("asked", "told", "departs"),
    [
        ("int8", "Int8", False),
        ("int8", "FP32", True),
        ("fp32", "FP16", True),
        ("fp32", "Int8", True),
        ("fp16", "FP32", False),  # more bits than asked, because that was faster
        ("fp16", "Int8", True),
        ("fp32", "N/A due to dynamic shapes", False),
    ],
)
def test_fewer_bits_than_asked_and_quantized_layers_in_float_depart(asked: str, told: str, departs: bool) -> None:
    found = verdict_of(asked, {"Inputs": [{"Format/Datatype": told}]})
    assert found.departs is departs
    assert str(found).startswith(f"b was asked as {asked}")


REGION = {
    "Name": "{ForeignNode[a + (Unnamed Layer* 7) [Shuffle]...c]}",
    "Inputs": [{"Format/Datatype": "Row major linear FP32"}, {"Format/Datatype": "Int32"}],
    "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}],
}


@pytest.mark.parametrize(
    "name", [REGION["Name"], "{ForeignNode[b]}", "{ForeignNode[(Unnamed Layer* 7) [Shuffle]...x]}"]
)
def test_a_layer_in_a_region_is_fused_and_no_mismatch(name: str) -> None:
    """The last name has neither end in the graph: the one region is where the layer must be."""
    found = verdict_of("int8", {**REGION, "Name": name})
    assert (found.got, found.holds, found.departs) == ("fused", False, False)
    assert found.region == "fp32, int32 → fp16"
    assert "tells no types inside" in str(found)


def test_an_engine_layer_that_names_a_node_says_more_than_a_region_around_it() -> None:
    own = {"Name": "b", "LayerType": "CaskConvolution", "Weights": {"Type": "Int8"}, "Inputs": []}
    engine = trt_inspector.parse({"Layers": [own, {**REGION, "LayerType": "Myelin"}]}, ("a", "b", "c"))
    (found,) = trt_inspector.judge([GraphLayer(name="b", node="b", asked="int8")], engine)
    assert (found.got, found.engine_layer) == ("int8", "b")


def test_a_layer_is_in_the_last_region_that_begins_before_it_and_copies_are_no_regions() -> None:
    """As TensorRT 8.6 names them for ViT: neither end need be a node of the graph."""
    names = ("{ForeignNode[a...(Unnamed Layer* 3) [ElementWise]]}", "{ForeignNode[c + made up...(Unnamed Layer* 9)]}")
    copy_name = f"Reformatting CopyNode for Output Tensor 0 to {names[1]}"
    layers = [{"Name": name, "LayerType": "Myelin"} for name in names] + [{"Name": copy_name, "LayerType": "Reformat"}]
    nodes = ("a", "b", "c", "d")
    engine = trt_inspector.parse({"Layers": layers}, nodes)
    asked = [GraphLayer(name=name, node=name, asked="fp16") for name in ("b", "d")]
    assert [item.engine_layer for item in trt_inspector.judge(asked, engine, nodes)] == list(names)


def test_the_keys_of_tensorrt_11_are_read() -> None:
    """DataType and Format apart, as NVIDIA's page on migrating IEngineInspector from 10.x to 11.x has them."""
    layer = {
        "Inputs": [{"DataType": "Half", "Format": "Row major linear FP16 format (kLINEAR)"}],
        "Outputs": [{"DataType": "Float", "Format": "Row major linear FP32 format (kLINEAR)"}],
    }
    (found,) = trt_inspector.parse({"Layers": [{"Name": "b", **layer}], "I/O Tensors": [{"Name": "x"}]})
    assert (found.precision, found.reads, found.writes) == ("fp16", ("fp16",), ("fp32",))


@pytest.mark.parametrize(
    ("layer", "precision"),
    [
        ({"Weights": {"Type": "Int8"}, "Inputs": [{"Format/Datatype": "Thirty-two wide channel Int8 format"}]}, "int8"),
        ({"Weights": {"Type": "Int8"}, "Inputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}, "int8"),
        ({"Weights": {"Type": "Int8"}, "Inputs": [{"Format/Datatype": "Row major linear FP32"}]}, "int8 of fp32"),
        ({"Inputs": [{"Format/Datatype": "Channel major FP16 format where C % 8 == 0"}]}, "fp16"),
        ({"Inputs": [{"Format/Datatype": "BFloat16"}]}, "bf16"),
        ({"Inputs": []}, "unknown"),
    ],
)
def test_precision_of_a_layer(layer: dict[str, Any], precision: str) -> None:
    (found,) = trt_inspector.parse({"Layers": [{"Name": "x", "LayerType": "y", **layer}]})
    assert found.precision == precision


def test_regions_are_resolved_by_the_graphs_order() -> None:
    name = "{ForeignNode[b...d]}"
    (found,) = trt_inspector.parse({"Layers": [{"Name": name}]}, ["a", "b", "c", "d", "e"])
    assert found.nodes == ("b", "c", "d")


def test_metadata_of_later_versions_is_read() -> None:
    layer = {"Name": "__myl_ConvAct_0", "Metadata": "[ONNX Layer: conv1]\u001e[ONNX Layer: relu1]"}
    (found,) = trt_inspector.parse({"Layers": [layer]}, ["conv1", "relu1"])
    assert found.nodes == ("conv1", "relu1")


def test_a_plan_without_detail_tells_names_only() -> None:
    (found,) = trt_inspector.parse({"Layers": ["conv1 + relu1"]}, ["conv1", "relu1"])
    assert (found.nodes, found.precision) == (("conv1", "relu1"), "unknown")


def test_verdicts_survive_json() -> None:
    record = RECORDED["vgg7/mixed-ends-fp16"]
    verdicts = trt_inspector.judge(graph_layers(record), trt_inspector.parse(record["inspector"]))
    assert codec.convert(tuple[Verdict, ...], json.loads(json.dumps(codec.plain(verdicts))), "") == verdicts
