"""A torch module to ONNX."""

from __future__ import annotations

import collections
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn

from repo_builder.core.errors import ExportError  # noqa: E402
from repo_builder.core.graphs import TYPE, layer_of, opset  # noqa: E402
from repo_builder.core.tensors import DType, TensorSpec  # noqa: E402
from repo_builder.export import qdq, torch_onnx  # noqa: E402


def to_onnx(
    module: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], folder: Path, samples: dict[str, Any]
) -> onnx.ModelProto:
    return torch_onnx.export(
        module, inputs=inputs, outputs=outputs, opset=17, path=folder / "model.onnx", samples=samples
    ).model


def spec(name: str, *shape: int, dtype: DType = DType.FP32) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


class Nested(nn.Module):
    """Layers in every kind of container, one that runs twice, one whose input is a matrix for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
        self.items = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])
        self.named = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4, bias=False)})
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        for item in self.items:
            x = item(x) + x
        x = self.pool(x).permute(0, 2, 3, 1)
        return self.named["b"](self.named["a"](torch.relu(self.named["a"](x)))).mean((1, 2))


def test_the_node_of_a_layer_bears_its_qualified_name_and_type(export, run) -> None:
    torch.manual_seed(0)
    module = Nested().eval()
    samples = np.random.default_rng(0).standard_normal((9, 3, 8, 8)).astype(np.float32)
    model = export(module, (3, 8, 8))
    types = {"Conv": "Conv2d", "MatMul": "Linear", "MaxPool": "MaxPool2d"}
    nodes = [node for node in model.graph.node if node.op_type in types]
    assert [node.name for node in nodes] == [
        *("stem.0", "stem.1.0", "items.0", "items.1", "pool", "named.a", "named.a#2", "named.b"),
    ]
    for node in nodes:
        assert [(item.key, item.value) for item in node.metadata_props] == [(TYPE, types[node.op_type])]
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
    second = next(node for node in model.graph.node if node.name == "named.a#2")
    assert layer_of(second) == "named.a"
    assert layer_of(next(node for node in model.graph.node if node.op_type == "Relu")) is None
    with torch.no_grad():
        expected = module(torch.from_numpy(samples)).numpy()
    np.testing.assert_allclose(run(model, x=samples)["y"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("version", [13, 15, 17, 20, 21])
def test_the_opset_is_the_one_asked_for(export, run, version: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    model = export(module, (3, 8, 8), opset=version)
    assert opset(model) == version
    assert [item.domain for item in model.opset_import] == [""]
    samples = np.random.default_rng(0).standard_normal((9, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(samples)).numpy()
    np.testing.assert_allclose(run(model, x=samples)["y"], expected, rtol=1e-4, atol=1e-5)


def randomize(module: Any) -> Any:
    """Give every BatchNorm statistics and gains of its own."""
    torch.manual_seed(1)
    with torch.no_grad():
        for item in module.modules():
            if isinstance(item, nn.modules.batchnorm._BatchNorm):
                for values in (item.running_mean, item.weight, item.bias):
                    values.normal_()
                item.running_var.uniform_(0.2, 1.2)
    return module.eval()


class Untraceable(nn.Module):
    """torch.fx refuses the loop; data flow in the graph does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Any) -> Any:
        y = self.norm(self.conv(x))
        for _ in range(int(x.shape[1]) - 2):
            y = torch.relu(y)
        return self.last(y)


def folded_modules() -> dict[str, tuple[Any, tuple[int, ...]]]:
    norms = nn.utils.parametrizations
    return {
        "convolution": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (3, 6, 6)),
        "linear": (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (6,)),
        "untraceable": (Untraceable(), (3, 6, 6)),
        "weight_norm": (nn.Sequential(norms.weight_norm(nn.Linear(6, 4)), nn.ReLU()), (6,)),
        "spectral_norm": (nn.Sequential(norms.spectral_norm(nn.Conv2d(3, 4, 3))), (3, 6, 6)),
        "orthogonal": (nn.Sequential(norms.orthogonal(nn.Linear(6, 4))), (6,)),
        "weight_norm with BatchNorm": (
            nn.Sequential(norms.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
            (3, 6, 6),
        ),
    }


