"""torch.export: what it writes computes what the module does at every size, and has the layers of a recorded run."""

from __future__ import annotations

import dataclasses
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
nn = torch.nn

from repo_builder.core.errors import ExportError  # noqa: E402
from repo_builder.core.graphs import opset  # noqa: E402
from repo_builder.core.tensors import DType, TensorSpec  # noqa: E402
from repo_builder.export import capturing, choosing, torch_onnx  # noqa: E402
from repo_builder.export.torch_onnx import TorchGraph  # noqa: E402
from repo_builder.quantize.prepare import prepare  # noqa: E402


@dataclasses.dataclass
class Answer:
    sign: Any
    y: Any


class Shared(nn.Module):
    """Tied weights, equal biases, one module that runs twice, outputs in a dataclass, one tensor given twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.words.weight
        for item in (self.one, self.two):
            nn.init.zeros_(item.bias)

    def forward(self, ids: Any) -> Any:
        x = self.words(ids)
        x = self.two(torch.relu(self.one(torch.relu(self.one(x)))))
        y = self.head(x)
        return Answer(sign=y > 0, y=y)


class Sizes(nn.Module):
    """Sizes that Python computes, a pad and a split by them, and a table of places that is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.places = nn.Linear(6, 6), nn.Parameter(torch.randn(40, 6))

    def forward(self, x: Any) -> Any:
        x = self.inner(x + self.places[: x.shape[1]])
        left, right = x.split([2, 4], -1)
        x = nn.functional.pad(torch.cat([right, left], -1), (0, 2, 1, 0))
        return x.reshape(x.shape[0], x.shape[1] * 4, -1).amax(-1) * x.shape[1], x.std((1, 2)), x.mean(1)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Any, memory: Any) -> Any:
        y = self.body(x)
        return {"y": self.cross(y, memory, memory, need_weights=False)[0]}


def image() -> Any:
    """Pools of every kind, normalizations, upsampling, a grouped and a transposed convolution, folded weights."""
    norm = nn.utils.parametrizations
    return nn.Sequential(
        norm.weight_norm(nn.Conv2d(3, 8, 3, padding=1)),
        nn.GroupNorm(2, 8),
        nn.Hardswish(),
        norm.spectral_norm(nn.Conv2d(8, 8, 3, 2, 1, groups=4)),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.ConvTranspose2d(8, 4, 2, 2),
        nn.InstanceNorm2d(4, affine=True),
        nn.AvgPool2d(3, 1, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Unflatten(1, (4, 1)),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def spec(name: str, *shape: int, dtype: DType = DType.FP32, axis: int = 0) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, batch_axis=axis)


INT64 = DType.INT64
# module, inputs, outputs, sizes of what varies: as traced, and others
KINDS: dict[str, tuple[Any, tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[int, ...]]] = {
    "shared": (
        Shared,
        (spec("ids", -1, dtype=INT64),),
        (spec("y", -1, 20), spec("sign", -1, 20, dtype=DType.BOOL)),
        (5, 3, 9),
    ),
    "sizes": (Sizes, (spec("x", -1, 6),), (spec("y", -1), spec("s"), spec("m", 8)), (5, 3, 39)),
    "encoder": (Encoder, (spec("x", -1, 8), spec("memory", -1, 8)), (spec("y", -1, 8),), (5, 1, 12)),
    "image": (image, (spec("x", 3, -1, -1),), (spec("y", 3),), (8, 11, 16)),
}


def fed(inputs: tuple[TensorSpec, ...], batch: int, size: int) -> dict[str, Any]:
    draw = np.random.default_rng(size)
    shapes = {item.name: (batch, *(size if part == -1 else part for part in item.shape)) for item in inputs}
    return {
        item.name: draw.integers(0, 20, shapes[item.name])
        if item.dtype is INT64
        else draw.standard_normal(shapes[item.name]).astype(np.float32)
        for item in inputs
    }


@functools.cache
def exported(name: str, exporter: str, opset: int = 17) -> tuple[Any, TorchGraph]:
    """Export once what several tests look at; none of them changes it."""
    return export(name, exporter, opset=opset)


def export(name: str, exporter: str, **more: Any) -> tuple[Any, TorchGraph]:
    make, inputs, outputs, sizes = KINDS[name]
    torch.manual_seed(0)
    module = make().eval()
    graph = torch_onnx.export(
        module,
        inputs=inputs,
        outputs=outputs,
        path=Path("model.onnx"),
        samples=fed(inputs, 2, sizes[0]),
        exporter=exporter,
        **{"opset": 17, **more},
    )
    return module, graph


@pytest.mark.parametrize("name", KINDS)
def test_every_size_gives_what_torch_gives_and_layers_are_those_of_a_trace(run, name: str) -> None:
    _, inputs, outputs, sizes = KINDS[name]
    module, graph = exported(name, "torch.export")
    model = prepare(graph.model)
    assert opset(model) == 17
    assert [item.domain for item in model.opset_import] == [""]
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)
    for batch, size in ((2, sizes[0]), *((1, item) for item in sizes[1:]), (3, sizes[-1])):
        feeds = fed(inputs, batch, size)
        found = run(model, **feeds)
        with torch.no_grad():
            result = module(*(torch.from_numpy(item) for item in feeds.values()))
        expected = torch_onnx.outputs_of(result, [item.name for item in outputs])
        for item, value in zip(outputs, expected, strict=True):
            np.testing.assert_allclose(found[item.name], value.numpy(), rtol=1e-3, atol=1e-4)
    _, traced = exported(name, "torchscript")
    assert choosing.layers(graph.model) == choosing.layers(traced.model)


