"""The prepared requests of a level."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.measure.wire import payloads


def test_int64_goes_to_a_server_of_int32_as_far_as_it_fits() -> None:
    spec = TensorSpec(name="ids", dtype=DType.INT32, shape=(3,))
    model: Any = SimpleNamespace(name="bert", inputs=(spec,), optional=set(), batch_axis=True)
    ids = np.array([[1, 2, 3]], np.int64)
    assert payloads.check_samples(model, {"ids": ids}) == 1
    sent = payloads.as_request(model, {"ids": ids})["ids"]
    assert (sent.dtype, sent.tolist()) == (np.int32, ids.tolist())
    with pytest.raises(MeasureError, match="bert: the value 2147483648 does not fit into int32, the type of its input"):
        payloads.as_request(model, {"ids": np.array([[1, 2, 2**31]], np.int64)})
