"""fp16 regions: what becomes half precision, where Casts stand, and that it still computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn

from repo_builder.core.errors import ExportError  # noqa: E402
from repo_builder.core.graphs import Graph  # noqa: E402
from repo_builder.core.recipe import LayerRule, QuantizeSpec  # noqa: E402
from repo_builder.export import qdq  # noqa: E402
from repo_builder.export.precision import NORMALIZING, to_fp16_regions  # noqa: E402
from repo_builder.quantize import plan  # noqa: E402
from repo_builder.quantize.calibrate import calibrate  # noqa: E402
from repo_builder.quantize.layers import find_layers  # noqa: E402
from repo_builder.quantize.placement import place, profile  # noqa: E402

VGG_LAYERS = [f"feature_layers.{n}" for n in (0, 3, 7, 10)] + ["classifier.0", "classifier.2", "last_layer"]


def types(model: onnx.ModelProto) -> dict[str, int]:
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    return {item.name: item.type.tensor_type.elem_type for item in values} | {
        item.name: item.data_type for item in model.graph.initializer
    }


def holds_everywhere(model: onnx.ModelProto) -> None:
    """What must be true of every graph with fp16 regions."""
    onnx.checker.check_model(model, full_check=True)
    assert qdq.lint(model, newest_opset=17) == ()
    kinds, graph = types(model), Graph(model)
    assert all(kinds[item.name] == TensorProto.FLOAT for item in (*model.graph.input, *model.graph.output))
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert kinds[node.input[1]] == TensorProto.FLOAT
        if node.op_type == "DequantizeLinear":
            assert all(reader.op_type != "Cast" for reader in graph.consumers[node.output[0]])
        if node.op_type == "Cast":
            maker = graph.producers.get(node.input[0])
            assert maker is None or maker.op_type != "Cast", "no tensor is cast twice in a row"
            assert node.input[0] not in graph.constants, "constants are stored in the type they are read in"


def half_nodes(model: onnx.ModelProto) -> set[str]:
    kinds = types(model)
    return {
        node.name
        for node in model.graph.node
        if node.op_type != "Cast" and kinds[node.output[0]] == TensorProto.FLOAT16
    }


class Vgg(nn.Module):
    """A small VGG: images (n, 3, 16, 16) → logits (n, 10)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        layers: list[Any] = []
        channels = 3
        for size in (width, width, None, 2 * width, 2 * width, None):
            if size is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, size, 3, padding=1), nn.BatchNorm2d(size), nn.ReLU()]
                channels = size
        self.feature_layers = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(channels * 16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.last_layer = nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        return self.last_layer(self.classifier(torch.flatten(self.feature_layers(x), 1)))


@pytest.fixture
def mixed(export) -> Any:
    """Build a VGG with a precision for each layer; return the module, the model and the samples."""
    torch.manual_seed(0)
    module = Vgg().eval()
    samples = np.random.default_rng(0).standard_normal((64, 3, 16, 16)).astype(np.float32)
    exported = export(module, (3, 16, 16))

    def build(precisions: list[str]) -> tuple[Any, onnx.ModelProto, np.ndarray]:
        rules = [
            LayerRule(name=name, precision=precision) for name, precision in zip(VGG_LAYERS, precisions, strict=True)
        ]
        spec = QuantizeSpec(layers=tuple(rules))
        plans = plan(list(find_layers(exported)), spec)
        ranges, _, _ = calibrate(exported, plans, spec, {"x": samples})
        placed = place(exported, plans, ranges, profile("tensorrt")).model
        half = frozenset(item.name for item in plans if item.precision == "fp16")
        return module, to_fp16_regions(placed, half), samples

    return build


def test_a_mix_of_three_precisions(mixed, run) -> None:
    asked = ["int8", "fp16", "fp16", "int8", "fp32", "fp16", "fp16"]
    module, model, samples = mixed(asked)
    holds_everywhere(model)
    assert qdq.layer_precisions(model) == dict(zip(VGG_LAYERS, asked, strict=True))
    assert sorted(half_nodes(model)) == sorted(
        [
            *("feature_layers.3", "/feature_layers/feature_layers.5/Relu", "feature_layers.6"),
            *("feature_layers.7", "/feature_layers/feature_layers.9/Relu"),
            *("classifier.2", "/classifier/classifier.3/Relu", "last_layer"),
        ]
    )
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 4, "into and out of each of the two regions"
    stored = {item.name: item.data_type for item in model.graph.initializer}
    assert stored["feature_layers.3.weight"] == stored["last_layer.bias"] == TensorProto.FLOAT16
    assert stored["feature_layers.0/weight"] == stored["classifier.0.weight"] == TensorProto.FLOAT
    with torch.no_grad():
        expected = module(torch.from_numpy(samples)).numpy()
    for optimize in (False, True):
        got = run(model, x=samples, optimize=optimize)["y"]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=0.1 * np.abs(expected).max())


@settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(asked=st.lists(st.sampled_from(["int8", "fp16", "fp32"]), min_size=7, max_size=7))
def test_any_mix_is_a_valid_graph_with_the_precisions_asked_for(mixed, run, asked: list[str]) -> None:
    if "fp16" not in asked:
        asked[0] = "fp16"
    _, model, samples = mixed(asked)
    holds_everywhere(model)
    assert qdq.layer_precisions(model) == dict(zip(VGG_LAYERS, asked, strict=True))
    assert np.isfinite(run(model, x=samples[:4])["y"]).all()


class Residual(nn.Module):
    """A sum of an fp16 branch and of the fp32 input; a softmax; two outputs, one of them used again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.c = nn.Linear(6, 6, bias=False)

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.a(x))
        return torch.softmax(self.c(self.b(y) + y), -1) + y.shape[1]


@pytest.mark.parametrize("layers", [{"a"}, {"b"}, {"c"}, {"a", "b"}, {"a", "b", "c"}])
@pytest.mark.parametrize("shape", [(6,), (3, 6)])
def test_regions_meet_at_sums_and_end_at_softmax(export, run, layers: set[str], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = Residual().eval()
    model = to_fp16_regions(export(module, shape), frozenset(layers))
    holds_everywhere(model)
    assert {name for name, kind in qdq.layer_precisions(model).items() if kind == "fp16"} == layers
    half = {node.op_type for node in model.graph.node if node.name in half_nodes(model)}
    assert "Softmax" not in half
    x = np.random.default_rng(0).standard_normal((7, *shape)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    for optimize in (False, True):
        np.testing.assert_allclose(run(model, x=x, optimize=optimize)["y"], expected, atol=5e-3)


def test_a_wide_region_goes_through_softmax_and_layer_normalization_with_casts_at_its_ends_alone(export, run) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(6, 6),
        torch.nn.LayerNorm(6),
        torch.nn.GELU(),
        torch.nn.Linear(6, 6),
        torch.nn.Softmax(-1),
        torch.nn.Linear(6, 6),
    )
    exported = export(module.eval(), (6,))
    layers = frozenset(name for name, kind in qdq.layer_precisions(exported).items() if kind == "fp32")
    narrow, wide = (to_fp16_regions(exported, layers, more=more) for more in (frozenset(), NORMALIZING))
    casts = [sum(node.op_type == "Cast" for node in model.graph.node) for model in (narrow, wide)]
    assert casts[1] == 2 < casts[0]
    holds_everywhere(wide)
    half = {node.op_type for node in wide.graph.node if node.name in half_nodes(wide)}
    assert {"Softmax", "LayerNormalization", "Erf", "Div"} <= half
    x = np.random.default_rng(0).standard_normal((7, 6)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(wide, x=x, optimize=False)["y"], expected, atol=5e-3)


def test_the_model_that_is_given_is_not_changed(export) -> None:
    model = export(Residual(), (6,))
    before = model.SerializeToString(deterministic=True)
    to_fp16_regions(model, frozenset({"a"}))
    assert model.SerializeToString(deterministic=True) == before


def test_an_output_in_fp16_is_cast_and_its_other_readers_are_served(run) -> None:
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="first"),
        helper.make_node("MatMul", ["y", "w"], ["z"], name="second"),
        helper.make_node("Exp", ["y"], ["e"], name="exp"),
    ]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xyze"]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.array([[0.1, 0.2, 1.0]], np.float32)
    for layers in ({"first"}, {"second"}, {"first", "second"}):
        made = to_fp16_regions(model, frozenset(layers))
        holds_everywhere(made)
        assert [item.name for item in made.graph.output] == ["y", "z", "e"]
        found = run(made, x=x)
        np.testing.assert_allclose(found["z"], x, rtol=1e-3)  # ONNX Runtime may drop a Cast there and back
        np.testing.assert_allclose(found["y"], x, rtol=1e-3)
        np.testing.assert_allclose(found["e"], np.exp(x), rtol=1e-3)
    kept = {item.name: item.data_type for item in to_fp16_regions(model, frozenset({"first"})).graph.initializer}
    assert kept == {"w": TensorProto.FLOAT, "w_fp16": TensorProto.FLOAT16}, "a shared weight is kept in both types"


def test_pooling_that_was_asked_for_becomes_fp16(export) -> None:
    model = export(nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(3, 4, 3)), (3, 8, 8))
    assert half_nodes(to_fp16_regions(model, frozenset({"0"}))) == {"0"}


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_weight_that_fp16_cannot_hold_names_its_layer(export) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with torch.no_grad():
        module[1].weight[0, 0] = 1e5
    model = export(module, (3,))
    with pytest.raises(ExportError, match=r"1: '1.weight' holds 1e\+05, more than fp16 can"):
        to_fp16_regions(model, frozenset({"1"}))
    to_fp16_regions(model, frozenset({"0"}))


def test_a_layer_that_is_not_there(export) -> None:
    with pytest.raises(ExportError, match="the graph has no layer 'lost'"):
        to_fp16_regions(export(Residual(), (6,)), frozenset({"a", "lost"}))


def test_an_int8_layer_cannot_be_fp16_too(mixed) -> None:
    _, model, _ = mixed(["int8"] * 6 + ["fp16"])
    with pytest.raises(ExportError, match=r"feature_layers\.0: the layer is quantized"):
        to_fp16_regions(model, frozenset({"feature_layers.0"}))


# --- what fp16 cannot hold, and control flow ------------------------------------------------------------------------


def behind_a_layer(tail: list[onnx.NodeProto], stored: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A Gemm ``fc`` from ``x`` (n, 16) to ``h`` (n, 8), and what is behind it, to ``y``."""
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    values = {"w": weight, **stored}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["h"], name="fc"), *tail],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


