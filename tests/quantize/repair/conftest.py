"""Graphs for repairs, and one line to repair them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.recipe import LayerRule, QuantizeSpec, RepairSpec

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def graph(
    nodes: Sequence[onnx.NodeProto],
    stored: Mapping[str, np.ndarray],
    inputs: Sequence[Any],
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> onnx.ModelProto:
    """A float model of ``x``."""
    values = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in stored.items()]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, inputs)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        initializer=values,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def mobile(
    *, scale: float = 2.0, act: str = "Relu", seed: int = 0, channels: int = 12, more: Sequence[onnx.NodeProto] = ()
) -> onnx.ModelProto:
    """Convolution, depthwise, pointwise, pool, linear; channels between the layers of sizes e^N(0, scale)."""
    draw = np.random.default_rng(seed)
    wide = np.exp(draw.standard_normal(channels) * scale)
    stored = {
        "w0": draw.standard_normal((channels, 3, 3, 3)) / 5,
        "b0": draw.standard_normal(channels) / 10,
        "wd": draw.standard_normal((channels, 1, 3, 3)) / 3 * wide[:, None, None, None],
        "bd": draw.standard_normal(channels) / 10 * wide,
        "w1": draw.standard_normal((20, channels, 1, 1)) / 4 / wide[None, :, None, None],
        "w2": draw.standard_normal((20, 6)) / 5,
        "b2": draw.standard_normal(6),
    }
    bounds = {}
    if act == "Clip":
        bounds = {"zero": np.float32(0), "six": np.float32(6)}
    extra = list(bounds)
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", pads=[1] * 4),
        node(act, ["c0", *extra], ["r0"], name="a0"),
        node("Conv", ["r0", "wd", "bd"], ["c1"], name="depthwise", pads=[1] * 4, group=channels),
        node(act, ["c1", *extra], ["r1"], name="a1"),
        node("Conv", ["r1", "w1"], ["c2"], name="pointwise"),
        node("Relu", ["c2"], ["r2"], name="a2"),
        node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        node("Flatten", ["p"], ["f"], name="flat"),
        node("Gemm", ["f", "w2", "b2"], ["y"], name="head"),
        *more,
    ]
    outputs = ["y", *(name for item in more for name in item.output)]
    return graph(nodes, {**stored, **bounds}, ["n", 3, 8, 8], outputs=outputs)


def transformer(*, seed: int = 0, width: int = 16) -> onnx.ModelProto:
    """Two blocks of norm, linear, GELU, linear and sum; some channels of the norms are ten times the others."""
    draw = np.random.default_rng(seed)
    node, nodes, stored, at = helper.make_node, [], {"one": np.ones(1), "half": np.full(1, 0.5)}, "x"
    for block in "ab":
        sizes = np.where(np.arange(width) % 7 == 3, 10.0, 1.0)
        stored |= {f"{block}s": sizes, f"{block}n": draw.standard_normal(width) / 5}
        stored |= {f"{block}w": draw.standard_normal((width, 2 * width)) / width / sizes[:, None] ** 0.5}
        stored |= {f"{block}b": draw.standard_normal(2 * width) / 5, f"{block}v": draw.standard_normal((32, width)) / 5}
        nodes += [
            node("LayerNormalization", [at, f"{block}s", f"{block}n"], [f"{block}1"], name=f"{block}.norm"),
            node("MatMul", [f"{block}1", f"{block}w"], [f"{block}2"], name=f"{block}.in"),
            node("Add", [f"{block}2", f"{block}b"], [f"{block}3"], name=f"{block}.sum"),
            node("Erf", [f"{block}3"], [f"{block}4"], name=f"{block}.erf"),
            node("Add", [f"{block}4", "one"], [f"{block}5"], name=f"{block}.one"),
            node("Mul", [f"{block}5", f"{block}3"], [f"{block}6"], name=f"{block}.gate"),
            node("Mul", [f"{block}6", "half"], [f"{block}7"], name=f"{block}.gelu"),
            node("MatMul", [f"{block}7", f"{block}v"], [f"{block}8"], name=f"{block}.out"),
            node("Add", [at, f"{block}8"], [f"{block}9"], name=f"{block}.residual"),
        ]
        at = f"{block}9"
    return graph([*nodes, node("ReduceMean", [at], ["y"], axes=[1], name="mean")], stored, ["n", 12, width])


def sentences(count: int = 32, seed: int = 1) -> np.ndarray:
    """Tokens for ``transformer``; the first of each sentence is far out, as that of its start is in real ones."""
    made = np.random.default_rng(seed).standard_normal((count, 12, 16)).astype(np.float32)
    made[:, 0, 5] += 60
    return made


def images(count: int = 32, seed: int = 1) -> np.ndarray:
    """Images for ``mobile``."""
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What repairs made of a graph."""

    ready: onnx.ModelProto
    model: onnx.ModelProto
    ranges: Any
    records: Sequence[Any]
    plans: Sequence[Any]

    def placed(self, target: str = "onnxruntime-cpu") -> onnx.ModelProto:
        """The repaired graph with Q/DQ."""
        from repo_builder.quantize.placement import place, profile

        return place(self.model, self.plans, self.ranges, profile(target)).model