def test_parameters_stay_those_of_their_own_layer() -> None:
    _, graph = exported("shared", "torch.export")
    biases = {item.name for item in graph.model.graph.initializer if item.name.endswith("bias")}
    assert biases == {"one.bias", "two.bias"}


def test_attention_is_the_short_form_and_computes_no_sizes() -> None:
    _, graph = exported("encoder", "torch.export")
    operators = [node.op_type for node in graph.model.graph.node]
    assert not {"Shape", "Concat"} & set(operators)
    assert operators.count("Softmax") == 2
    assert choosing.nodes(graph.model) < 50


def test_an_average_over_the_whole_image_is_one_operator() -> None:
    _, graph = exported("image", "torch.export", opset=20)
    assert opset(graph.model) == 20
    operators = [node.op_type for node in graph.model.graph.node]
    assert operators.count("GlobalAveragePool") == 2
    assert "ReduceMean" not in operators


def test_nothing_of_the_machine_stands_in_it_and_no_one_is_told_of_libraries(capfd: Any) -> None:
    levels = [logging.getLogger(name).level for name in ("torch", "onnxscript")]
    _, graph = export("sizes", "torch.export", opset=23)
    assert opset(graph.model) == 23
    text = graph.model.SerializeToString(deterministic=True)
    for word in (str(Path(torch.__file__).parent), __file__, "stack_trace", "pkg."):
        assert word.encode() not in text
    assert [logging.getLogger(name).level for name in ("torch", "onnxscript")] == levels
    said = capfd.readouterr()
    assert said.out == said.err == ""


def test_a_dimension_that_the_network_fixes_is_named() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Any) -> Any:
            return x + torch.ones(5)

    with pytest.raises(ExportError, match="dimension 1 of 'x' is always 5 in the network, and varies in the recipe"):
        torch_onnx.export(
            Fixed(), inputs=(spec("x", -1),), outputs=(spec("y", -1),), opset=17, path=Path("m.onnx"),
            samples={"x": np.ones((2, 5), np.float32)}, exporter="torch.export",
        )  # fmt: skip


def test_a_size_beyond_what_the_network_takes_is_said(capsys: Any) -> None:
    export("sizes", "torch.export", sizes={"x": [(5, 6), (64, 6)]})
    said = " ".join(capsys.readouterr().err.split())
    assert "takes at most 40 in dimension 1 of 'x', and a profile of the recipe goes to 64" in said


def test_without_onnxscript_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert "pip install onnxscript" in capturing.obstacle()