@pytest.mark.parametrize("name", folded_modules())
def test_what_is_constant_in_inference_is_one_layer_with_plain_weights(export, run, name: str) -> None:
    torch.manual_seed(0)
    module, shape = folded_modules()[name]
    module = randomize(module)
    samples = np.random.default_rng(0).standard_normal((5, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(samples)).numpy()
    model = export(module, shape)
    assert {node.op_type for node in model.graph.node} <= {"Conv", "Gemm", "Relu"}
    np.testing.assert_allclose(run(model, x=samples)["y"], expected, rtol=1e-4, atol=1e-5)


def test_the_older_weight_norm_is_folded_too(export, run) -> None:
    with pytest.warns(FutureWarning):
        module = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 4))).eval()
    model = export(module, (6,))
    assert [node.op_type for node in model.graph.node] == ["Gemm"]
    x = np.ones((3, 6), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(run(model, x=x)["y"], module(torch.from_numpy(x)).numpy(), rtol=1e-5)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("kind", ["encoder", "attention"])
def test_attention_is_exported_without_its_fused_path(export, run, kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    module = (Attention() if kind == "attention" else nn.TransformerEncoder(layer, 1)).eval()
    samples = np.random.default_rng(0).standard_normal((3, 5, 16)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(samples)).numpy()
    before = torch.backends.mha.get_fastpath_enabled()
    np.testing.assert_allclose(run(export(module, (5, 16)), x=samples)["y"], expected, rtol=1e-4, atol=1e-5)
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_an_embedding_bag_s_loop_keeps_its_tensors(run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.EmbeddingBag(20, 8), nn.Linear(8, 4)).eval()
    ids = np.random.default_rng(0).integers(0, 20, (3, 5))
    model = to_onnx(module, (spec("ids", 5, dtype=DType.INT64),), (spec("y", 4),), tmp_path, {"ids": ids})
    with torch.no_grad():
        expected = module(torch.from_numpy(ids)).numpy()
    np.testing.assert_allclose(run(model, ids=ids)["y"], expected, rtol=1e-5, atol=1e-6)


class Returns(nn.Module):
    def __init__(self, how: Any) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(6, 4), how

    def forward(self, x: Any) -> Any:
        return self.how(self.linear(x))


@dataclasses.dataclass
class Answer:
    sign: Any
    y: Any
    loss: Any = None


@pytest.mark.parametrize(
    "how",
    [
        lambda y: (y, y > 0),
        lambda y: [y, y > 0],
        lambda y: {"sign": y > 0, "y": y, "more": y},
        lambda y: collections.OrderedDict(y=y, sign=y > 0),
        lambda y: Answer(sign=y > 0, y=y),
        lambda y: (y, (None, y > 0)),
    ],
)
def test_outputs_come_in_every_kind_of_container(run, tmp_path: Path, how: Any) -> None:
    module = Returns(how).eval()
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    outputs = (spec("y", 4), spec("sign", 4, dtype=DType.BOOL))
    found = run(to_onnx(module, (spec("x", 6),), outputs, tmp_path, {"x": x}), x=x)
    with torch.no_grad():
        expected = module.linear(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found["y"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["sign"], found["y"] > 0)


def test_a_dimension_that_varies_is_traced_at_the_data_s_size(run, tmp_path: Path) -> None:
    layers = [item for _ in range(4) for item in (nn.Conv2d(3, 3, 3, padding=1), nn.MaxPool2d(2))]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = np.ones((1, 3, 32, 32), np.float32)  # at 8 four poolings would leave nothing
    model = to_onnx(module, (spec("x", 3, -1, -1),), (spec("y", 3),), tmp_path, {"x": x})
    for size in (32, 48):
        assert run(model, x=np.ones((5, 3, size, size), np.float32))["y"].shape == (5, 3)


def test_sizes_that_the_recipe_fixes_are_fixed_in_the_graph(tmp_path: Path) -> None:
    class Net(nn.Module):
        def forward(self, x: Any) -> Any:
            y = x.reshape(x.size(0), -1)
            return torch.cat([y, torch.zeros(y.size(0), 1)], 1).view(y.size(0), 2, -1)

    model = to_onnx(Net(), (spec("x", 3, 3),), (spec("y", 2, 5),), tmp_path, {"x": np.ones((1, 3, 3), np.float32)})
    assert [item.dim_value for item in model.graph.output[0].type.tensor_type.shape.dim[1:]] == [2, 5]


def test_a_branch_on_the_data_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Branch(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2 if x.sum() > 0 else x

    to_onnx(Branch(), (spec("x", 3),), (spec("y", 3),), tmp_path, {"x": np.ones((1, 3), np.float32)})
    said = " ".join(capsys.readouterr().err.split())
    assert "frozen in the graph: test_torch_onnx.py:" in said
    assert "Python boolean" in said


def test_names_batch_and_varying_dimensions(run, tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, image: Any, scale: Any) -> Any:
            return {"big": image * scale[:, :, None], "total": image.sum((1, 2))}

    samples = {"image": np.ones((2, 3, 4), np.float32), "scale": np.ones((2, 3), np.float32)}
    inputs = (spec("image", 3, -1), spec("scale", 3))
    model = to_onnx(Two(), inputs, (spec("large", 3, -1), spec("total")), tmp_path, samples)
    assert [item.name for item in model.graph.input] == ["image", "scale"]
    assert [item.name for item in model.graph.output] == ["large", "total"]
    assert [item.dim_param or item.dim_value for item in model.graph.input[0].type.tensor_type.shape.dim] == [
        *("batch", 3, "image_2"),
    ]
    for batch, length in ((1, 1), (5, 11)):
        image = np.random.default_rng(0).standard_normal((batch, 3, length)).astype(np.float32)
        scale = np.full((batch, 3), 2, np.float32)
        found = run(model, image=image, scale=scale)
        np.testing.assert_array_equal(found["large"], image * 2)
        np.testing.assert_allclose(found["total"], image.sum((1, 2)), rtol=1e-4, atol=1e-5)


def test_an_output_that_is_a_layer_s_own_and_one_that_is_an_input(run, tmp_path: Path) -> None:
    class Pass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.same = nn.Identity()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Any) -> Any:
            y = self.linear(x)
            return self.same(x), y, y

    outputs = (spec("same", 3), spec("one", 2), spec("other", 2))
    x = np.ones((4, 3), np.float32)
    model = to_onnx(Pass().eval(), (spec("x", 3),), outputs, tmp_path, {"x": x})
    found = run(model, x=x)
    np.testing.assert_array_equal(found["same"], x)
    np.testing.assert_array_equal(found["one"], found["other"])
    assert "linear" in qdq.layer_precisions(model)


def test_integer_inputs_keep_their_type(run, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    ids = np.arange(6).reshape(2, 3)
    model = to_onnx(module, (spec("ids", 3, dtype=DType.INT64),), (spec("y", 2),), tmp_path, {"ids": ids})
    with torch.no_grad():
        np.testing.assert_allclose(run(model, ids=ids)["y"], module(torch.from_numpy(ids)).numpy(), rtol=1e-5)


def axis(name: str, axis: int, *shape: int) -> TensorSpec:
    return TensorSpec(name=name, dtype=DType.FP32, shape=shape, batch_axis=axis)


def test_samples_on_another_axis_stay_dynamic_there(tmp_path: Path, run) -> None:
    class Cell(nn.Module):
        def forward(self, x: Any, state: Any) -> Any:
            after = torch.tanh(x + state)  # (n, 4) and (2, n, 4)
            return after.mean(0), after

    draw = np.random.default_rng(0).standard_normal
    samples = {"x": draw((5, 4)).astype(np.float32), "state": draw((5, 2, 4)).astype(np.float32)}
    ins, outs = (axis("x", 0, 4), axis("state", 1, 2, 4)), (axis("y", 0, 4), axis("after", 1, 2, 4))
    model = to_onnx(Cell(), ins, outs, tmp_path, samples)
    found = run(model, x=samples["x"], state=np.ascontiguousarray(samples["state"].transpose(1, 0, 2)))
    np.testing.assert_allclose(
        found["after"], np.tanh(samples["x"] + samples["state"].transpose(1, 0, 2)), rtol=1e-4, atol=1e-6
    )
    with pytest.raises(ExportError, match=r"fp32\[2, 4\], batch on axis 2 left out"):
        to_onnx(Cell(), ins, (outs[0], axis("after", 2, 2, 4)), tmp_path, samples)


def test_a_sample_that_is_the_whole_tensor_leaves_nothing_dynamic(tmp_path: Path, run) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 2)).astype(np.float32)
    model = to_onnx(nn.Softmax(dim=0), (axis("x", -1, 4, 2),), (axis("y", -1, 4, 2),), tmp_path, {"x": x})
    assert [item.dim_value for item in model.graph.input[0].type.tensor_type.shape.dim] == [4, 2]
    np.testing.assert_allclose(run(model, x=x[1])["y"], torch.softmax(torch.from_numpy(x[1]), 0), rtol=1e-5)
    mixed = to_onnx(nn.Softmax(dim=0), (axis("x", 0, 4, 2),), (axis("y", -1, 1, 4, 2),), tmp_path, {"x": x})
    assert mixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


# --- the same bytes -------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, pathlib, numpy, torch
from repo_builder.export import torch_onnx
from repo_builder.core.tensors import DType, TensorSpec
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
                             torch.nn.Flatten(), torch.nn.Linear(144, 5)).eval()
samples = numpy.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(numpy.float32)
inputs = (TensorSpec(name="x", dtype=DType.FP32, shape=(3, 8, 8)),)
outputs = (TensorSpec(name="y", dtype=DType.FP32, shape=(5,)),)
path = pathlib.Path(sys.argv[1])
model = torch_onnx.export(module, inputs=inputs, outputs=outputs, opset=17, path=path, samples={"x": samples}).model
path.write_bytes(model.SerializeToString(deterministic=True))
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_and_nothing_of_the_machine(tmp_path: Path) -> None:
    written = []
    for place, seed in (("one", "1"), ("other", "2")):
        path = tmp_path / place / "model.onnx"
        path.parent.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(path)],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert str(Path(torch.__file__).parent).encode() not in written[0]
    assert str(Path(torch_onnx.__file__).parent).encode() not in written[0]


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ((spec("x", 4),), (spec("y", 2),), "does not run on inputs of shape [2, 4]"),
        (
            (spec("x", 3),),
            (spec("y", 5),),
            "float32 of shape [2, 2] for 2 samples, the recipe says y fp32[5], batch left out",
        ),
        ((spec("x", 3),), (spec("y", 2, dtype=DType.FP16),), "float32 of shape [2, 2]"),
        ((spec("x", 3),), (spec("y", 2), spec("z", 2)), "gives 1 outputs, the recipe names 2"),
    ],
)
def test_a_network_that_is_not_what_the_recipe_says(tmp_path: Path, inputs: Any, outputs: Any, message: str) -> None:
    samples = {item.name: np.zeros((2, *item.shape), np.float32) for item in inputs}
    with pytest.raises(ExportError) as raised:
        to_onnx(nn.Linear(3, 2).eval(), inputs, outputs, tmp_path, samples)
    assert message in str(raised.value)
    assert (raised.value.where or "").startswith("model.")


