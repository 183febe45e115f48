"""What the builder is told in each version of TensorRT: a stand-in for its module writes that down."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest

import repo_builder.compile.tensorrt as room
from repo_builder.compile.tensorrt import graph as trt_graph
from repo_builder.core.errors import CompileError
from repo_builder.core.tensors import ShapeProfile
from repo_builder.export import precision, qdq

BOUND = ("log", "build")  # modules that are bound to the stand-in, and must be so for no other test
PROFILE = {"image": ShapeProfile(min=(1, 3, 8, 8), opt=(4, 3, 8, 8), max=(8, 3, 8, 8))}


def enum(name: str, *members: str) -> Any:
    return Enum(name, {member: place for place, member in enumerate(members)}, type=int)


class Layer(SimpleNamespace):
    def get_output(self, place: int) -> Any:
        return self.outputs[place]

    def set_output_type(self, place: int, kind: Any) -> None:
        self.pinned = kind


class Config(SimpleNamespace):
    """What is set is kept as attributes and in ``flags``; ``cache`` is what the builder was given."""

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.workspace = size

    def set_tactic_sources(self, bits: int) -> None:
        self.tactic_sources = bits

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.append(f"not {flag.name}")

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"tactics")


def stand_in(version: str, layers: list[Layer], refusal: Any = None) -> Any:
    made: Any = ModuleType("tensorrt")
    made.__version__ = version
    made.DataType = enum("DataType", "FLOAT", "HALF", "INT8")
    made.NetworkDefinitionCreationFlag = enum("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH", "STRONGLY_TYPED")
    made.BuilderFlag = enum("BuilderFlag", "FP16", "INT8", "TF32", "OBEY_PRECISION_CONSTRAINTS")
    made.TacticSource = enum("TacticSource", "CUBLAS", "CUDNN", "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
    made.MemoryPoolType = enum("MemoryPoolType", "WORKSPACE")
    made.ProfilingVerbosity = enum("ProfilingVerbosity", "DETAILED")
    made.ILogger = type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2})
    made.IProgressMonitor = type("IProgressMonitor", (), {})
    image = SimpleNamespace(name="image", shape=(-1, 3, 8, 8))
    made.network = SimpleNamespace(
        num_layers=len(layers), get_layer=lambda place: layers[place], num_inputs=1, get_input=lambda _: image
    )
    made.config = Config(flags=[], profiles=[])

    def create_network(bits: int) -> Any:
        made.network_bits = bits
        return made.network

    builder = SimpleNamespace(
        create_network=create_network,
        create_builder_config=lambda: made.config,
        create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *shapes: None),
        build_serialized_network=lambda network, config: b"plan",
    )
    made.Builder = lambda log: builder
    parser = SimpleNamespace(parse=lambda *_: refusal is None, num_errors=1, get_error=lambda _: refusal)
    made.OnnxParser = lambda network, log: parser
    return made


@pytest.fixture
def bind(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Any]]:
    """Return a function that imports trt_build as it is with a stand-in for tensorrt."""
    for name in BOUND:
        monkeypatch.delitem(sys.modules, f"repo_builder.compile.tensorrt.{name}", raising=False)
        monkeypatch.delattr(room, name, raising=False)

    def load(made: Any) -> Any:
        monkeypatch.setitem(sys.modules, "tensorrt", made)
        return importlib.import_module("repo_builder.compile.tensorrt.build")

    yield load
    for name in BOUND:
        sys.modules.pop(f"repo_builder.compile.tensorrt.{name}", None)
        vars(room).pop(name, None)


@pytest.fixture
def request_of(quantized: onnx.ModelProto, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that writes the small network, its last layer fp16 where asked, and says what to build."""

    def make(*, half: bool = False, **changes: Any) -> dict[str, Any]:
        model = quantized
        if half:
            gemm = model.graph.node[-1]
            gemm.input[0], gemm.input[1] = "flat", "logits_w"
            model = precision.to_fp16_regions(model, frozenset({"/logits"}))
        onnx.save(model, tmp_path / "model.onnx")
        precisions = trt_graph.read(model, qdq.layer_precisions(model))
        given = {"model": tmp_path / "model.onnx", "precisions": precisions, "profiles": [PROFILE]}
        return {**given, "workspace_bytes": 1 << 20, **changes}

    return make


def layer(name: str, made_of: str, *, kind: str = "CONVOLUTION") -> Layer:
    return Layer(
        name=name, type=SimpleNamespace(name=kind), num_outputs=1, outputs=[SimpleNamespace(name=made_of, dtype=0)]
    )


@pytest.mark.parametrize(
    ("version", "network", "flags", "monitored"),
    [
        ("8.5.3.1", "EXPLICIT_BATCH", ["INT8"], False),
        ("8.6.1", "EXPLICIT_BATCH", ["INT8"], False),
        ("10.13.3.9", None, ["INT8"], True),
        ("11.0.0.114", "STRONGLY_TYPED", [], True),
    ],
)
def test_each_version_is_told_what_it_knows(
    bind: Any, request_of: Any, version: str, network: str | None, flags: list[str], monitored: bool
) -> None:
    trt = stand_in(version, [])
    build = bind(trt)
    built = build.build(build.BuildRequest(**request_of()), print)
    assert built.plan == b"plan"
    assert list(built.flags) == trt.config.flags == flags
    assert trt.network_bits == (1 << trt.NetworkDefinitionCreationFlag[network].value if network else 0)
    assert trt.config.tactic_sources == 0b1100
    assert trt.config.workspace == 1 << 20
    assert len(trt.config.profiles) == 1
    assert hasattr(trt.config, "progress_monitor") is monitored


def test_progress_is_told_at_most_once_a_second(bind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = stand_in("10.0.1", [])
    bind(trt)
    trt_log = importlib.import_module("repo_builder.compile.tensorrt.log")
    now = [0.0]
    monkeypatch.setattr(trt_log.time, "monotonic", lambda: now[0])
    said: list[str] = []
    limited = trt_log.RateLimited(said.append)
    monitor = trt_log.monitor(limited)
    monitor.phase_start("Tactic Selection", None, 40)
    log = trt_log.Log(limited)
    for now[0], step in ((0.5, 0), (1.5, 1), (1.6, 2)):
        assert monitor.step_complete("Tactic Selection", step)
    now[0] = 3.0
    log.log(9, "=============== Timing Runner: conv1 + relu1 (CaskConvolution)")
    monitor.phase_finish("Tactic Selection")
    assert said == ["   1.5 s  Tactic Selection  2 of 40", "   3.0 s  timing conv1 + relu1 (CaskConvolution)"]


@pytest.mark.parametrize(("version", "pinned"), [("8.5.3.1", True), ("10.0.1", True), ("11.0.0.114", False)])
def test_a_named_node_is_pinned_where_types_are_weak(bind: Any, request_of: Any, version: str, pinned: bool) -> None:
    half, int8 = layer("/logits", "logits_fp16"), layer("/conv1", "conv1")
    trt = stand_in(version, [half, int8, layer("/logits", "logits_fp16", kind="CONSTANT")])
    build = bind(trt)
    free = build.build(build.BuildRequest(**request_of(half=True)), print)
    assert (free.constraints, hasattr(half, "pinned")) == (0, False)
    assert "OBEY_PRECISION_CONSTRAINTS" not in free.flags
    pins = frozenset({"/logits", "/conv1"})  # an int8 layer's type is the graph's Q/DQ: nothing to pin
    built = build.build(build.BuildRequest(**request_of(half=True), pinned=pins), print)
    assert built.constraints == int(pinned)
    assert ("OBEY_PRECISION_CONSTRAINTS" in built.flags) == pinned
    assert getattr(half, "pinned", None) == (trt.DataType.HALF if pinned else None)
    assert not hasattr(int8, "pinned")


def test_an_optimization_level_goes_to_versions_that_have_one(bind: Any, request_of: Any) -> None:
    trt = stand_in("8.6.1", [])
    build = bind(trt)
    assert build.build(build.BuildRequest(**request_of(optimization_level=5)), print).notes == ()
    assert trt.config.builder_optimization_level == 5
    trt.__version__ = "8.5.3.1"
    (note,) = build.build(build.BuildRequest(**request_of(optimization_level=5)), print).notes
    assert "8.5.3.1 has no builder optimization level" in note


def test_threads_and_timing_iterations_are_the_builders_own_unless_they_are_given(bind: Any, request_of: Any) -> None:
    trt = stand_in("8.6.1", [])
    build, builder = bind(trt), trt.Builder(None)
    build.build(build.BuildRequest(**request_of()), print)
    assert not hasattr(builder, "max_threads")
    assert not hasattr(trt.config, "avg_timing_iterations")
    build.build(build.BuildRequest(**request_of(threads=8, timing_iterations=4)), print)
    assert (builder.max_threads, trt.config.avg_timing_iterations) == (8, 4)


def test_a_timing_cache_is_read_again_and_a_damaged_one_is_not(bind: Any, request_of: Any, tmp_path: Path) -> None:
    trt = stand_in("8.5.3.1", [])
    build, path = bind(trt), tmp_path / "cache" / "gpu.timing"
    asked = request_of(timing_cache=path)
    path.parent.mkdir()
    assert build.build(build.BuildRequest(**asked), print).cached_tactics_bytes == 0
    assert path.read_bytes() == hashlib.sha256(b"tactics").digest() + b"tactics"
    assert build.build(build.BuildRequest(**asked), print).cached_tactics_bytes == 7
    assert trt.config.cache == b"tactics"
    path.write_bytes(b"damaged")
    built = build.build(build.BuildRequest(**asked), print)
    assert (built.cached_tactics_bytes, trt.config.cache) == (0, b"")
    assert "is damaged or not of this GPU" in built.notes[0]


@pytest.mark.parametrize("version", ["8.5.3.1", "10.0.1"])
def test_a_refused_node_is_named_with_its_operator_and_the_reason(bind: Any, request_of: Any, version: str) -> None:
    asked = request_of()
    place = [node.name for node in onnx.load(asked["model"]).graph.node].index("/pool")
    refusal = SimpleNamespace(
        desc=lambda: "No importer registered.",
        node=lambda: place,
        node_name=lambda: "/pool",
        node_operator=lambda: "MaxPool",
    )
    build = bind(stand_in(version, [], refusal))
    with pytest.raises(CompileError, match=r"refuses the node '/pool' \(MaxPool\): No importer registered") as caught:
        build.build(build.BuildRequest(**asked), print)
    assert "--target onnxruntime" in str(caught.value.hint)


def test_why_there_is_no_builder_is_said_in_tensorrts_own_words(bind: Any, request_of: Any) -> None:
    trt = stand_in("8.6.0", [])

    def refuse(log: Any) -> Any:
        log.log(trt.ILogger.ERROR, "The digest of libnvinfer_builder_resource does not match.")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    trt.Builder = refuse
    build = bind(trt)
    with pytest.raises(CompileError, match=r"8\.6\.0 makes no builder: The digest of libnvinfer_builder_resource"):
        build.build(build.BuildRequest(**request_of()), print)
