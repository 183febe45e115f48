"""A small network in each precision as an artifact, compiled once; everything here skips where it cannot run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder import recipes
from repo_builder.compile import CompileOptions
from repo_builder.core import artifacts, environment
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.details import OnnxDetails
from repo_builder.core.recipe import Recipe, RepositorySpec, parse
from repo_builder.core.records import LayerRecord
from repo_builder.export import precision, qdq

LAYERS = ("conv1", "conv2", "linear1", "linear2")
SHAPE = (3, 8, 8)
WIDE = (3, 64, 64)
WIDE_OUTPUT = (16, 64, 64)
MAX_BATCH = 16
PRECISIONS = {
    "int8": dict.fromkeys(LAYERS, "int8"),
    "fp16": dict.fromkeys(LAYERS, "fp16"),
    "fp32": dict.fromkeys(LAYERS, "fp32"),
    "wide": {"conv1": "int8"},
    "mixed": {"conv1": "fp16", "conv2": "int8", "linear1": "int8", "linear2": "fp16"},
}


def why_not() -> str | None:
    if not environment.gpus():
        return "needs an NVIDIA GPU, and nvidia-smi lists none"
    try:
        import tensorrt  # noqa: F401
        from cuda.bindings import runtime  # noqa: F401
    except ImportError as error:
        return f"needs TensorRT and cuda-python ({error})"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))


class Network:
    """conv1, relu, pool, conv2, relu, pool, linear1, relu, linear2; Q/DQ around the layers that are int8.

    ``wide`` is conv1 alone on a larger image, whose output is larger yet.
    """

    def __init__(self, precisions: dict[str, str]) -> None:
        self.precisions = precisions
        self.nodes: list[onnx.NodeProto] = []
        self.values: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(7)

    def constant(self, name: str, value: Any) -> str:
        self.values.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def quantized(self, tensor: str, prefix: str, amax: Any, **axis: int) -> str:
        scale = (np.asarray(amax, np.float32) / 127).astype(np.float32)
        ends = [
            self.constant(f"{prefix}_scale", scale),
            self.constant(f"{prefix}_zero", np.zeros(scale.shape, np.int8)),
        ]
        q = self.node("QuantizeLinear", [tensor, *ends], f"{prefix}/QuantizeLinear", **axis)
        return self.node("DequantizeLinear", [q, *ends], f"{prefix}/DequantizeLinear", **axis)

    def layer(self, op: str, tensor: str, name: str, shape: tuple[int, ...], amax: float, **attributes: Any) -> str:
        fan_in = int(np.prod(shape[1:]))
        weight = self.random.normal(0, np.sqrt(2 / fan_in), shape).astype(np.float32)
        stored = self.constant(f"{name}.weight", weight)
        bias = self.constant(f"{name}.bias", self.random.normal(0, 0.1, shape[0]).astype(np.float32))
        if self.precisions[name] == "int8":
            tensor = self.quantized(tensor, f"{name}.input", amax)
            most = np.abs(weight).reshape(shape[0], -1).max(axis=1)
            stored = self.quantized(stored, f"{name}.weight", most, axis=0)
        return self.node(op, [tensor, stored, bias], name, **attributes)

    def wide(self) -> onnx.ModelProto:
        self.layer("Conv", "image", "conv1", (16, 3, 3, 3), 4.0, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        return self.finish(WIDE, WIDE_OUTPUT)

    def model(self) -> onnx.ModelProto:
        value, size = "image", {"kernel_shape": [2, 2], "strides": [2, 2]}
        for name, shape, amax in (("conv1", (32, 3, 3, 3), 4.0), ("conv2", (64, 32, 3, 3), 6.0)):
            value = self.layer("Conv", value, name, shape, amax, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            value = self.node("MaxPool", [self.node("Relu", [value], f"/{name}/Relu")], f"/{name}/MaxPool", **size)
        value = self.node("Flatten", [value], "/Flatten")
        value = self.layer("Gemm", value, "linear1", (64, 256), 8.0, transB=1)
        self.layer("Gemm", self.node("Relu", [value], "/linear1/Relu"), "linear2", (10, 64), 8.0, transB=1)
        return self.finish(SHAPE, (10,))

    def finish(self, shape: tuple[int, ...], output: tuple[int, ...]) -> onnx.ModelProto:
        self.nodes[-1].output[0] = "logits"
        ends = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *shape])]
        outs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", *output])]
        graph = helper.make_graph(self.nodes, "net", ends, outs, self.values)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        made = onnx.shape_inference.infer_shapes(made)
        halves = frozenset(name for name, kind in self.precisions.items() if kind == "fp16")
        return precision.to_fp16_regions(made, halves) if halves else made


def recipe(name: str, **repository: Any) -> Recipe:
    document = recipes.load("vgg").to_dict()
    shapes = (WIDE, WIDE_OUTPUT) if name == "wide" else (SHAPE, (10,))
    for key, shape in zip(("inputs", "outputs"), shapes, strict=True):
        document["model"][key][0]["shape"] = list(shape)
    document["name"] = name
    document["data"]["source"] = "not-here.npz"  # the engine is not scored
    asked = {
        "max_batch_size": MAX_BATCH,
        "warmup_batch_sizes": (1, 4, MAX_BATCH),
        "max_queue_delay_us": 500,
    } | repository
    # One profile: with several, a batch that Triton forms may run other kernels than its parts do alone, and what is
    # asked here is that nothing but the plan decides about a bit.
    document["compile"]["tensorrt"]["profiles"] = [{"min_batch": 1, "opt_batch": MAX_BATCH, "max_batch": MAX_BATCH}]
    return dataclasses.replace(parse(document), repository=RepositorySpec(**asked))


@pytest.fixture(scope="session")
def make_artifact(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OnnxArtifact]:
    def make(name: str, **repository: Any) -> OnnxArtifact:
        folder = tmp_path_factory.mktemp(name) / name / "onnx"
        folder.mkdir(parents=True)
        network = Network(PRECISIONS[name])
        model = network.wide() if name == "wide" else network.model()
        onnx.save(model, folder / "model.fp32.onnx")
        made = recipe(name, **repository)
        artifact = OnnxArtifact(
            path=folder,
            key="test",
            recipe=made,
            inputs=made.model.inputs,
            outputs=made.model.outputs,
            files=artifacts.hashes(folder),
            layers=tuple(LayerRecord(name=k, type="", asked=v) for k, v in PRECISIONS[name].items()),
            details=OnnxDetails(as_it_came=True),
        )
        artifacts.write_manifest(artifact)
        return artifact

    return make


@pytest.fixture(scope="session")
def place_plan(tmp_path_factory: pytest.TempPathFactory) -> Callable[[OnnxArtifact, Path], EngineArtifact]:
    """Compile an artifact, and place the plan in a model repository."""

    def place(artifact: OnnxArtifact, repository: Path) -> EngineArtifact:
        from repo_builder.compile.tensorrt.target import TensorRTTarget
        from repo_builder.repository import layout

        folder = tmp_path_factory.mktemp("plan") / artifact.recipe.name
        folder.mkdir()
        options = CompileOptions(
            recipe=artifact.recipe,
            graph=artifact.model,
            layer_precisions=qdq.layer_precisions(onnx.load(artifact.model)),
            cache_folder=folder.parent,
        )
        details = TensorRTTarget().compile(artifact, folder, options=options)
        engine = EngineArtifact(
            path=folder,
            key="test",
            recipe=artifact.recipe,
            inputs=artifact.inputs,
            outputs=artifact.outputs,
            files=artifacts.hashes(folder),
            details=details,
        )
        artifacts.write_manifest(engine)
        layout.place(engine, repository)
        return engine

    return place


@pytest.fixture(scope="session")
def asked() -> dict[str, dict[str, str]]:
    """What each network of ``make_artifact`` asks for: name → layer → precision."""
    return PRECISIONS


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(64, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="session")
def wide_images() -> np.ndarray:
    """48 KiB each, for ``wide``, whose answer to each has 256 KiB."""
    return np.random.default_rng(4).normal(size=(32, *WIDE)).astype(np.float32)
