"""4-bit codes in blocks, against the definition written out weight by weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from repo_builder.core.onnx_tensors import packed_nibbles
from repo_builder.quantize.placement import blocks
from repo_builder.quantize.placement.codes import LEAST_SCALE
from tests.quantize.placement.conftest import four_bit_constants

F = np.float32
SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 5))
FORMS = {"block": st.sampled_from([16, 32, 64]), "symmetric": st.booleans()}


def weight_of(shape: tuple[int, int], seed: int, size: float) -> np.ndarray:
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape) * size
    values[random.random(shape) < 0.1] = 0
    return values.astype(F)


def by_hand(block: np.ndarray, share: np.float32, symmetric: bool) -> tuple[np.float32, int, list[int]]:
    """Scale, zero point and codes of one block of one output."""
    low, high = F(min(block.min(), 0)), F(max(block.max(), 0))
    if symmetric:
        wide, zero = F(F(max(-low, high) * share) / F(7)), 0
        least, most = -8, 7
    else:
        wide = F(F(F(high * share) - F(low * share)) / F(15))
        least, most = 0, 15
    scale = max(wide, F(LEAST_SCALE)) if wide > 0 else F(1)
    if not symmetric:
        zero = int(min(15, max(0, np.rint(F(-F(low * share) / scale)))))
    return F(scale), zero, [int(min(most, max(least, np.rint(F(value / scale)) + zero))) for value in block]


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99), size=st.sampled_from([1e-40, 1e-3, 1.0, 1e4]), **FORMS)
def test_every_code_is_that_of_the_definition(
    shape: tuple[int, int], seed: int, size: float, block: int, symmetric: bool
) -> None:
    weight = weight_of(shape, seed, size)
    found = blocks.find(weight, block=block, symmetric=symmetric)
    codes = blocks.codes(weight, found)
    for output in range(shape[1]):
        for place, start in enumerate(range(0, shape[0], block)):
            scale, zero, want = by_hand(weight[start : start + block, output], F(1), symmetric)
            assert found.scale[place, output] == scale
            assert symmetric or found.zero[place, output] == zero  # type: ignore[index]
            assert codes[start : start + block, output].tolist() == want
    assert blocks.find(weight, block=block, symmetric=symmetric).scale.tobytes() == found.scale.tobytes()
    assert found.stored_bytes == len(packed_nibbles(codes)) + found.scale.nbytes + (
        0 if found.zero is None else len(packed_nibbles(found.zero))
    )


@settings(max_examples=15, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99), **FORMS)
def test_mse_takes_the_range_of_the_least_error(shape: tuple[int, int], seed: int, block: int, symmetric: bool) -> None:
    weight = weight_of(shape, seed, 1.0)
    weight[0, 0] = 9.0
    found = blocks.find(weight, block=block, symmetric=symmetric, calibrator="mse")
    error = np.square(blocks.values(blocks.codes(weight, found), found) - weight)
    first = weight[:block, 0]

    def of(share: int) -> float:
        scale, zero, codes = by_hand(first, F(share / 64), symmetric)
        return float(np.square((np.array(codes) - zero).astype(F) * scale - first).sum())

    assert float(error[:block, 0].sum()) == pytest.approx(min(map(of, range(32, 65))), rel=1e-5, abs=1e-10)


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 999), size=st.sampled_from([1e-30, 1e-3, 1.0, 1e4]), **FORMS)
def test_the_error_of_no_block_is_above_round_to_nearest_s(
    shape: tuple[int, int], seed: int, size: float, block: int, symmetric: bool
) -> None:
    weight = weight_of(shape, seed, size)
    errors = []
    for calibrator in ("mse", "max"):
        found = blocks.find(weight, block=block, symmetric=symmetric, calibrator=calibrator)
        error = np.square((blocks.values(blocks.codes(weight, found), found) - weight).astype(np.float64) / size)
        errors.append(np.add.reduceat(error, range(0, shape[0], block)))
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


@settings(max_examples=30, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 99), **FORMS)
def test_what_is_stored_is_what_onnx_dequantizes(
    shape: tuple[int, int], seed: int, block: int, symmetric: bool
) -> None:
    """Bit for bit: ONNX's reference reads the packed codes, and so does onnx's own reader."""
    weight = weight_of(shape, seed, 1.0)
    found = blocks.find(weight, block=block, symmetric=symmetric)
    codes = blocks.codes(weight, found)
    stored = four_bit_constants(codes, found)
    assert numpy_helper.to_array(stored[0]).astype(np.int8).tolist() == codes.astype(np.int8).tolist()
    node = helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"], axis=0, block_size=block)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    scale = numpy_helper.from_array(found.scale, "s")
    graph = helper.make_graph([node], "g", [], [output], [*stored, scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    if shape[0] % block == 0:  # the reference knows no short last block; ONNX Runtime does (test_nbits)
        read: Any = ReferenceEvaluator(model).run(None, {})
        assert np.array_equal(read[0], blocks.values(codes, found))


def test_a_search_in_parts_is_a_search_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_of((64, 9), 1, 1.0)
    whole = blocks.find(weight, calibrator="mse")
    monkeypatch.setattr(blocks, "_AT_ONCE", 128)
    parts = blocks.find(weight, calibrator="mse")
    assert whole.scale.tobytes() == parts.scale.tobytes()
    assert whole.zero is not None
    assert parts.zero is not None
    assert whole.zero.tobytes() == parts.zero.tobytes()
