from __future__ import annotations

import onnx

from repo_builder.compile.tensorrt import graph as trt_graph
from repo_builder.export import precision, qdq


def test_int8_layers_and_what_is_fused_into_them_are_left_free(quantized: onnx.ModelProto) -> None:
    found = trt_graph.read(quantized, qdq.layer_precisions(quantized))
    assert (found.has_int8, found.has_fp16) == (True, False)
    assert {layer.asked for layer in found.layers if "conv" in layer.name} == {"int8"}
    assert found.float_makers == {}
    assert found.float_nodes == {}


def test_layers_keep_the_graphs_order_and_name_their_nodes(quantized: onnx.ModelProto) -> None:
    found = trt_graph.read(quantized, qdq.layer_precisions(quantized))
    names = [node.name for node in quantized.graph.node]
    assert found.nodes == tuple(names)
    places = [names.index(layer.node) for layer in found.layers]
    assert places == sorted(places)


def test_unquantized_layers_are_pinned_to_the_type_they_have(quantized: onnx.ModelProto) -> None:
    plain = onnx.ModelProto()
    plain.CopyFrom(quantized)
    bypass(plain, "conv1")
    half = precision.to_fp16_regions(plain, frozenset({"/conv1"}))
    found = trt_graph.read(half, qdq.layer_precisions(half))
    assert (found.has_int8, found.has_fp16) == (True, True)
    asked = {layer.name: layer.asked for layer in found.layers}
    assert asked["/conv1"] == "fp16"
    assert asked["/conv2"] == "int8"
    assert found.float_nodes == {"/conv1": "fp16", "/relu1": "fp16"}
    assert set(found.float_makers.values()) == {"/conv1", "/relu1"}


def test_a_layer_that_is_not_asked_for_is_not_judged(quantized: onnx.ModelProto) -> None:
    asked = {name: kind for name, kind in qdq.layer_precisions(quantized).items() if "conv2" not in name}
    assert [layer.name for layer in trt_graph.read(quantized, asked).layers] == list(asked)


def bypass(model: onnx.ModelProto, layer: str) -> None:
    """Take a layer's Q/DQ out."""
    node = next(item for item in model.graph.node if item.name == f"/{layer}")
    for place in (0, 1):
        makers = {name: item for item in model.graph.node for name in item.output}
        dq = makers[node.input[place]]
        q = makers[dq.input[0]]
        node.input[place] = q.input[0]
        model.graph.node.remove(dq)
        model.graph.node.remove(q)


def test_fp8_layers_are_told_from_int8_ones(quantized: onnx.ModelProto) -> None:
    plain = onnx.ModelProto()
    plain.CopyFrom(quantized)
    bare = [item.name for item in plain.graph.initializer if item.data_type == onnx.TensorProto.INT8]
    for item in plain.graph.initializer:  # every zero point of E4M3: 0 has the same pattern
        if item.name in bare:
            shape = list(item.dims)
            size = 1 if not shape else shape[0]
            item.CopyFrom(
                onnx.helper.make_tensor(item.name, onnx.TensorProto.FLOAT8E4M3FN, shape, bytes(size), raw=True)
            )
    plain.opset_import[0].version = 19
    asked = qdq.layer_precisions(plain)
    found = trt_graph.read(plain, asked)
    assert "fp8" in asked.values()
    assert (found.has_int8, found.has_float8) == (False, True)
    assert found.float_nodes == {}
    assert qdq.lint(plain) == ()
