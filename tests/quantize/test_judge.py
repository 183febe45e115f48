"""What outputs keep, and which samples judge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from repo_builder.core.errors import QuantizeError
from repo_builder.quantize.judge import Judge, parts
from repo_builder.quantize.prepare import prepare


def test_a_form_that_is_a_tenth_off_keeps_twenty_decibels(small, images) -> None:
    ready = prepare(small)
    judge = Judge(ready, {"x": images[:10]}, batch_size=4)
    assert judge.keeps(ready) > 100
    assert len(judge) == 10
    off = prepare(small)
    for item in off.graph.initializer:
        if item.name in ("w2", "b2"):
            item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * np.float32(1.1), item.name))
    assert judge.keeps(off) == pytest.approx(20, abs=0.01)
    assert judge.looks == 2
    for item in off.graph.initializer:
        if item.name == "b2":
            item.CopyFrom(numpy_helper.from_array(np.full(4, np.inf, np.float32), "b2"))
    assert judge.keeps(off) == -200


@given(count=st.integers(2, 400), batch=st.sampled_from(["n", 1, 3]))
def test_the_samples_that_judge_fit_nothing(graph_of, count: int, batch: int | str) -> None:
    from onnx import helper

    model = graph_of([helper.make_node("Identity", ["x"], ["y"])], {}, [batch, 2])
    size = batch if isinstance(batch, int) else 1
    samples = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    if count < 2 * size:
        with pytest.raises(QuantizeError, match="calibration samples"):
            parts(model, {"x": samples})
        return
    fits, judges = ({tuple(row) for row in part["x"]} for part in parts(model, {"x": samples}))
    assert fits
    assert judges
    assert not fits & judges
    assert len(fits) <= 64
    assert len(judges) <= 64
    assert len(fits) % size == len(judges) % size == 0