MASK = np.zeros(8, np.float32)
MASK[5:] = 1
NODE = helper.make_node
TAILS = {
    "a small scale": ([NODE("Mul", ["h", "k"], ["y"], name="odd")], {"k": np.float32(3e-9)}),
    "an epsilon": (
        [
            NODE("Relu", ["h"], ["r"], name="relu"),
            NODE("Add", ["r", "k"], ["c"], name="odd"),
            NODE("Reciprocal", ["c"], ["d"], name="d"),
            NODE("Tanh", ["d"], ["y"], name="t"),
        ],
        {"k": np.float32(1e-8)},
    ),
    "a floor": (
        [NODE("Clip", ["h", "k"], ["c"], name="odd"), NODE("Log", ["c"], ["y"], name="log")],
        {"k": np.float32(1e-12)},
    ),
    "a mask that not Softmax alone reads": (
        [NODE("Add", ["h", "k"], ["c"], name="odd"), NODE("Sigmoid", ["c"], ["y"], name="s")],
        {"k": MASK * np.float32(-1e9)},
    ),
    "a row that is masked as a whole": (
        [NODE("Add", ["h", "k"], ["c"], name="odd"), NODE("Softmax", ["c"], ["y"], name="s")],
        {"k": np.full((1, 8), -1e9, np.float32)},
    ),
    "a mask that scores may outweigh": (
        [NODE("Add", ["h", "k"], ["c"], name="odd"), NODE("Softmax", ["c"], ["y"], name="s")],
        {"k": MASK * np.float32(-1e5)},
    ),
    "what is added is large": (
        [NODE("Add", ["h", "k"], ["c"], name="odd"), NODE("Softmax", ["c"], ["y"], name="s")],
        {"k": MASK * np.float32(1e9)},
    ),
    "Softmax along another axis": (
        [NODE("Add", ["h", "k"], ["c"], name="odd"), NODE("Softmax", ["c"], ["y"], name="s", axis=0)],
        {"k": MASK * np.float32(-1e9)},
    ),
}


