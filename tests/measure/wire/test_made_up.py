from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.measure.wire import made_up
from repo_builder.measure.wire.model import ServedModel
from repo_builder.measure.wire.payloads import holds


def model(spec: TensorSpec, *, batches: bool = True) -> ServedModel:
    return ServedModel(
        name="m", version="1", backend="b", inputs=(spec,), outputs=(), max_batch_size=8 * batches, batch_axis=batches,
        own_axis=not batches,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", list(DType))
def test_every_type_is_made_in_itself(dtype: DType) -> None:
    found = made_up.random_samples(model(TensorSpec(name="x", dtype=dtype, shape=(3, 5))), 7, {}, seed=1)["x"]
    assert found.shape == (7, 3, 5)
    assert holds(found.dtype, dtype)
    assert len({item.tobytes() if hasattr(item, "tobytes") else item for item in found.ravel()}) > 1
    again = made_up.random_samples(model(TensorSpec(name="x", dtype=dtype, shape=(3, 5))), 7, {}, seed=1)["x"]
    assert np.array_equal(found, again)


@pytest.mark.parametrize("dtype", [DType.FP32, DType.FP16, DType.BF16, DType.INT8, DType.INT64, DType.BOOL])
def test_large_inputs_are_few_and_take_little_more_than_themselves(dtype: DType) -> None:
    size = made_up.MOST_BYTES // 2 // dtype.numpy.itemsize
    tracemalloc.start()
    found = made_up.random_samples(model(TensorSpec(name="x", dtype=dtype, shape=(size,))), 64, {}, seed=0)["x"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 2
    assert peak < 4 * made_up.MOST_BYTES


def test_one_is_made_however_large_it_is() -> None:
    spec = TensorSpec(name="x", dtype=DType.UINT8, shape=(made_up.MOST_BYTES + 1,))
    assert len(made_up.random_samples(model(spec), 64, {}, seed=0)["x"]) == 1


@pytest.mark.parametrize(
    ("shape", "given", "found"),
    [((-1, 4), None, (1, 4)), ((-1, 4), (6, 4), (6, 4)), ((-1,), None, None), ((-1, -1), None, None)],
)
def test_a_first_dimension_that_varies_is_one_where_that_is_the_least(
    shape: tuple[int, ...], given: tuple[int, ...] | None, found: tuple[int, ...] | None
) -> None:
    served = model(TensorSpec(name="x", dtype=DType.FP32, shape=shape), batches=False)
    shapes = {"x": given} if given else {}
    if found is None:
        with pytest.raises(MeasureError, match="give its shape"):
            made_up.random_samples(served, 3, shapes, seed=0)
    else:
        assert made_up.random_samples(served, 3, shapes, seed=0)["x"].shape == (3, *found)
