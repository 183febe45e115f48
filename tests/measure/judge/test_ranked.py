"""The best classes as one number a class again."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.measure.judge.ranked import spread


@given(st.integers(2, 9), st.data())
def test_the_best_stays_the_best(classes: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, classes))
    values = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(5, classes)).astype(np.float32)
    order = np.argsort(-values, axis=1)[:, :k]
    outputs = {"classes": order, "scores": np.take_along_axis(values, order, 1)}
    found = spread(outputs, ("classes", "scores"), classes)["scores"]
    assert found.shape == values.shape
    assert found.argmax(1).tolist() == values.argmax(1).tolist()
    np.testing.assert_array_equal(np.take_along_axis(found, order, 1), outputs["scores"])
    assert spread(outputs, (), classes) == outputs
