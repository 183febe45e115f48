"""A torch module to ONNX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn

from repo_builder.core.errors import ExportError, OutputError  # noqa: E402
from repo_builder.core.graphs import layer_of, opset  # noqa: E402
from repo_builder.core.recipe import LayerRule  # noqa: E402
from repo_builder.core.tensors import DType, TensorSpec  # noqa: E402
from repo_builder.export import qdq, torch_onnx  # noqa: E402


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


@pytest.mark.parametrize("int8", [False, True])
def test_the_node_of_a_layer_bears_its_qualified_name(export, quantize, run, int8: bool) -> None:
    torch.manual_seed(0)
    module = Nested().eval()
    samples = np.random.default_rng(0).standard_normal((9, 3, 8, 8)).astype(np.float32)
    if int8:
        module = quantize(module, samples).module
    model = export(module, (3, 8, 8))
    layers = [node.name for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm", "MaxPool")]
    assert layers == [
        *("stem.0", "stem.1.0", "items.0", "items.1", "pool", "named.a", "named.a#2", "named.b"),
    ]
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert all(names)
    second = next(node for node in model.graph.node if node.name == "named.a#2")
    assert layer_of(second) == qdq.layer_of(second) == "named.a"
    assert layer_of(next(node for node in model.graph.node if node.op_type == "Relu")) is None
    assert set(qdq.layer_precisions(model).items()) == {
        (name.partition("#")[0], "int8" if int8 else "fp32") for name in layers if name != "pool"
    }
    if int8:
        assert {"stem.0.input/QuantizeLinear", "named.a.weight/DequantizeLinear#2"} <= set(names)
        assert {"stem.0.weight", "stem.0.weight_scale", "stem.0.input_zero_point"} <= {
            item.name for item in model.graph.initializer
        }
        assert qdq.lint(model) == ()
    with torch.no_grad():
        expected = module(torch.from_numpy(samples)).numpy()
    np.testing.assert_allclose(run(model, x=samples)["y"], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("version", [13, 15, 17, 20, 21])
def test_the_opset_is_the_one_asked_for(export, quantize, vgg, run, version: int) -> None:
    module, calibration, samples = vgg
    made = quantize(module, calibration)
    model = export(made.module, (3, 16, 16), opset=version)
    assert opset(model) == version
    assert [item.domain for item in model.opset_import] == [""]
    with torch.no_grad():
        expected = made.module(torch.from_numpy(samples[:50])).numpy()
    assert (run(model, x=samples[:50])["y"].argmax(1) == expected.argmax(1)).all()


def test_names_batch_and_varying_dimensions(run, tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, image: Any, scale: Any) -> Any:
            return {"big": image * scale[:, :, None], "total": image.sum((1, 2))}

    path = tmp_path / "deep" / "model.onnx"
    torch_onnx.export(
        Two(),
        inputs=(spec("image", 3, -1), spec("scale", 3)),
        outputs=(spec("large", 3, -1), spec("total")),
        opset=17,
        path=path,
    )
    model = onnx.load(path)
    assert [item.name for item in model.graph.input] == ["image", "scale"]
    assert [item.name for item in model.graph.output] == ["large", "total"]
    assert [item.dim_param or item.dim_value for item in model.graph.input[0].type.tensor_type.shape.dim] == [
        *("batch", 3, "image_2"),
    ]
    for batch, length in ((1, 1), (5, 11)):
        image = np.random.default_rng(0).standard_normal((batch, 3, length)).astype(np.float32)
        scale = np.full((batch, 3), 2, np.float32)
        found = run(path, image=image, scale=scale)
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

    path = tmp_path / "model.onnx"
    outputs = (spec("same", 3), spec("one", 2), spec("other", 2))
    torch_onnx.export(Pass().eval(), inputs=(spec("x", 3),), outputs=outputs, opset=17, path=path)
    x = np.ones((4, 3), np.float32)
    found = run(path, x=x)
    np.testing.assert_array_equal(found["same"], x)
    np.testing.assert_array_equal(found["one"], found["other"])
    assert "linear" in qdq.layer_precisions(onnx.load(path))


def test_integer_inputs_keep_their_type(run, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 2)).eval()
    path = tmp_path / "model.onnx"
    torch_onnx.export(module, inputs=(spec("ids", 3, dtype=DType.INT64),), outputs=(spec("y", 2),), opset=17, path=path)
    ids = np.arange(6).reshape(2, 3)
    with torch.no_grad():
        np.testing.assert_allclose(run(path, ids=ids)["y"], module(torch.from_numpy(ids)).numpy(), rtol=1e-5)


# --- the same bytes -------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, pathlib, numpy, torch
from repo_builder import quantize
from repo_builder.export import torch_onnx
from repo_builder.core.recipe import LayerRule, QuantizeSpec
from repo_builder.core.tensors import DType, TensorSpec
torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
                             torch.nn.Flatten(), torch.nn.Linear(144, 5)).eval()
samples = numpy.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(numpy.float32)
spec = QuantizeSpec(backend=sys.argv[1], layers=(LayerRule(precision="int8"),))
made = quantize.quantize(module, spec, {"x": samples}, input_names=("x",), seed=0)
inputs = (TensorSpec(name="x", dtype=DType.FP32, shape=(3, 8, 8)),)
outputs = (TensorSpec(name="y", dtype=DType.FP32, shape=(5,)),)
torch_onnx.export(made.module, inputs=inputs, outputs=outputs, opset=17, path=pathlib.Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_and_nothing_of_the_machine(tmp_path: Path) -> None:
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    written = []
    for place, seed in (("one", "1"), ("other", "2")):
        path = tmp_path / place / "model.onnx"
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, "modelopt", str(path)],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == ""
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert str(Path(torch.__file__).parent).encode() not in written[0]
    assert str(Path(torch_onnx.__file__).parent).encode() not in written[0]


@pytest.mark.parametrize("backend", ["modelopt", "pytorch-quantization"])
def test_quantizing_and_exporting_again_writes_the_same_bytes(export, quantize, vgg, backend: str) -> None:
    module, calibration, _ = vgg
    one, other = (export(quantize(module, calibration, backend=backend).module, (3, 16, 16)) for _ in range(2))
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ((spec("x", 4),), (spec("y", 2),), "does not run on inputs of shape [2, 4]"),
        ((spec("x", 3),), (spec("y", 5),), "float32 of shape [2] (batch left out), the recipe says y fp32[5]"),
        ((spec("x", 3),), (spec("y", 2, dtype=DType.FP16),), "float32 of shape [2]"),
        ((spec("x", 3),), (spec("y", 2), spec("z", 2)), "gives 1 outputs, the recipe names 2"),
    ],
)
def test_a_network_that_is_not_what_the_recipe_says(tmp_path: Path, inputs: Any, outputs: Any, message: str) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError) as raised:
        torch_onnx.export(nn.Linear(3, 2).eval(), inputs=inputs, outputs=outputs, opset=17, path=path)
    assert message in str(raised.value)
    assert (raised.value.where or "").startswith("model.")
    assert not path.exists()


def test_what_onnx_cannot_say_is_one_sentence(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.eigvals(x).real

    with pytest.raises(ExportError, match=r"torch cannot export the network to ONNX opset 17: .*eigvals") as raised:
        torch_onnx.export(
            Odd(), inputs=(spec("x", 3, 3),), outputs=(spec("y", 3),), opset=17, path=tmp_path / "model.onnx"
        )
    assert "\n" not in str(raised.value)


def test_a_batch_that_vanishes_is_refused(tmp_path: Path) -> None:
    class Total(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.sum(0, keepdim=True)

    with pytest.raises(ExportError, match="the recipe says"):
        torch_onnx.export(Total(), inputs=(spec("x", 3),), outputs=(spec("y", 3),), opset=17, path=tmp_path / "m.onnx")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        torch_onnx.export(
            nn.Linear(3, 2).eval(),
            inputs=(spec("x", 3),),
            outputs=(spec("y", 2),),
            opset=17,
            path=tmp_path / "file" / "model.onnx",
        )


def test_exporting_leaves_no_hooks(export) -> None:
    module = nn.Sequential(nn.Linear(3, 2)).eval()
    export(module, (3,))
    assert not any(item._forward_hooks or item._forward_pre_hooks for item in module.modules())


def test_rules_reach_the_graph(export, quantize, jets) -> None:
    module, calibration, _ = jets
    made = quantize(module, calibration, LayerRule(precision="int8"), LayerRule(name="layers.2", precision="fp32"))
    assert qdq.layer_precisions(export(made.module, (16,))) == {
        "layers.2": "fp32",
        "layers.5": "int8",
        "layers.8": "int8",
        "layers.11": "int8",
    }
