"""Nodes of one step after the other, valid in every operator set from 13 on: whatever the network's, they fit into it.

Where ONNX changed an operator on the way (ReduceMean, ReduceMax, Split: their axes moved), it is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from repo_builder.core.tensors import Array, DType

OPSETS = range(13, 24)  # in which every node that is written here means the same


class Writer:
    """Collects nodes and constants.

    Args:
        prefix: What the names of all tensors and nodes begin with.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix, self._count = prefix, 0
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:  # noqa: ANN401 - as ONNX has them
        """Add a node of one output; return the output's name. An input that is left out is an empty string."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:  # noqa: ANN401 - likewise
        """Add a node; return the names of its outputs."""
        self._count += 1
        name = f"{self._prefix}{self._count}/{kind}"
        names = [f"{name}:{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return names

    def constant(self, value: Array | Sequence[int] | Sequence[float]) -> str:
        """Add a constant; whole numbers in a sequence are int64, others fp32."""
        array = np.asarray(value)
        if not isinstance(value, np.ndarray):
            array = array.astype(np.int64 if array.dtype.kind in "iu" or not array.size else np.float32)
        self._count += 1
        name = f"{self._prefix}{self._count}/constant"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def cast(self, name: str, dtype: DType) -> str:
        """Return a tensor in another type."""
        return self.op("Cast", name, to=onnx.TensorProto.DataType.Value(dtype.onnx))

    def sizes(self, name: str, start: int, end: int) -> str:
        """Return some sizes of a tensor, int64 ``(end - start,)``."""
        return self.op("Slice", self.op("Shape", name), *map(self.constant, ([start], [end], [0])))

    def total(self, name: str, axis: int, *, keep: bool = True) -> str:
        """Return the sum along an axis."""
        return self.op("ReduceSum", name, self.constant([axis]), keepdims=int(keep))
