"""Every operator in torch against ONNX Runtime, which serves what is trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="torch is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from repo_builder.quantize.finetune.graph import TrainableGraph  # noqa: E402
from repo_builder.quantize.finetune.operators import OPERATORS  # noqa: E402

RANDOM = np.random.default_rng(0)
IMAGE, ROWS, TEXT = (2, 4, 6, 5), (3, 4), (2, 3, 4)


def values(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def whole(*items: int) -> np.ndarray:
    return np.array(items, np.int64)


F = np.float32
# operator, shape of x, other inputs in order (None: x itself; "": left out), attributes, number of outputs
CASES: list[tuple[str, tuple[int, ...], list[Any], dict[str, Any]]] = [
    *[(name, ROWS, [None], {}) for name in (
        "Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Mish", "Neg", "Reciprocal", "Relu",
        "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh", "Elu", "HardSigmoid", "LeakyRelu",
        "LogSoftmax", "Softmax", "Gelu", "Dropout",
    )],
    *[(name, ROWS, [None, values(4)], {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu")],
    ("LeakyRelu", ROWS, [None], {"alpha": 0.3}),
    ("Softmax", TEXT, [None], {"axis": 1}),
    ("Gelu", ROWS, [None], {"approximate": "tanh"}),
    ("Pow", ROWS, [None, F(2)], {}),
    ("Clip", ROWS, [None, F(-0.5), F(0.25)], {}),
    ("Clip", ROWS, [None, "", F(0.25)], {}),
    ("Conv", IMAGE, [None, values(6, 4, 3, 3), values(6)], {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    ("Conv", IMAGE, [None, values(8, 1, 3, 3)], {"group": 4, "pads": [0, 1, 2, 1], "dilations": [1, 2]}),
    ("Conv", IMAGE, [None, values(6, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", TEXT, [None, values(5, 3, 2)], {"auto_pad": "SAME_LOWER"}),
    ("ConvTranspose", IMAGE, [None, values(4, 3, 2, 2), values(6)], {"group": 2, "strides": [2, 2]}),
    ("ConvTranspose", IMAGE, [None, values(4, 3, 3, 3)],
     {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("Gemm", ROWS, [None, values(5, 4), values(5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", ROWS, [None, values(3, 2)], {"transA": 1}),
    ("MatMul", TEXT, [None, values(4, 5)], {}),
    ("Einsum", TEXT, [None, values(2, 4, 3)], {"equation": "bij,bjk->bik"}),
    ("BatchNormalization", IMAGE, [None, values(4), values(4), values(4), np.abs(values(4))], {"epsilon": 1e-3}),
    ("LayerNormalization", TEXT, [None, values(4), values(4)], {"axis": -1, "epsilon": 1e-3}),
    ("InstanceNormalization", IMAGE, [None, values(4), values(4)], {}),
    ("MaxPool", IMAGE, [None], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("MaxPool", IMAGE, [None], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}),
    ("AveragePool", IMAGE, [None], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", IMAGE, [None], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
    ("GlobalAveragePool", IMAGE, [None], {}),
    ("GlobalMaxPool", IMAGE, [None], {}),
    *[(name, TEXT, [None], {"axes": [1], "keepdims": 0}) for name in (
        "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSumSquare",
    )],
    ("ReduceSum", TEXT, [None, whole(0, -1)], {}),
    ("ReduceMean", TEXT, [None], {}),
    ("Concat", TEXT, [None, values(2, 1, 4)], {"axis": 1}),
    ("CumSum", TEXT, [None, whole(1)[0]], {}),
    ("DepthToSpace", IMAGE, [None], {"blocksize": 2}),
    ("DepthToSpace", IMAGE, [None], {"blocksize": 2, "mode": "CRD"}),
    ("Expand", (2, 1, 4), [None, whole(3, 1)], {}),
    ("Flatten", IMAGE, [None], {"axis": 2}),
    ("Gather", TEXT, [None, whole(2, -1)], {"axis": 1}),
    ("Gather", TEXT, [None, whole(0)[0]], {"axis": 1}),
    ("Pad", IMAGE, [None, whole(0, 0, 1, 2, 0, 0, 0, 1), F(0.5)], {}),
    ("Pad", IMAGE, [None, whole(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"}),
    ("Reshape", TEXT, [None, whole(0, -1, 2)], {}),
    ("Resize", IMAGE, [None, "", np.array([1, 1, 2, 2], F)],
     {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Resize", IMAGE, [None, "", "", whole(2, 4, 9, 7)],
     {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}),
    ("Slice", TEXT, [None, whole(1), whole(2**62), whole(-1), whole(2)], {}),
    ("Slice", TEXT, [None, whole(-1), whole(-(2**63)), whole(1), whole(-1)], {}),
    ("Split", TEXT, [None, whole(1, 3)], {"axis": 2, "outputs": 2}),
    ("Squeeze", (2, 1, 4), [None, whole(1)], {}),
    ("Tile", TEXT, [None, whole(1, 2, 1)], {}),
    ("Transpose", TEXT, [None], {"perm": [2, 0, 1]}),
    ("Trilu", TEXT, [None, whole(1)[0]], {"upper": 0}),
    ("Unsqueeze", TEXT, [None, whole(0, -1)], {}),
]  # fmt: skip


def single(kind: str, shape: tuple[int, ...], others: list[Any], attributes: dict[str, Any]) -> onnx.ModelProto:
    """Return a model of one node."""
    stored, names = [], []
    for place, item in enumerate(others):
        names.append("x" if item is None else "" if isinstance(item, str) else f"c{place}")
        if isinstance(item, np.ndarray | np.generic):
            stored.append(numpy_helper.from_array(np.asarray(item), names[-1]))
    attributes = dict(attributes)
    outputs = [f"y{place}" for place in range(attributes.pop("outputs", 1))]
    node = helper.make_node(kind, names, outputs, "one", **attributes)
    version = 20 if kind == "Gelu" else 18 if kind == "Mish" else 17
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape[1:]])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        stored,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=9)


@pytest.mark.parametrize(
    ("kind", "shape", "others", "attributes"), CASES, ids=[f"{place}-{item[0]}" for place, item in enumerate(CASES)]
)
def test_an_operator_does_what_onnx_runtime_does(
    kind: str, shape: tuple[int, ...], others: list[Any], attributes: dict[str, Any]
) -> None:
    model = single(kind, shape, others, attributes)
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})
    with torch.no_grad():
        found = TrainableGraph(model)({"x": torch.from_numpy(x)})
    for value, wanted in zip(found.values(), expected, strict=True):
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value.numpy(), wanted, rtol=2e-5, atol=2e-5)


def test_whole_numbers_that_a_graph_computes() -> None:
    """Shape, arithmetic on it, Range, ConstantOfShape, comparisons and Where, as exported masks and views have them."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["width"]),
        helper.make_node("Div", ["width", "two"], ["half"]),
        helper.make_node("Unsqueeze", ["half", "axis"], ["halves"]),
        helper.make_node("Concat", ["minus", "two_1", "halves"], ["view"], axis=0),
        helper.make_node("Reshape", ["x", "view"], ["parts"]),
        helper.make_node("Range", ["zero", "half", "one_0"], ["places"]),
        helper.make_node("Less", ["places", "one_0"], ["first"]),
        helper.make_node("ConstantOfShape", ["halves"], ["zeros"]),
        helper.make_node("Not", ["first"], ["rest"]),
        helper.make_node("Or", ["rest", "first"], ["every"]),
        helper.make_node("And", ["every", "rest"], ["kept"]),
        helper.make_node("Where", ["kept", "parts", "zeros"], ["masked"]),
        helper.make_node("Cast", ["places"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Sqrt", ["floats"], ["roots"]),
        helper.make_node("Mul", ["masked", "roots"], ["y"]),
    ]
    stored = {
        "one": whole(1)[0], "two": whole(2)[0], "axis": whole(0), "minus": whole(-1), "two_1": whole(2),
        "zero": whole(0)[0], "one_0": whole(1)[0],
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = values(5, 6)
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    with torch.no_grad():
        found = TrainableGraph(model)({"x": torch.from_numpy(x)})["y"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_no_operator_of_the_table_is_untested() -> None:
    by_hand = {
        "And", "Cast", "ConstantOfShape", "Less", "Not", "Or", "Range", "Shape", "Sqrt", "Where",
    }  # fmt: skip
    alike = {"Equal", "Greater", "GreaterOrEqual", "LessOrEqual", "Xor", "Log"}  # a name of torch's each
    assert set(OPERATORS) == {item[0] for item in CASES} | by_hand | alike
