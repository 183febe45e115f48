"""A model that arrives as ONNX is quantized as its torch original would be."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
torch = pytest.importorskip("torch", reason="torch is not installed")

from repo_builder.core.errors import QuantizeError, RecipeError  # noqa: E402
from repo_builder.core.recipe import InputQuantizer, LayerRule, QuantizeSpec, WeightQuantizer  # noqa: E402
from repo_builder.export import qdq  # noqa: E402
from repo_builder.export.precision import to_fp16_regions  # noqa: E402
from repo_builder.quantize.onnx_graph import find_layers, quantize_onnx  # noqa: E402
from repo_builder.quantize.onnx_prepare import prepare  # noqa: E402

CALIBRATORS = [("max", None), ("percentile", 99.0), ("mse", None), ("entropy", None)]
INT8 = LayerRule(precision="int8")


def spec(*rules: LayerRule) -> QuantizeSpec:
    return QuantizeSpec(batch_size=16, layers=rules or (INT8,))


def exported(module: Any, samples: np.ndarray, version: int = 17) -> onnx.ModelProto:
    """Export as anyone would, with the exporter's own names and BatchNorm where it is."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.from_numpy(samples[:2]),),
            stream,
            dynamo=False,
            opset_version=version,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    return onnx.load_from_string(stream.getvalue())


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def graph_of(nodes: list, stored: dict[str, np.ndarray], shape: list, version: int = 17) -> onnx.ModelProto:
    """A model from ``x`` of a shape to ``y``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)


@pytest.fixture
def matrix() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(2).standard_normal((32, 6)).astype(np.float32)


# --- the same as the torch way --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("calibrator", "percentile"), CALIBRATORS)
def test_ranges_and_signal_to_noise_are_those_of_the_torch_way(
    small, images, quantize, calibrator: str, percentile: float | None
) -> None:
    rules = (
        LayerRule(
            precision="int8",
            input=InputQuantizer(calibrator=calibrator, percentile=percentile),
            weight=WeightQuantizer(calibrator=calibrator, percentile=percentile),
        ),
        LayerRule(type="Add", precision="int8"),
        LayerRule(type="MaxPool2d", precision="int8"),
    )
    expected = quantize(small, images, *rules)
    made = quantize_onnx(exported(small, images), spec(*rules), {"x": images})
    assert [row.type for row in made.layers] == [row.type for row in expected.layers]
    for row, other in zip(made.layers, expected.layers, strict=True):
        assert row.calibrator == other.calibrator
        assert row.input_amax == pytest.approx(other.input_amax, rel=1e-5)
        assert row.weight_amax == pytest.approx(other.weight_amax or 0, rel=1e-5) or row.weight_amax is None
        assert row.sqnr_db == pytest.approx(other.sqnr_db, abs=0.1)
    assert qdq.lint(made.model, newest_opset=17) == ()
    assert {name for name, kind in qdq.layer_precisions(made.model).items() if kind == "int8"} == {
        row.name for row in made.layers
    }
    with torch.no_grad():
        torch_outputs = expected.module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(run(made.model, images), torch_outputs, atol=0.03 * np.abs(torch_outputs).max())


def test_two_runs_give_the_same_bytes_and_the_model_is_not_changed(small, images) -> None:
    model = exported(small, images)
    before = model.SerializeToString(deterministic=True)
    one, other = (quantize_onnx(model, spec(), {"x": images}).model for _ in range(2))
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_batch_norm_is_folded_into_convolutions(randomize, rank: int, transposed: bool) -> None:
    torch.manual_seed(0)
    kind = getattr(torch.nn, f"{'ConvTranspose' if transposed else 'Conv'}{rank}d")
    norm = getattr(torch.nn, f"BatchNorm{rank}d")
    module = randomize(torch.nn.Sequential(kind(4, 6, 3, groups=2, bias=not transposed), norm(6), torch.nn.ReLU()))
    samples = np.random.default_rng(0).standard_normal((20, 4, 9, 8, 7)[: rank + 2]).astype(np.float32)
    model = exported(module, samples)
    assert "BatchNormalization" in {node.op_type for node in model.graph.node}
    prepared = prepare(model)
    assert [node.op_type for node in prepared.graph.node] == ["ConvTranspose" if transposed else "Conv", "Relu"]
    np.testing.assert_allclose(run(prepared, samples), run(model, samples), rtol=1e-4, atol=1e-4)
    made = quantize_onnx(model, spec(), {"x": samples})
    assert made.layers[0].type == f"{'ConvTranspose' if transposed else 'Conv'}{rank}d"
    pairs = [node for node in made.model.graph.node if node.name.endswith("weight/QuantizeLinear")]
    assert [helper.get_node_attr_value(node, "axis") for node in pairs] == [1 if transposed else 0]
    assert made.layers[0].sqnr_db > 25


def test_batch_norm_stays_where_something_else_reads_the_layer(randomize) -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3)

        def forward(self, x: Any) -> Any:
            y = self.conv(x)
            return self.norm(y) + y

    samples = np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype(np.float32)
    model = exported(randomize(Two()), samples)
    assert "BatchNormalization" in {node.op_type for node in prepare(model).graph.node}


# --- linear layers in every form ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", ["MatMul", "Gemm", "Gemm transB", "MatMul of Transpose", "MatMul of Constant", "MatMul of Cast"]
)
def test_linear_layers_are_stored_outputs_first(matrix, rows, form: str) -> None:
    stored = {"w": matrix}
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    before = []
    if form.startswith("Gemm"):
        node = helper.make_node("Gemm", ["x", "w"], ["y"], name="fc", transB=int(form.endswith("transB")))
    if form in ("Gemm transB", "MatMul of Transpose"):
        stored = {"w": np.ascontiguousarray(matrix.T)}
    if form == "MatMul of Transpose":
        before = [helper.make_node("Transpose", ["w"], ["wt"], name="turn", perm=[1, 0])]
        node.input[1] = "wt"
    if form == "MatMul of Constant":
        before = [helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(matrix))]
        stored = {}
    if form == "MatMul of Cast":
        before = [helper.make_node("Cast", ["w"], ["wf"], name="cast", to=TensorProto.FLOAT)]
        stored = {"w": matrix.astype(np.float16)}
        matrix = matrix.astype(np.float16).astype(np.float32)
        node.input[1] = "wf"
    model = graph_of([*before, node], stored, ["n", 6])
    made = quantize_onnx(model, spec(), {"x": rows})
    assert [(row.name, row.type) for row in made.layers] == [("fc", "Linear")]
    assert qdq.lint(made.model, newest_opset=17) == ()
    assert qdq.layer_precisions(made.model) == {"fc": "int8"}
    scale = next(item for item in made.model.graph.initializer if item.name == "fc.weight_scale")
    np.testing.assert_array_equal(numpy_helper.to_array(scale), np.abs(matrix).max(0) / np.float32(127))
    np.testing.assert_allclose(run(made.model, rows), rows @ matrix, atol=0.2)


def test_a_matmul_of_two_activations_and_one_of_a_stack_are_no_layers(rows) -> None:
    stack = np.ones((3, 6, 4), np.float32)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="t", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["xx"], name="square"),
        helper.make_node("MatMul", ["x", "stack"], ["y"], name="stacked"),
    ]
    model = graph_of(nodes, {"stack": stack}, [8, 6])
    assert [layer[1] for layer in find_layers(prepare(model))] == ["Transpose", "MatMul", "MatMul"]
    with pytest.raises(RecipeError, match="the model has no layer that rules are for"):
        quantize_onnx(model, spec(), {"x": rows})


def test_a_weight_that_two_layers_share_is_quantized_for_each(matrix, rows) -> None:
    square = matrix @ matrix.T
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="other"),
    ]
    model = graph_of(nodes, {"w": square}, ["n", 6])
    made = quantize_onnx(model, spec(INT8, LayerRule(name="other", precision="fp32")), {"x": rows})
    assert qdq.layer_precisions(made.model) == {"one": "int8", "other": "fp32"}
    made = quantize_onnx(model, spec(), {"x": rows})
    assert qdq.layer_precisions(made.model) == {"one": "int8", "other": "int8"}
    np.testing.assert_allclose(run(made.model, rows), rows @ square @ square, rtol=0.2, atol=15)


# --- rules, names, opsets -------------------------------------------------------------------------------------------


def test_rules_say_torch_s_types_or_onnx_s(small, images) -> None:
    model = exported(small, images)
    for rule, chosen in (
        (LayerRule(type="Conv2d", precision="int8"), {"Conv2d"}),
        (LayerRule(type="Conv", precision="int8"), {"Conv2d"}),
        (LayerRule(type="Gemm", precision="int8"), {"Linear"}),
        (LayerRule(name="/head/*", precision="int8"), {"Linear"}),
        (LayerRule(type="MaxPool", precision="int8"), {"MaxPool2d"}),
    ):
        made = quantize_onnx(model, spec(rule), {"x": images})
        assert {row.type for row in made.layers if row.precision == "int8"} == chosen
    with pytest.raises(RecipeError, match=r"did you mean '/head/head\.0/Gemm'"):
        quantize_onnx(model, spec(LayerRule(name="head/head.0/Gemm", precision="int8")), {"x": images})


def test_fp16_layers_are_handed_on(small, images) -> None:
    made = quantize_onnx(
        exported(small, images),
        spec(LayerRule(type="Conv", precision="int8"), LayerRule(type="Linear", precision="fp16")),
        {"x": images},
    )
    model = to_fp16_regions(made.model, made.fp16_layers)
    assert {row.name: row.precision for row in made.layers} == qdq.layer_precisions(model)


def test_an_add_of_a_constant_is_no_residual_sum(matrix, rows) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Add", ["h", "b"], ["y"], name="bias"),
    ]
    model = graph_of(nodes, {"w": matrix, "b": np.ones(4, np.float32)}, ["n", 6])
    with pytest.raises(RecipeError, match="Add"):
        quantize_onnx(model, spec(LayerRule(type="Add", precision="int8")), {"x": rows})


def test_nodes_without_names_and_with_the_same_name_are_told_apart(matrix, rows) -> None:
    square = matrix @ matrix.T
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("MatMul", ["h", "b"], ["i"], name="same#2"),
        helper.make_node("MatMul", ["i", "a"], ["y"], name="same#2"),
    ]
    made = quantize_onnx(graph_of(nodes, {"a": square, "b": square * 2}, ["n", 6]), spec(), {"x": rows})
    names = [row.name for row in made.layers]
    assert names == ["MatMul_0", "same_2", "same_2_2"]
    assert list(qdq.layer_precisions(made.model)) == names


@pytest.mark.parametrize("version", [9, 11, 13, 18, 21])
def test_old_opsets_are_converted_and_new_ones_kept(small, images, version: int) -> None:
    model = exported(small, images, min(version, 17))
    if version > 17:
        model = onnx.version_converter.convert_version(model, version)
    made = quantize_onnx(model, spec(), {"x": images})
    assert made.model.opset_import[0].version == max(version, 13)
    assert qdq.lint(made.model) == ()
    exact = run(model, images)
    np.testing.assert_allclose(run(made.model, images), exact, atol=0.1 * np.abs(exact).max())


def test_an_opset_that_cannot_be_converted_is_one_sentence(rows) -> None:
    model = graph_of([helper.make_node("Nonsense", ["x"], ["y"], name="odd")], {}, ["n", 6], version=8)
    with pytest.raises(QuantizeError, match="the model has opset 8, and converting it to 13 fails") as raised:
        quantize_onnx(model, spec(), {"x": rows})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("fixed", [1, 5])
def test_a_batch_size_that_is_fixed_in_the_model_is_kept(matrix, rows, fixed: int) -> None:
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": matrix}, [fixed, 6])
    made = quantize_onnx(model, spec(), {"x": rows})
    whole = rows[: len(rows) // fixed * fixed]
    assert made.layers[0].input_amax == np.abs(whole).max()
    with pytest.raises(QuantizeError, match="takes batches of 64, and there are 32 calibration samples"):
        quantize_onnx(
            graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": matrix}, [64, 6]),
            spec(),
            {"x": rows},
        )


def test_initializers_that_are_listed_as_inputs_are_not_asked_for(matrix, rows) -> None:
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")], {"w": matrix}, ["n", 6])
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [6, 4]))
    model.ir_version = 3
    made = quantize_onnx(model, spec(), {"x": rows})
    assert [item.name for item in made.model.graph.input] == ["x"]
    np.testing.assert_allclose(run(made.model, rows), rows @ matrix, atol=0.2)


def test_operators_of_other_domains_are_left_alone(rows) -> None:
    nodes = [
        helper.make_node("FusedMatMul", ["x", "w"], ["h"], name="other", domain="com.microsoft"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="fc"),
    ]
    model = graph_of(nodes, {"w": np.eye(6, dtype=np.float32)}, ["n", 6])
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6]))
    made = quantize_onnx(model, spec(), {"x": rows})
    assert [row.name for row in made.layers] == ["fc"]
    np.testing.assert_allclose(run(made.model, rows), rows, atol=0.05)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_model_that_is_quantized_already(small, images) -> None:
    made = quantize_onnx(exported(small, images), spec(), {"x": images})
    with pytest.raises(QuantizeError, match="the model is quantized already"):
        quantize_onnx(made.model, spec(), {"x": images})


def test_data_that_does_not_fit(small, images) -> None:
    model = exported(small, images)
    with pytest.raises(QuantizeError, match="the calibration data has no input 'x'"):
        quantize_onnx(model, spec(), {"image": images})
    with pytest.raises(QuantizeError, match="the model does not run on the calibration data"):
        quantize_onnx(model, spec(), {"x": images[:, :2]})
    images[0, 0, 0, 0] = np.inf
    with pytest.raises(QuantizeError, match=r"/features/features\.0/Conv: the values to calibrate on hold NaN"):
        quantize_onnx(model, spec(), {"x": images})


def test_weights_that_are_not_fp32(matrix, rows) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], name="cast", to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["z"], name="fc"),
        helper.make_node("Cast", ["z"], ["y"], name="back", to=TensorProto.FLOAT),
    ]
    model = graph_of(nodes, {"w": matrix.astype(np.float16)}, ["n", 6])
    with pytest.raises(QuantizeError, match=r"fc: its weight is float16"):
        quantize_onnx(model, spec(), {"x": rows})


def test_a_model_that_onnx_runtime_refuses(rows) -> None:
    nodes = [helper.make_node("Nonsense", ["x"], ["h"], name="odd", domain="nowhere")]
    nodes.append(helper.make_node("MatMul", ["h", "w"], ["y"], name="fc"))
    model = graph_of(nodes, {"w": np.eye(6, dtype=np.float32)}, ["n", 6])
    model.opset_import.append(helper.make_opsetid("nowhere", 1))
    with pytest.raises(QuantizeError, match="ONNX Runtime refuses the model"):
        quantize_onnx(model, spec(), {"x": rows})
