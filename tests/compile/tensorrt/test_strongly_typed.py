"""Strongly typed TensorRT takes the graphs as they are, and every layer becomes what it was asked, on three GPUs.

The networks are those of the CPU zoo, small; placed by TensorRT's profile from ranges of a few random samples.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.compile.tensorrt import versions
from repo_builder.core.errors import CompileError
from repo_builder.core.profiles import Profile
from repo_builder.core.recipe import LayerRule, QuantizeSpec
from repo_builder.core.tensors import ShapeProfile
from repo_builder.export import precision, qdq
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.placement import place, profile, wanted
from repo_builder.quantize.placement.table import Float8Form
from repo_builder.quantize.prepare import prepare
from repo_builder.quantize.ranges import Ranges, TensorRange, WeightRange
from repo_builder.quantize.rules import plan

CAPABILITIES = ("SM86", "SM89", "SM120")
KINDS = ("int8", "fp16", "mixed", "fp8")  # of every layer; ``mixed``: convolutions int8, all else fp16
BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
# network → the size of its images; the first two are built for every GPU, the others for one each in turn
NETWORKS: Mapping[str, int] = {
    "vgg": 32, "jsc": 0, "resnet18": 32, "unet": 32, "vit_small": 64, "bert_small": 0, "lstm": 0,
}  # fmt: skip
ON_ALL = ("vgg", "jsc")
WHOLE = bool(os.environ.get("STRONGLY_TYPED_ON_EVERY_GPU"))  # 30 s more: every network for every GPU
# Layers that stay fp32 in half precision: a Cast in front of an LSTM ends TensorRT for RTX 1.7 in an internal error.
FP32 = {"lstm": "/inner/*"}


@pytest.fixture(scope="module")
def zoo() -> Any:
    """The benchmarks' networks, of fewer and narrower blocks of each kind, and what places them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        networks = importlib.import_module("zoo_networks")
        smaller = {
            "vgg": lambda: networks.vgg.build(width=0.25),
            "resnet18": lambda: networks.resnet((1, 1, 1, 1), bottleneck=False),
            "vit_small": lambda: networks.Vit(96, 2, 6),
            "bert_small": lambda: networks.Bert(64, 2, 4),
        }
        for name, make in smaller.items():
            patch.setitem(networks.NETWORKS, name, dataclasses.replace(networks.NETWORKS[name], make=make))
        yield importlib.import_module("cpu_zoo")


@pytest.fixture(scope="module")
def export(zoo: Any) -> Callable[[str], onnx.ModelProto]:
    return functools.cache(lambda name: zoo.exported(name, NETWORKS[name]))


def rules(name: str, kind: str) -> tuple[Any, ...]:
    if kind in ("int8", "fp8"):
        return (LayerRule(precision=kind),)  # type: ignore[arg-type]
    half = [LayerRule(precision="fp16")]
    half += [LayerRule(precision="fp32", name=FP32[name])] if name in FP32 else []
    return (*half, *([LayerRule(precision="int8", type="Conv*", optional=True)] if kind == "mixed" else []))


def placed(zoo: Any, model: onnx.ModelProto, name: str, kind: str) -> onnx.ModelProto:
    plans = plan(list(find_layers(model)), QuantizeSpec(layers=rules(name, kind)))
    target = profile("tensorrt")
    seen = zoo.observe(model, wanted(model, plans, [target]), [{"x": zoo.data(name, NETWORKS[name], 2, 1)}])
    made = place(model, plans, Ranges(tensors=seen, weights=zoo.weight_ranges(model, plans)), target)
    halves = frozenset(item.name for item in made.layers if item.placed == "fp16")
    return precision.to_fp16_regions(made.model, halves) if halves else made.model


def capabilities(name: str, kind: str) -> tuple[str, ...]:
    """The GPUs that a graph is built for: fp8 has none before Ada."""
    able = CAPABILITIES[1:] if kind == "fp8" else CAPABILITIES
    turn = (list(NETWORKS).index(name) + KINDS.index(kind)) % len(able)
    return able if WHOLE or name in ON_ALL else able[turn : turn + 1]


