"""One row for each precision that a rule may ask for, and every row is what ONNX and numpy say of its type."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import pytest

from repo_builder.core.precisions import PRECISIONS, opset_of
from repo_builder.core.recipe import Precision


def test_every_precision_of_rules_has_a_row_and_no_other_has() -> None:
    assert set(PRECISIONS) == set(get_args(Precision))


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_row_agrees_with_onnx(name: str) -> None:
    kind = PRECISIONS[name]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind.element))
    assert kind.bits == (4 if "INT4" in kind.element else dtype.itemsize * 8)
    if kind.codes == "none":
        return
    schema = onnx.defs.get_schema("DequantizeLinear", kind.opset)
    taken = {item for constraint in schema.type_constraints for item in constraint.allowed_type_strs}
    assert f"tensor({kind.element.lower()})" in taken
    older = onnx.defs.get_schema("DequantizeLinear", kind.opset - 1)
    taken = {item for constraint in older.type_constraints for item in constraint.allowed_type_strs}
    assert kind.opset == 13 or f"tensor({kind.element.lower()})" not in taken  # 13: the first with channels
    if dtype.kind != "i":  # the largest finite value: the next pattern is no number
        bits = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
        assert np.nanmax(bits[np.isfinite(bits)]) == kind.largest


def test_the_opset_is_that_of_the_newest() -> None:
    assert opset_of(["fp32", "int8"]) == 13
    assert opset_of(["fp32", "fp8", "int8"]) == 19
    assert opset_of([]) == 13
