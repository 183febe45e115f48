"""The trained graph is the one that is placed: in fp32 bit by bit of its layers, with fake quantizers code by code."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from torch import nn  # noqa: E402

from repo_builder.core.errors import QuantizeError, RecipeError  # noqa: E402
from repo_builder.core.recipe import LayerRule, QuantizeSpec  # noqa: E402
from repo_builder.core.tensors import DType, TensorSpec  # noqa: E402
from repo_builder.export import torch_onnx  # noqa: E402
from repo_builder.quantize import observe, plan  # noqa: E402
from repo_builder.quantize.calibrate import calibrate  # noqa: E402
from repo_builder.quantize.finetune import rounding  # noqa: E402
from repo_builder.quantize.finetune.fake import fakes  # noqa: E402
from repo_builder.quantize.finetune.graph import TrainableGraph  # noqa: E402
from repo_builder.quantize.layers import find_layers  # noqa: E402
from repo_builder.quantize.placement import PROFILES, place, profile  # noqa: E402
from repo_builder.quantize.placement.profiles.onnxruntime_cpu import for_cpu  # noqa: E402
from repo_builder.quantize.prepare import prepare  # noqa: E402

BACKENDS = ("onnxruntime", "modelopt", "pytorch-quantization")


class Net(nn.Module):
    """What placements differ in: a residual sum, a clip, depthwise, a pool, signed tensors, a float end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU())
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Sequential(nn.Linear(128, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.stem(x)
        found = self.pool(found + self.point(self.depth(found)))
        return self.head(self.hidden(torch.flatten(found, 1)))


@dataclasses.dataclass(frozen=True)
class Ready:
    module: nn.Module
    model: onnx.ModelProto
    plans: Any
    ranges: Any
    x: np.ndarray


@pytest.fixture(scope="module")
def ready() -> Ready:
    torch.manual_seed(0)
    module = Net()
    x = np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)
    module.train()
    for _ in range(3):
        module(torch.from_numpy(x))  # statistics that a BatchNorm has to be folded with
    with torch.no_grad():
        for item in module.modules():
            if isinstance(item, nn.BatchNorm2d | nn.BatchNorm1d):
                item.weight.uniform_(0.2, 2)
                item.bias.uniform_(-1, 1)
    module.eval()
    exported = torch_onnx.export(
        module,
        inputs=(TensorSpec(name="x", dtype=DType.FP32, shape=(3, 8, 8)),),
        outputs=(TensorSpec(name="y", dtype=DType.FP32, shape=(5,)),),
        opset=17,
        path=Path("model.onnx"),
        samples={"x": x},
    )
    model = prepare(exported.model)
    spec = QuantizeSpec(layers=(LayerRule(precision="int8"),))
    plans = plan(list(find_layers(model)), spec)
    ranges, _, _ = calibrate(model, plans, spec, {"x": x})
    return Ready(module, model, plans, ranges, x)


def outputs(graph: TrainableGraph, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = graph({"x": torch.from_numpy(x)})["y"].numpy()
    return found


def decibels(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / max(np.square(wanted - found).sum(), 1e-30)))


def test_batch_norm_is_folded_exactly(ready: Ready) -> None:
    assert not any(node.op_type == "BatchNormalization" for node in ready.model.graph.node)
    with torch.no_grad():
        expected = ready.module(torch.from_numpy(ready.x)).numpy()
    np.testing.assert_allclose(outputs(TrainableGraph(ready.model), ready.x), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("target", sorted(PROFILES))
def test_fake_quantized_it_gives_what_the_placed_graph_gives(ready: Ready, target: str, backend: str) -> None:
    """Far closer than either is to fp32; what is left is the rounding of sums and of int32 biases."""
    quantized = fakes(ready.model, ready.plans, ready.ranges, profile(target), rounding.backend(backend))
    graph = TrainableGraph(ready.model, quantized)
    placed = place(ready.model, ready.plans, ready.ranges, profile(target))
    session = observe.open_session(placed.model, ["y"], optimize=False)
    expected = observe.run(session, ["y"], {"x": ready.x})["y"]
    found, fp32 = outputs(graph, ready.x), outputs(TrainableGraph(ready.model), ready.x)
    assert decibels(expected, found) > decibels(expected, fp32) + 8
    assert decibels(expected, found) > 40
    assert set(quantized.tensors) == set(placed.tensors)
    assert set(quantized.weights) == {item.name for item in placed.layers if item.placed == "int8"}


@pytest.mark.parametrize("target", [*sorted(PROFILES), "7 bits"])
def test_its_ranges_place_the_very_graph_that_was_trained(ready: Ready, target: str) -> None:
    """Untrained: equal to the byte. After steps of training: with the trained steps, to float32's last digits."""
    chosen = for_cpu("7 bits") if target == "7 bits" else profile(target)
    quantized = fakes(ready.model, ready.plans, ready.ranges, chosen, rounding.plain)
    graph = TrainableGraph(ready.model, quantized)

    def placed() -> Any:
        trained = graph.ranges(ready.ranges, learned=True)
        merged = dataclasses.replace(
            ready.ranges,
            tensors={**ready.ranges.tensors, **trained.tensors},
            weights={**ready.ranges.weights, **trained.weights},
        )
        return place(graph.tuned(), ready.plans, merged, chosen)

    before = place(ready.model, ready.plans, ready.ranges, chosen)
    assert placed().model.SerializeToString() == before.model.SerializeToString()
    optimizer = torch.optim.SGD([*graph.weights(), *graph.steps()], lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        graph({"x": torch.from_numpy(ready.x)})["y"].square().mean().backward()
        optimizer.step()
    after = placed()
    changed = 0
    for name, item in after.tensors.items():
        step = float(graph.fakes[quantized.tensors[name]].step().detach())
        assert item.scale == pytest.approx(step, rel=1e-6)
        assert item.zero_point == before.tensors[name].zero_point
        changed += item.scale != before.tensors[name].scale
    assert changed > len(after.tensors) // 2
    session = observe.open_session(after.model, ["y"], optimize=False)
    expected = observe.run(session, ["y"], {"x": ready.x})["y"]
    assert decibels(expected, outputs(graph, ready.x)) > 35


def test_every_back_end_trains_the_same(ready: Ready) -> None:
    ends = []
    for name in BACKENDS:
        quantized = fakes(ready.model, ready.plans, ready.ranges, profile("onnxruntime-cpu"), rounding.backend(name))
        graph = TrainableGraph(ready.model, quantized)
        optimizer = torch.optim.Adam([*graph.weights(), *graph.steps()], lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            graph({"x": torch.from_numpy(ready.x)})["y"].square().mean().backward()
            optimizer.step()
        ends.append([item.detach().clone() for item in (*graph.weights(), *graph.steps())])
    for first, *others in zip(*ends, strict=True):
        for other in others:
            torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-5)


def test_tensors_that_share_a_scale_share_what_is_trained(ready: Ready) -> None:
    """A pool moves codes: what it reads and makes has one step."""
    quantized = fakes(ready.model, ready.plans, ready.ranges, profile("onnxruntime-cpu"), rounding.plain)
    pool = next(node for node in ready.model.graph.node if node.op_type == "MaxPool")
    assert quantized.tensors[pool.input[0]] == quantized.tensors[pool.output[0]]


def test_a_range_does_not_grow_beyond_the_clip_that_ends_it(ready: Ready) -> None:
    """ONNX Runtime would run the Clip apart from its convolution."""
    quantized = fakes(ready.model, ready.plans, ready.ranges, profile("onnxruntime-cpu"), rounding.plain)
    graph = TrainableGraph(ready.model, quantized)
    clip = next(node.output[0] for node in ready.model.graph.node if node.op_type == "Clip")
    with torch.no_grad():
        for item in graph.steps():
            item.add_(1.5)
    graph.settle()
    trained = graph.ranges(ready.ranges, learned=True).tensors
    assert trained[clip].high <= 6
    assert trained[clip].high == pytest.approx(6, rel=1e-6)
    other = next(name for name in trained if name not in (clip, "x"))
    assert trained[other].amax > 4 * ready.ranges.tensors[other].amax


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("unsigned", [True, False])
def test_back_ends_round_and_pass_gradients_alike(backend: str, unsigned: bool) -> None:
    made = rounding.backend(backend)(bits=8, unsigned=unsigned, narrow=False)
    low, high = (0, 255) if unsigned else (-128, 127)
    x = torch.tensor([-300.0, -1.4, -0.6, 0.0, 0.5, 1.5, 2.4, 126.6, 300.0], requires_grad=True)
    found = made(x)
    np.testing.assert_array_equal(found.detach().numpy(), np.clip(np.rint(x.detach().numpy()), low, high))
    found.sum().backward()
    inside = (x.detach() >= low) & (x.detach() <= high)
    assert x.grad is not None
    assert torch.equal(x.grad, inside.float())


def test_a_step_s_gradient_is_lsq_s() -> None:
    from repo_builder.quantize.finetune.fake import Fake

    fake = Fake(np.float32(0.5), 3, rounding.plain(bits=8, unsigned=True, narrow=False))
    x = torch.tensor([0.6, -0.9, 500.0, -100.0])
    fake(x).sum().backward()
    codes = np.array([1.0, -2.0, 252.0, -3.0])
    inside = np.array([1.0, 1.0, 0.0, 0.0])
    wanted = (codes - inside * x.numpy() / 0.5).sum() * 0.5  # by the chain rule of step = 0.5 · exp(change)
    assert fake.change.grad is not None
    assert float(fake.change.grad) == pytest.approx(wanted, rel=1e-5)


def test_only_weights_and_biases_of_layers_are_trained() -> None:
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["centred"], "centre"),
        helper.make_node("MatMul", ["centred", "w"], ["product"], "dense"),
        helper.make_node("Add", ["product", "b"], ["sum"], "bias"),
        helper.make_node("Mul", ["sum", "gain"], ["y"], "gain"),
    ]
    stored = {
        "mean": np.ones(4, np.float32), "w": np.ones((4, 2), np.float32), "b": np.zeros(2, np.float32),
        "gain": np.ones(2, np.float32),
    }  # fmt: skip
    model = _model(nodes, stored)
    graph = TrainableGraph(prepare(model))
    assert sorted(tuple(item.shape) for item in graph.weights()) == [(2,), (4, 2)]
    with torch.no_grad():
        for item in graph.weights():
            item.add_(1)
    tuned = {item.name: numpy_helper.to_array(item) for item in graph.tuned().graph.initializer}
    np.testing.assert_array_equal(tuned["w"], 2 * stored["w"])
    np.testing.assert_array_equal(tuned["gain"], stored["gain"])


def test_an_operator_that_is_not_known_is_named() -> None:
    model = _model([helper.make_node("Hardmax", ["x"], ["y"], "odd")], {})
    with pytest.raises(QuantizeError, match="does not know the operator Hardmax") as caught:
        TrainableGraph(model)
    assert caught.value.where == "odd"


def test_a_graph_without_int8_layers_is_refused(ready: Ready) -> None:
    plans = [dataclasses.replace(item, precision="fp32") for item in ready.plans]
    with pytest.raises(QuantizeError, match="no layer of it would be int8 on tensorrt"):
        fakes(ready.model, plans, ready.ranges, profile("tensorrt"), rounding.plain)


def test_an_unknown_back_end_is_named() -> None:
    with pytest.raises(RecipeError, match="'modelop' is no quantization back end") as caught:
        rounding.backend("modelop")
    assert "modelopt" in str(caught.value.hint)


def _model(nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
