from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core import codec
from repo_builder.core.errors import DataError, ModelError, RecipeError
from repo_builder.core.samples import NONE, Batches, resolve
from repo_builder.core.tensors import Array, DType, TensorSpec


def spec(name: str, *shape: int, axis: int = 0) -> TensorSpec:
    return TensorSpec(name=name, dtype=DType.FP32, shape=shape, batch_axis=axis)


def test_a_spec_that_is_the_whole_tensor_has_no_axis() -> None:
    shapes = {"x": [-1, 8], "row": [8], "one": [], "number": [-1], "state": [2, -1, 3]}
    found = resolve([spec("x", 8), spec("row", 8), spec("one"), spec("number"), spec("state", 2, 3, axis=1)], shapes)
    assert [item.batch_axis for item in found] == [0, NONE, NONE, 0, 1]
    assert resolve([spec("unknown", 4)], {}) == (spec("unknown", 4),)


@pytest.mark.parametrize(("given", "shape"), [(spec("x", 8), [1, 2, 8]), (spec("x", 8, axis=NONE), [-1, 8])])
def test_what_does_not_fit_is_refused(given: TensorSpec, shape: list[int]) -> None:
    with pytest.raises(ModelError, match="'x': is "):
        resolve([given], {"x": shape})


@given(st.integers(1, 9), st.sampled_from([-1, 1, 4]), st.sampled_from([0, 1, 2]), st.integers(1, 5))
def test_samples_come_back_in_their_order(total: int, fixed: int, axis: int, most: int) -> None:
    """Whatever axis counts them and however many a run takes."""
    shape = [2, 3]
    shape.insert(axis, fixed)
    x = np.arange(total * 6, dtype=np.float32).reshape(total, 2, 3)
    batches = Batches.of(
        [spec("x", 2, 3, axis=axis)], [spec("y", 2, 3, axis=axis)], {"x": shape, "y": shape}, most=most
    )
    taken = []

    def model(feed: dict[str, Array]) -> dict[str, Array]:
        taken.append(feed["x"].shape[axis])
        assert feed["x"].ndim == 3
        return {"y": feed["x"] * 2}

    np.testing.assert_array_equal(batches.run(model, {"x": x})["y"], x * 2)
    assert set(taken) == {fixed} if fixed > 0 else max(taken) <= most


def test_one_sample_at_a_time_where_a_tensor_counts_none() -> None:
    shapes = {"x": [-1, 2], "rate": [], "y": [-1, 2]}
    batches = Batches.of([spec("x", 2), spec("rate")], [spec("y", 2)], shapes)
    assert batches.size == 1
    x, rate = np.ones((3, 2), np.float32), np.array([1, 2, 3], np.float32)
    found = batches.run(lambda feed: {"y": feed["x"] * feed["rate"]}, {"x": x, "rate": rate})
    np.testing.assert_array_equal(found["y"], x * rate[:, None])
    assert batches.obstacle == "no axis of 'rate' counts samples"


def test_a_fixed_batch_shares_what_counts_no_samples() -> None:
    batches = Batches.of([spec("x", 2), spec("rate")], [spec("y", 2)], {"x": [2, 2], "rate": [], "y": [2, 2]})
    x = np.ones((3, 2), np.float32)
    with pytest.raises(DataError, match="'rate': differs between samples"):
        batches.run(lambda feed: {"y": feed["x"]}, {"x": x, "rate": np.array([1, 2, 2], np.float32)})
    found = batches.run(lambda feed: {"y": feed["x"] * feed["rate"]}, {"x": x, "rate": np.full(3, 2, np.float32)})
    assert found["y"].shape == (3, 2)


def test_requests_and_answers_are_inverse() -> None:
    batches = Batches.of([spec("x", 2)], [spec("y", 2)], {"x": [4, 2], "y": [4, 2]})
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    sent = batches.requests({"x": x})
    assert sent["x"].shape == (2, 4, 2)
    np.testing.assert_array_equal(batches.answers({"y": sent["x"]}, 6)["y"], x)


def test_an_output_that_counts_no_samples_is_told() -> None:
    batches = Batches.of([spec("x", 2)], [spec("y", 2)], {"x": [-1, 2], "y": [-1, 2]})
    with pytest.raises(ModelError, match=r"output 'y': has the shape \[7, 2\] for 3 samples"):
        batches.run(lambda _: {"y": np.zeros((7, 2))}, {"x": np.zeros((3, 2))})
    alone = Batches.of([spec("x", 2)], [spec("y", 2, axis=NONE)], {"x": [-1, 2]})
    with pytest.raises(ModelError, match="its shape varies between samples"):
        alone.run(lambda feed: {"y": np.zeros((int(feed["x"][0, 0]), 2))}, {"x": np.arange(6.0).reshape(3, 2)})


def test_why_requests_cannot_be_put_together() -> None:
    assert Batches.of([spec("x", 2)], [spec("y", 2)], {"x": [-1, 2]}).obstacle == ""
    assert "fixed to a batch of 4" in Batches.of([spec("x", 2)], [spec("y", 2)], {"x": [4, 2]}).obstacle
    assert "axis 1 of 'x'" in Batches.of([spec("x", 2, axis=1)], [spec("y", 2)], {}).obstacle
    with pytest.raises(ModelError, match=r"different batches \(x 4, z 2\)"):
        Batches.of([spec("x", 2), spec("z", 2)], [], {"x": [4, 2], "z": [2, 2]})


def test_an_output_without_samples_needs_the_recipes_word() -> None:
    shapes = {"x": [-1, 2], "mean": [2]}
    with pytest.raises(
        ModelError, match=r"output 'mean': is \[2\] in the model: no axis counts samples, while 'x' has"
    ):
        Batches.of([spec("x", 2)], [spec("mean", 2)], shapes)
    assert Batches.of([spec("x", 2)], [spec("mean", 2, axis=NONE)], shapes).size == 1
    assert Batches.of([spec("x", 2)], [spec("mean", 2)], {"x": [1, 2], "mean": [2]}).size == 1
    assert Batches.of([spec("x", 2)], [spec("mean", 2)], {"x": [2], "mean": [2]}).size == 1


def test_a_scalar_stays_an_array() -> None:
    """ONNX Runtime takes no numpy scalar."""
    found = Batches.of([spec("x", 3, axis=NONE), spec("rate")], [], {"x": [3], "rate": []})
    samples = {"x": np.ones((2, 3), np.float32), "rate": np.full(2, 16, np.int64)}
    for count, feed in found.feeds(samples):
        assert count == 1
        assert isinstance(feed["rate"], np.ndarray)
        assert feed["rate"].shape == ()


def test_an_axis_beyond_the_tensor_is_refused_with_the_table() -> None:
    document = {"name": "x", "dtype": "fp32", "shape": [2, 3], "batch_axis": 2}
    assert codec.build(TensorSpec, document, "model.inputs[0]").whole(7) == (2, 3, 7)
    with pytest.raises(RecipeError, match=r"model\.inputs\[0\]: batch_axis 3 is beyond the axes of x fp32\[2, 3\]"):
        codec.build(TensorSpec, document | {"batch_axis": 3}, "model.inputs[0]")