def profile_of(model: onnx.ModelProto) -> Profile:
    found = {}
    for item in model.graph.input:
        sizes = [size.dim_value for size in item.type.tensor_type.shape.dim]
        low, high = ([size or usual for size in sizes] for usual in (1, 8))
        found[item.name] = ShapeProfile(min=tuple(low), opt=tuple(high), max=tuple(high))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_becomes_what_it_was_asked(
    rtx: Any, zoo: Any, export: Callable[[str], onnx.ModelProto], tmp_path: Path, name: str, kind: str
) -> None:
    model = placed(zoo, export(name), name, kind)
    asked = qdq.layer_precisions(model)
    assert set(asked.values()) & ({"int8", "fp16"} if kind == "mixed" else {kind})
    found = rtx(model, tmp_path / "model.onnx", profile_of(model), *capabilities(name, kind))
    typed_as_the_graph(found, model, asked)
    told = 0
    for capability in capabilities(name, kind):
        for node in model.graph.node:
            if node.op_type in ("Conv", "Gemm", "MatMul") and node.name in asked:
                became = found.became(node.name, capability)
                assert became in (asked[node.name], "unknown"), f"{node.name} on {capability}"
                told += became != "unknown"
            if node.op_type == "ConvTranspose":  # the one known exception: it has no int8 kernel there
                assert found.became(node.name, capability) in ("fp32", "fp16", "unknown")
    assert told


def typed_as_the_graph(found: Any, model: onnx.ModelProto, asked: Mapping[str, str]) -> None:
    """The parsed network has the graph's types: codes read by DequantizeLinear alone, Half and Float never mixed."""
    layers = {item[1]: item for item in found.network}
    makers = {name: item for item in found.network for name in item[4]}
    for kind, layer, reads, _, _, _ in found.network:
        floats = {item for item in reads if item in ("FLOAT", "HALF")}
        assert len(floats) <= 1 or kind in ("CAST", "QUANTIZE", "DEQUANTIZE"), f"{layer} mixes Half and Float"
    for node in model.graph.node:
        if asked.get(node.name) not in ("int8", "fp8") or node.name not in layers:
            continue
        maker = makers.get(layers[node.name][5][0])
        while maker is not None and maker[0] in ("SHUFFLE", "IDENTITY", "CAST"):
            maker = makers.get(maker[5][0])
        assert maker is not None, node.name
        assert maker[0] == "DEQUANTIZE", f"{node.name} reads what {maker[1]} makes"
        assert maker[2][0] == {"int8": "INT8", "fp8": "FP8"}[asked[node.name]], node.name


def test_fp8_is_refused_where_a_gpu_has_none(rtx: Any, zoo: Any, export: Any, tmp_path: Path) -> None:
    model = placed(zoo, export("jsc"), "jsc", "fp8")
    with pytest.raises(CompileError, match="fp8_e4m3"):
        rtx(model, tmp_path / "model.onnx", profile_of(model), "SM86")
    assert "begin with 8.9" in versions.why_no_float8("11.0.0", "8.6")


@pytest.mark.parametrize(("kernel", "expected"), [((4, 8), "fp8"), ((6, 6), "fp32")])
def test_large_kernels_have_no_fp8_and_the_table_knows(
    rtx: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, int], expected: str
) -> None:
    """Were they placed in fp8, the program would compute them in fp32."""
    values = np.random.default_rng(0).standard_normal((32, 16, *kernel)).astype(np.float32)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")], "g",
        [info("x", TensorProto.FLOAT, ["n", 16, 16, 16])], [info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, "w")],
    )  # fmt: skip
    model = prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    plans = plan(list(find_layers(model)), QuantizeSpec(layers=(LayerRule(precision="fp8"),)))
    span = TensorRange(low=-1.0, high=1.0, amax=1.0, calibrator="max")
    ranges = Ranges(tensors={"x": span}, weights={"conv": WeightRange(amax=np.abs(values).max(axis=(1, 2, 3)))})
    target = profile("tensorrt")
    assert place(model, plans, ranges, target).layers[0].placed == expected
    free = dataclasses.replace(target, float8={"Conv": Float8Form()})
    made = place(model, plans, ranges, free).model
    found = rtx(made, tmp_path / "model.onnx", profile_of(made), "SM89")
    assert found.became("conv", "SM89") == expected