def test_what_onnx_cannot_say_is_one_sentence(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.eigvals(x).real

    with pytest.raises(ExportError, match=r"torch cannot export the network to ONNX opset 17: .*eigvals") as raised:
        to_onnx(Odd(), (spec("x", 3, 3),), (spec("y", 3),), tmp_path, {"x": np.ones((2, 3, 3), np.float32)})
    assert "\n" not in str(raised.value)


def test_a_batch_that_vanishes_is_refused(tmp_path: Path) -> None:
    class Total(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.sum(0, keepdim=True)

    with pytest.raises(ExportError, match="the recipe says"):
        to_onnx(Total(), (spec("x", 3),), (spec("y", 3),), tmp_path, {"x": np.ones((2, 3), np.float32)})


def test_exporting_leaves_no_hooks(export) -> None:
    module = nn.Sequential(nn.Linear(3, 2)).eval()
    export(module, (3,))
    assert not any(item._forward_hooks or item._forward_pre_hooks for item in module.modules())


def test_what_the_exporter_prints_of_a_graph_reaches_no_one(capfd: pytest.CaptureFixture[str]) -> None:
    class Pairs(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.logcumsumexp(x, 1)

    spec = TensorSpec(name="x", dtype=DType.FP32, shape=(4,))
    with pytest.raises(ExportError, match="logcumsumexp"):
        torch_onnx.export(
            Pairs(), inputs=(spec,), outputs=(spec,), opset=17, path=Path("m.onnx"), samples={"x": np.ones((3, 4), "f")}
        )
    assert capfd.readouterr().out == ""