@pytest.mark.parametrize("name", TAILS)
def test_a_node_whose_constant_fp16_cannot_hold_stays_fp32_and_is_said(run, name: str) -> None:
    model = behind_a_layer(*TAILS[name])
    said: list[str] = []
    made = to_fp16_regions(model, frozenset({"fc"}), said.append)
    assert qdq.layer_precisions(made) == {"fc": "fp16"}
    assert "odd" not in half_nodes(made)
    assert len(said) == 1
    assert said[0].startswith("odd (")
    assert "its constant 'k' holds" in said[0]
    x = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    want, got = run(model, x=x)["y"], run(made, x=x)["y"]
    np.testing.assert_allclose(got, want, rtol=0.02, atol=0.02 * np.abs(want).max())


MASKS = {
    "a sum": ([NODE("Add", ["h", "k"], ["c"], name="mask")], {"k": MASK * np.float32(-1e9)}),
    "a sum, the mask first": ([NODE("Add", ["k", "h"], ["c"], name="mask")], {"k": MASK * np.float32(-1e9)}),
    "the lowest number": ([NODE("Add", ["h", "k"], ["c"], name="mask")], {"k": MASK * np.finfo(np.float32).min}),
    "a difference": ([NODE("Sub", ["h", "k"], ["c"], name="mask")], {"k": MASK * np.float32(1e9)}),
    "what is filled in": (
        [NODE("Where", ["there", "k", "h"], ["c"], name="mask")],
        {"k": np.float32(-1e9), "there": MASK > 0},
    ),
    "what is left": (
        [NODE("Where", ["there", "h", "k"], ["c"], name="mask")],
        {"k": np.float32(-1e9), "there": MASK == 0},
    ),
}


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_infinite_where_softmax_makes_the_same_of_it(run, name: str, axis: int) -> None:
    tail, stored = MASKS[name]
    model = behind_a_layer([*tail, NODE("Softmax", ["c"], ["y"], name="s", axis=axis)], stored)
    said: list[str] = []
    made = to_fp16_regions(model, frozenset({"fc"}), said.append)
    assert {"fc", "mask"} <= half_nodes(made)
    assert len(said) == 1
    assert "masks with infinity instead" in said[0]
    x = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    want = run(model, x=x)["y"]
    for optimize in (False, True):
        got = run(made, x=x, optimize=optimize)["y"]
        np.testing.assert_allclose(got, want, atol=0.01)
        np.testing.assert_array_equal(got == 0, want == 0)
        assert (got == 0).sum() == 40 * 3


def test_a_sum_that_is_to_be_fp16_takes_a_mask_and_refuses_what_is_none(run) -> None:
    for factor, softmax in ((-1e9, True), (1e9, True), (-1e9, False)):
        tail = [NODE("Add", ["h", "k"], ["c"], name="sum"), NODE("Softmax" if softmax else "Tanh", ["c"], ["y"])]
        model = behind_a_layer(tail, {"k": MASK * np.float32(factor)})
        if factor < 0 and softmax:
            assert "sum" in half_nodes(to_fp16_regions(model, frozenset({"sum"})))
        else:
            with pytest.raises(ExportError, match="sum: its constant 'k' holds"):
                to_fp16_regions(model, frozenset({"sum"}))


