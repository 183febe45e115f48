"""The int8 layer in torch computes what ONNX computes, to the bit."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="torch is not installed")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from repo_builder.quantize import Ranges  # noqa: E402
from repo_builder.quantize.calibrators import MIN_AMAX  # noqa: E402
from repo_builder.quantize.fake_quant import FakeQuantize, quantize_layer  # noqa: E402

values = nps.arrays(np.float32, (3, 40), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False))


def in_onnx(x: np.ndarray, scale: np.ndarray, axis: int | None) -> np.ndarray:
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **attributes),
    ]
    shape = list(x.shape)
    graph = helper.make_graph(
        nodes,
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(scale, "scale"), numpy_helper.from_array(np.zeros(scale.shape, np.int8), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@settings(deadline=None, max_examples=50)
@given(x=values, amax=st.floats(2.0**-20, 1e3, width=32))
def test_per_tensor_is_onnx_to_the_bit(x: np.ndarray, amax: float) -> None:
    fake = FakeQuantize(np.float32(amax).reshape(()))
    np.testing.assert_array_equal(fake(torch.from_numpy(x)).numpy(), in_onnx(x, fake.scale.numpy(), None))


@settings(deadline=None, max_examples=50)
@given(x=values, amax=nps.arrays(np.float32, 40, elements=st.floats(2.0**-20, 1e3, width=32)))
def test_per_channel_is_onnx_to_the_bit(x: np.ndarray, amax: np.ndarray) -> None:
    fake = FakeQuantize(amax, axis=1)
    np.testing.assert_array_equal(fake(torch.from_numpy(x)).numpy(), in_onnx(x, fake.scale.numpy(), 1))


def test_halves_go_to_even_where_the_reciprocal_would_miss_them() -> None:
    """Torch's own fake quantization multiplies by 1 / scale, and lands beside ONNX on some halves."""
    rng = np.random.default_rng(0)
    differ = 0
    for amax in rng.uniform(0.5, 3, 200).astype(np.float32):
        scale = np.float32(amax) / np.float32(127)
        x = ((np.arange(-127, 127) + 0.5).astype(np.float32) * scale)[None]
        exact = in_onnx(x, scale.reshape(()), None)
        ours = FakeQuantize(amax.reshape(()))(torch.from_numpy(x)).numpy()
        theirs = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), float(scale), 0, -128, 127).numpy()
        np.testing.assert_array_equal(ours, exact)
        differ += int((np.abs(theirs - exact) > scale / 2).sum())
    assert differ > 0


def test_what_lies_outside_the_range_is_clipped_to_minus_128_and_127() -> None:
    fake = FakeQuantize(np.float32(127).reshape(()))
    x = torch.tensor([-1e9, -128.4, -127.6, 126.6, 1e9])
    assert fake(x).tolist() == [-128, -128, -128, 127, 127]


def test_a_channel_of_zeros_has_a_scale_above_zero_and_stays_zero() -> None:
    fake = FakeQuantize(np.array([0, 1], np.float32), axis=0)
    assert fake.scale[0] == np.float32(MIN_AMAX) / 127
    assert fake(torch.zeros(2, 3)).abs().max() == 0


def test_an_int8_layer_rounds_its_input_and_its_weight_and_nothing_else() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 4)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    x = torch.randn(5, 6)
    amax = weight.abs().amax(1).numpy()
    quantize_layer(layer, Ranges(inputs=(np.float32(2).reshape(()),), weight=amax))
    rounded = torch.clamp(torch.round(x / (2 / 127)), -128, 127) * np.float32(2 / 127)
    scale = torch.from_numpy(amax / np.float32(127))[:, None]
    expected = torch.nn.functional.linear(rounded, torch.round(weight / scale) * scale, bias)
    torch.testing.assert_close(layer(x), expected)