def repaired(
    model: onnx.ModelProto,
    samples: np.ndarray,
    spec: RepairSpec,
    *rules: LayerRule,
    target: str = "onnxruntime-cpu",
    backend: str = "onnxruntime",
) -> Repaired:
    """Prepare, plan, calibrate, repair."""
    from repo_builder.quantize import plan, repair
    from repo_builder.quantize.calibrate import calibrate
    from repo_builder.quantize.judge import Judge, parts
    from repo_builder.quantize.layers import find_layers
    from repo_builder.quantize.placement import profile
    from repo_builder.quantize.prepare import prepare

    asked = QuantizeSpec(backend=backend, batch_size=16, layers=rules or (LayerRule(precision="int8"),), repair=spec)
    ready = prepare(model)
    plans = plan(list(find_layers(ready)), asked)

    def found(changed: onnx.ModelProto) -> tuple[Any, Any]:
        return calibrate(changed, plans, asked, {"x": samples}, target=target)[:2]

    ranges, seen = found(ready)
    fits, judges = parts(ready, {"x": samples})
    work = repair.Work(plans=plans, spec=asked, samples=fits, profile=profile(target), seed=0, calibrate=found)
    state = repair.State(model=ready, ranges=ranges, seen=seen)
    state, records = repair.repaired(state, work, Judge(ready, judges, batch_size=16))
    return Repaired(ready=ready, model=state.model, ranges=state.ranges, records=records, plans=plans)


@pytest.fixture(scope="session")
def repair_of() -> Callable[..., Repaired]:
    """``repair_of(model, samples, spec, *rules)``."""
    return repaired


def run(model: onnx.ModelProto, samples: np.ndarray, names: Sequence[str] | None = None) -> list[np.ndarray]:
    """Outputs of a model, optimizations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, {"x": samples})


@pytest.fixture(scope="session")
def outputs() -> Callable[..., list[np.ndarray]]:
    """``outputs(model, samples)``."""
    return run


@pytest.fixture(scope="session")
def mobile_net() -> Callable[..., onnx.ModelProto]:
    """``mobile_net(scale=2.0, act="Relu")``: convolution, depthwise, pointwise, pool, linear."""
    return mobile


@pytest.fixture(scope="session")
def graph_of() -> Callable[..., onnx.ModelProto]:
    """``graph_of(nodes, stored, inputs)``."""
    return graph


@pytest.fixture(scope="session")
def pictures() -> np.ndarray:
    """32 images for ``mobile_net``."""
    return images()


@pytest.fixture(scope="session")
def judged() -> Callable[..., float]:
    """``judged(repaired, samples)``: dB that the placed outputs keep, on any samples."""
    from repo_builder.quantize.judge import Judge

    return lambda found, samples: Judge(found.ready, {"x": samples}, batch_size=16).keeps(found.placed())


@pytest.fixture(scope="session")
def networks() -> dict[str, tuple[onnx.ModelProto, np.ndarray, np.ndarray]]:
    """Network → a small one of its kind, samples to calibrate on, and others."""
    return {
        "depthwise": (mobile(scale=1.0), images(), images(64, seed=9)),
        "transformer": (transformer(), sentences(), sentences(64, seed=9)),
    }
