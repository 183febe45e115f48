"""Tensors as every stage names them: data types, specs and shape profiles.

``DType`` is the only table between numpy, ONNX, TensorRT and Triton names. A spec's shape leaves the
batch dimension out, as config.pbtxt does for models that batch.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from repo_builder.core.bounds import Bound

Array = npt.NDArray[Any]


class DType(enum.Enum):
    """An element type: (numpy, ONNX TensorProto, TensorRT DataType, Triton v2 protocol, Triton config).

    A member's value is its name in recipes. TensorRT has no name for a type that engines cannot take.
    """

    FP32 = "fp32"
    FP16 = "fp16"
    FP64 = "fp64"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    BOOL = "bool"
    STRING = "string"
    BF16 = "bf16"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype; ``object`` for strings, and ``uint16`` for the bits of BF16, which numpy does not have."""
        return np.dtype(_TABLE[self][0])

    @property
    def onnx(self) -> str:
        """The name in ``onnx.TensorProto.DataType``."""
        return _TABLE[self][1]

    @property
    def tensorrt(self) -> str | None:
        """The name in ``tensorrt.DataType``, None where TensorRT has none."""
        return _TABLE[self][2]

    @property
    def triton(self) -> str:
        """The name in the v2 inference protocol, as in ``"FP32"``."""
        return _TABLE[self][3]

    @property
    def config(self) -> str:
        """The name in config.pbtxt, as in ``"TYPE_FP32"``."""
        return _TABLE[self][4]

    @classmethod
    def of(cls, name: str) -> DType:
        """Find a type by any of its names, in any of the vocabularies above.

        Raises:
            KeyError: No vocabulary has that name.
        """
        return _BY_NAME[name.lower()]

    @classmethod
    def of_numpy(cls, dtype: npt.DTypeLike) -> DType:
        """Find the type of a numpy dtype; strings and bytes of any length are STRING."""
        kind = np.dtype(dtype)
        if kind.kind in "OSU":
            return cls.STRING
        return _BY_NAME[kind.name]


_TABLE: dict[DType, tuple[str, str, str | None, str, str]] = {
    DType.FP32: ("float32", "FLOAT", "FLOAT", "FP32", "TYPE_FP32"),
    DType.FP16: ("float16", "FLOAT16", "HALF", "FP16", "TYPE_FP16"),
    DType.FP64: ("float64", "DOUBLE", None, "FP64", "TYPE_FP64"),
    DType.INT8: ("int8", "INT8", "INT8", "INT8", "TYPE_INT8"),
    DType.INT16: ("int16", "INT16", None, "INT16", "TYPE_INT16"),
    DType.INT32: ("int32", "INT32", "INT32", "INT32", "TYPE_INT32"),
    DType.INT64: ("int64", "INT64", "INT64", "INT64", "TYPE_INT64"),
    DType.UINT8: ("uint8", "UINT8", "UINT8", "UINT8", "TYPE_UINT8"),
    DType.UINT16: ("uint16", "UINT16", None, "UINT16", "TYPE_UINT16"),
    DType.UINT32: ("uint32", "UINT32", None, "UINT32", "TYPE_UINT32"),
    DType.UINT64: ("uint64", "UINT64", None, "UINT64", "TYPE_UINT64"),
    DType.BOOL: ("bool", "BOOL", "BOOL", "BOOL", "TYPE_BOOL"),
    DType.STRING: ("object", "STRING", None, "BYTES", "TYPE_STRING"),
    DType.BF16: ("uint16", "BFLOAT16", "BF16", "BF16", "TYPE_BF16"),  # behind UINT16, which numpy's name means
}
_BY_NAME: dict[str, DType] = {}
for _dtype, _names in _TABLE.items():
    for _name in (_dtype.value, *_names):
        if _name is not None:
            _BY_NAME.setdefault(_name.lower(), _dtype)


def narrowed(array: Array, dtype: DType) -> Array:
    """Return whole numbers in another whole type, as a server's or an engine's own; anything else as it is.

    TensorRT before 10 has no int64: its engines take and give int32 where the network says int64.

    Raises:
        ValueError: A value does not fit: it would be another number.
    """
    wanted = dtype.numpy
    if array.dtype == wanted or array.dtype.kind not in "iu" or wanted.kind not in "iu":
        return array
    bounds = np.iinfo(wanted)
    if array.size and not (bounds.min <= array.min() and array.max() <= bounds.max):
        worst = max((array.min(), array.max()), key=abs)
        raise ValueError(f"the value {worst} does not fit into {dtype.value}")
    return array.astype(wanted)


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: The tensor's name in ONNX, the engine and config.pbtxt.
        dtype: Its element type.
        shape: Its dimensions without the batch; -1 stands for one that varies.
        batch_axis: The axis, of the whole tensor, that counts samples; -1 where none does.
    """

    name: Annotated[str, Bound(pattern=r"[^\x00]+", must="is empty or holds a NUL character")]
    dtype: DType
    shape: tuple[Annotated[int, Bound(ge=-1, lt=2**31)], ...]
    batch_axis: Annotated[int, Bound(ge=-1, lt=32)] = 0

    def __post_init__(self) -> None:
        """Refuse an axis that the tensor cannot have."""
        if self.batch_axis > len(self.shape):
            raise ValueError(
                f"batch_axis {self.batch_axis} is beyond the axes of {self}, which has one more for samples"
            )

    def accepts(self, array: Array) -> bool:
        """Whether a batch of shape ``(n, *shape)`` and this dtype is what ``array`` is."""
        return DType.of_numpy(array.dtype) is self.dtype and self.fits(tuple(array.shape[1:]))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether ``shape``, without the batch, is one that this spec allows."""
        return len(shape) == len(self.shape) and all(
            want in (-1, got) for want, got in zip(self.shape, shape, strict=True)
        )

    def whole(self, size: int) -> tuple[int, ...]:
        """Return the shape of the whole tensor with so many samples in it, on the axis that counts them."""
        if self.batch_axis < 0:
            return self.shape
        return (*self.shape[: self.batch_axis], size, *self.shape[self.batch_axis :])

    def __str__(self) -> str:
        """Return the spec as in ``image fp32[3, 32, 32]``."""
        return f"{self.name} {self.dtype.value}{list(self.shape)}"


@dataclass(frozen=True, kw_only=True)
class ShapeProfile:
    """The full shapes (batch first) that one input takes in one TensorRT optimization profile.

    Attributes:
        min: The smallest shape accepted.
        opt: The shape that kernels are tuned for.
        max: The largest shape accepted.
    """

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse ranks that differ and bounds that are out of order."""
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError(f"profile shapes differ in rank: {self.min}, {self.opt}, {self.max}")
        if any(not 0 <= low <= mid <= high for low, mid, high in zip(self.min, self.opt, self.max, strict=True)):
            raise ValueError(f"profile shapes are not min <= opt <= max: {self.min}, {self.opt}, {self.max}")

    def covers(self, shape: tuple[int, ...]) -> bool:
        """Whether ``shape`` lies within min and max in every dimension."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )
