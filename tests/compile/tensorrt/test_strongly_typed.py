"""Strongly typed TensorRT takes the graphs as they are, and every layer becomes what it was asked, on three GPUs.

The networks are those of the CPU zoo, small; placed by TensorRT's profile from ranges of a few random samples.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from repo_builder.core.profiles import Profile
from repo_builder.core.tensors import ShapeProfile
from repo_builder.export import precision, qdq

CAPABILITIES = ("SM86", "SM89", "SM120")
FEW = ("vit_small", "bert_small", "mobilenet_v2", "unet", "lstm")  # for one GPU: each takes seconds
BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
# network → (size of its images, the precision of every layer; ``mixed``: convolutions int8, all else fp16)
GRAPHS: Mapping[str, tuple[int, str]] = {
    "vgg": (32, "int8"),
    "jsc": (0, "int8"),
    "resnet18": (32, "int8"),
    "mobilenet_v2": (32, "mixed"),
    "unet": (32, "int8"),
    "vit_small": (64, "fp16"),
    "bert_small": (0, "int8"),
    "lstm": (0, "int8"),
}


@pytest.fixture(scope="module")
def zoo() -> Any:
    """The benchmarks' networks, of fewer and narrower blocks of each kind, and what places them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        networks = importlib.import_module("zoo_networks")
        smaller = {
            "resnet18": lambda: networks.resnet((1, 1, 1, 1), bottleneck=False),
            "vit_small": lambda: networks.Vit(96, 2, 6),
            "bert_small": lambda: networks.Bert(64, 2, 4),
        }
        for name, make in smaller.items():
            patch.setitem(networks.NETWORKS, name, dataclasses.replace(networks.NETWORKS[name], make=make))
        yield importlib.import_module("cpu_zoo")


def placed(zoo: Any, name: str, size: int, kind: str) -> onnx.ModelProto:
    from repo_builder.core.recipe import LayerRule, QuantizeSpec
    from repo_builder.quantize.layers import find_layers
    from repo_builder.quantize.placement import place, profile, wanted
    from repo_builder.quantize.ranges import Ranges
    from repo_builder.quantize.rules import plan

    model = zoo.exported(name, size)
    rules = [LayerRule(precision="fp16")] if kind in ("fp16", "mixed") else []
    rules += [LayerRule(precision="int8", type="Conv*" if kind == "mixed" else None)] if kind != "fp16" else []
    plans = plan(list(find_layers(model)), QuantizeSpec(layers=tuple(rules)))
    target = profile("tensorrt")
    seen = zoo.observe(model, wanted(model, plans, [target]), [{"x": zoo.data(name, size, 2, 1)}])
    made = place(model, plans, Ranges(tensors=seen, weights=zoo.weight_ranges(model, plans)), target)
    halves = frozenset(item.name for item in made.layers if item.placed == "fp16")
    return precision.to_fp16_regions(made.model, halves) if halves else made.model


def profile_of(model: onnx.ModelProto) -> Profile:
    found = {}
    for item in model.graph.input:
        sizes = [size.dim_value for size in item.type.tensor_type.shape.dim]
        low, high = ([size or usual for size in sizes] for usual in (1, 8))
        found[item.name] = ShapeProfile(min=tuple(low), opt=tuple(high), max=tuple(high))
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_every_layer_becomes_what_it_was_asked(rtx: Any, zoo: Any, tmp_path: Path, name: str) -> None:
    model = placed(zoo, name, *GRAPHS[name])
    asked = qdq.layer_precisions(model)
    assert set(asked.values()) & {"int8", "fp16"}
    capabilities = CAPABILITIES[1:2] if name in FEW else CAPABILITIES
    found = rtx(model, tmp_path / "model.onnx", profile_of(model), *capabilities)
    for kind, layer, reads, _ in found.network:  # the types of the parsed network are those of the graph
        floats = {item for item in reads if item in ("FLOAT", "HALF")}
        assert len(floats) <= 1 or kind in ("CAST", "QUANTIZE", "DEQUANTIZE"), f"{layer} mixes Half and Float"
    told = 0
    for capability in capabilities:
        for node in model.graph.node:
            if node.op_type in ("Conv", "Gemm", "MatMul") and node.name in asked:
                became = found.became(node.name, capability)
                assert became in (asked[node.name], "unknown"), f"{node.name} on {capability}"
                told += became != "unknown"
            if node.op_type == "ConvTranspose":  # the one known exception: it has no int8 kernel there
                assert found.became(node.name, capability) in ("fp32", "unknown")
    assert told or name not in ("vgg", "resnet18", "unet"), "the program names convolutions"
