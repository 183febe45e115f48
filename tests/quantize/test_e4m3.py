"""E4M3 as ml_dtypes rounds it, bit for bit, and as ONNX Runtime does."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper

from repo_builder.quantize import e4m3

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ALL = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
FINITE = np.unique(ALL[np.isfinite(ALL)])


def reference(values: np.ndarray) -> np.ndarray:
    """What ml_dtypes makes of values; it overflows to NaN where ONNX saturates."""
    return np.clip(values, -e4m3.LARGEST, e4m3.LARGEST).astype(ml_dtypes.float8_e4m3fn)


@given(hnp.arrays(np.float32, st.integers(0, 40), elements=FLOATS | st.floats(-500, 500, width=32)))
def test_values_and_patterns_are_those_of_ml_dtypes(values: np.ndarray) -> None:
    expected = reference(values)
    np.testing.assert_array_equal(e4m3.codes(values, np.float32(1)), expected.view(np.uint8))
    found = e4m3.rounded(values)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.astype(np.float32).view(np.uint32))


def test_every_pattern_is_its_own_and_every_tie_goes_to_the_even_one() -> None:
    patterns = np.arange(256, dtype=np.uint8)[np.isfinite(ALL)]
    np.testing.assert_array_equal(e4m3.codes(ALL[np.isfinite(ALL)], np.float32(1)), patterns)
    ties = ((FINITE[1:].astype(np.float64) + FINITE[:-1]) / 2).astype(np.float32)
    around = np.concatenate([ties, np.nextafter(ties, np.float32(-500)), np.nextafter(ties, np.float32(500))])
    np.testing.assert_array_equal(e4m3.rounded(around), reference(around).astype(np.float32))


@given(hnp.arrays(np.float32, 24, elements=FLOATS), st.floats(2.0**-100, 2.0**60, width=32))
def test_onnx_runtime_rounds_alike(values: np.ndarray, scale: float) -> None:
    ort = pytest.importorskip("onnxruntime")
    session = _session(ort)
    (found,) = session.run(None, {"x": values, "s": np.asarray(scale, np.float32)})
    with np.errstate(over="ignore", under="ignore"):
        patterns = e4m3.codes(values, np.float32(scale))
        expected = patterns.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(scale)
    np.testing.assert_array_equal(found, expected)


_SESSIONS: list[object] = []


def _session(ort: object) -> object:
    if not _SESSIONS:
        zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], b"\0", raw=True)
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
        value = helper.make_tensor_value_info
        inputs = [value("x", TensorProto.FLOAT, ["n"]), value("s", TensorProto.FLOAT, [])]
        graph = helper.make_graph(nodes, "g", inputs, [value("y", TensorProto.FLOAT, ["n"])], [zero])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        _SESSIONS.append(ort.InferenceSession(model.SerializeToString()))  # type: ignore[attr-defined]
    return _SESSIONS[0]