def test_what_is_filled_in_where_a_run_says_so_stays_fp32(run) -> None:
    tail = [
        NODE("Greater", ["x8", "zero"], ["there"], name="greater"),
        NODE("Where", ["there", "k", "h"], ["c"], name="odd"),
        NODE("Softmax", ["c"], ["y"], name="s"),
    ]
    first = NODE("Slice", ["x", "from", "to", "axes"], ["x8"], name="slice")
    bounds = {"from": np.array([0]), "to": np.array([8]), "axes": np.array([1])}
    model = behind_a_layer([first, *tail], {"k": np.float32(-1e9), "zero": np.float32(0), **bounds})
    said: list[str] = []
    made = to_fp16_regions(model, frozenset({"fc"}), said.append)
    assert "odd" not in half_nodes(made)
    assert "no constant mask" in said[0]
    x = np.abs(np.random.default_rng(1).standard_normal((40, 16))).astype(np.float32)  # rows masked as a whole
    np.testing.assert_allclose(run(made, x=x)["y"], run(model, x=x)["y"], atol=0.01)


def test_infinity_fits_fp16(run) -> None:
    mask = np.where(MASK, -np.inf, 0).astype(np.float32)
    tail = [NODE("Add", ["h", "k"], ["c"], name="mask"), NODE("Softmax", ["c"], ["y"], name="s")]
    model = behind_a_layer(tail, {"k": mask})
    said: list[str] = []
    made = to_fp16_regions(model, frozenset({"fc"}), said.append)
    assert said == []
    assert "mask" in half_nodes(made)
    x = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    np.testing.assert_allclose(run(made, x=x)["y"], run(model, x=x)["y"], atol=0.01)


def test_weights_that_vanish_in_fp16_name_their_layer() -> None:
    model = behind_a_layer([NODE("Relu", ["h"], ["y"], name="r")], {})
    small = numpy_helper.from_array(np.full((16, 8), 1e-9, np.float32), "w")
    model.graph.initializer[0].CopyFrom(small)
    with pytest.raises(ExportError, match=r"fc: 'w' holds 1e-09, less than fp16 can"):
        to_fp16_regions(model, frozenset({"fc"}))


def test_a_small_bias_is_stored_as_near_as_fp16_sums_are(run) -> None:
    layer = NODE("Gemm", ["x", "w", "b"], ["y"], name="fc")
    weight = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)
    bias = np.full(8, 5e-8, np.float32)
    x = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 16])]
    y = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 8])]
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")]
    model = helper.make_model(
        helper.make_graph([layer], "g", x, y, constants), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    made = to_fp16_regions(model, frozenset({"fc"}))
    assert qdq.layer_precisions(made)["fc"] == "fp16"
    stored = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}["b"]
    assert stored.dtype == np.float16
    assert np.abs(stored.astype(np.float64) - bias).max() <= 2**-25
    data = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    np.testing.assert_allclose(run(made, x=data)["y"], run(model, x=data)["y"], atol=0.01)


def test_bodies_of_control_flow_stay_fp32_and_read_what_they_read(run) -> None:
    bodies = [
        helper.make_graph(
            [NODE("Mul", ["h", "two"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for name in ("then", "else")
    ]
    tail = [
        NODE("Relu", ["h"], ["r"], name="relu"),
        NODE("If", ["yes"], ["i"], name="if", then_branch=bodies[0], else_branch=bodies[1]),
        NODE("Add", ["r", "i"], ["y"], name="sum"),
    ]
    model = behind_a_layer(tail, {"yes": np.array(True), "two": np.float32(2)})
    made = to_fp16_regions(model, frozenset({"fc"}))
    assert qdq.layer_precisions(made)["fc"] == "fp16"
    assert half_nodes(made) == {"fc", "relu"}
    x = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32)
    for optimize in (False, True):
        found = run(made, x=x, optimize=optimize)["y"]
        np.testing.assert_allclose(found, run(model, x=x)["y"], rtol=0.01, atol=0.02)
