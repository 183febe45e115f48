from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import np_to_triton_dtype

from repo_builder.core.tensors import DType, ShapeProfile, TensorSpec, narrowed


@pytest.mark.parametrize("dtype", list(DType))
def test_every_name_leads_back_to_its_type(dtype: DType) -> None:
    for name in (dtype.value, dtype.onnx, dtype.triton, dtype.config):
        assert DType.of(name) is dtype
    if dtype is not DType.BF16:  # numpy knows only its bits
        assert DType.of_numpy(dtype.numpy) is dtype


@pytest.mark.parametrize("dtype", list(DType))
def test_the_names_are_those_of_onnx_and_triton(dtype: DType) -> None:
    assert dtype.onnx in TensorProto.DataType.keys()  # noqa: SIM118 - a protobuf enum, not a mapping
    assert dtype.config in model_config_pb2.DataType.keys()  # noqa: SIM118
    if dtype is not DType.BF16:
        assert np_to_triton_dtype(dtype.numpy) == dtype.triton


def test_strings_of_any_length_are_strings() -> None:
    assert DType.of_numpy(np.dtype("U7")) is DType.STRING
    assert DType.of_numpy(np.dtype("S3")) is DType.STRING


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        DType.of("float7")


def test_a_spec_accepts_batches_of_its_shape_and_dtype() -> None:
    spec = TensorSpec(name="image", dtype=DType.FP32, shape=(3, -1, 32))
    assert spec.accepts(np.zeros((5, 3, 99, 32), np.float32))
    assert not spec.accepts(np.zeros((5, 3, 99, 33), np.float32))
    assert not spec.accepts(np.zeros((5, 3, 99, 32), np.float64))
    assert not spec.accepts(np.zeros((3, 99, 32), np.float32))
    assert str(spec) == "image fp32[3, -1, 32]"


shapes = st.lists(st.integers(0, 50), min_size=1, max_size=4).map(tuple)


@given(shapes, st.data())
def test_a_profile_covers_just_what_lies_between_min_and_max(low: tuple[int, ...], data: st.DataObject) -> None:
    high = tuple(data.draw(st.integers(size, size + 20)) for size in low)
    profile = ShapeProfile(min=low, opt=low, max=high)
    shape = tuple(data.draw(st.integers(0, 80)) for _ in low)
    inside = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
    assert profile.covers(shape) is inside
    assert not profile.covers((*shape, 1))


@pytest.mark.parametrize(
    ("low", "opt", "high"), [((2,), (1,), (3,)), ((1,), (4,), (3,)), ((1, 1), (1,), (1,)), ((-1,), (1,), (2,))]
)
def test_a_profile_out_of_order_is_refused(low: tuple[int, ...], opt: tuple[int, ...], high: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="profile shapes"):
        ShapeProfile(min=low, opt=opt, max=high)


def test_whole_numbers_are_narrowed_where_they_fit_and_never_wrap() -> None:
    ids = np.array([0, -5, 2**31 - 1], np.int64)
    found = narrowed(ids, DType.INT32)
    assert found.dtype == np.int32
    assert found.tolist() == ids.tolist()
    for value in (2**31, -(2**31) - 1):
        with pytest.raises(ValueError, match=f"{value} does not fit into int32"):
            narrowed(np.array([1, value], np.int64), DType.INT32)
    floats = np.ones(2, np.float32)
    assert narrowed(floats, DType.INT32) is floats  # a number of another kind is no narrower one
    assert narrowed(np.zeros((0, 4), np.int64), DType.INT32).shape == (0, 4)
