"""Where tensors lie that Triton's Python backend hands over, without copying them.

Host tensors lie in the shared memory between Triton and this process; once those pages are locked, the GPU reads them
straight from there. Tensors on the GPU come and go as DLPack capsules (https://dmlc.github.io/dlpack).
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np

from repo_builder.device import cudart
from repo_builder.tensors import Array

_REGION = "triton_python_backend_shm_region"
_MAPS = Path("/proc/self/maps")


class LockedPages:
    """Page-locks the Python backend's shared memory where a tensor is first seen in it.

    Regions are never unmapped while this process lives: when Triton needs more room it maps a larger one beside them.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ranges: list[tuple[int, bool]] = []  # end, locked; in the order of _starts

    def holds(self, address: int, size: int) -> bool:
        """Return whether the GPU may copy ``size`` bytes straight from ``address``."""
        place = bisect_right(self._starts, address) - 1
        if place < 0 or self._ranges[place][0] < address + size:
            place = self._add(address, size)
        return place >= 0 and self._ranges[place][1]

    def _add(self, address: int, size: int) -> int:
        """Lock the mapping around an address; return its place, -1 where it is none of the backend's."""
        for line in _MAPS.read_text(encoding="utf-8").splitlines():
            bounds, _, rest = line.partition(" ")
            start, end = (int(part, 16) for part in bounds.split("-"))
            if not (start <= address and address + size <= end):
                continue
            if _REGION not in rest:
                return -1
            status = cudart.cudaHostRegister(start, end - start, cudart.cudaHostRegisterDefault)[0]
            if status:
                cudart.cudaGetLastError()  # not sticky; cleared so that no later call reports it
            place = bisect_right(self._starts, start)
            self._starts.insert(place, start)
            self._ranges.insert(place, (end, not status))
            return place
        return -1


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """DLManagedTensor."""


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_NAME = b"dltensor"
_CUDA = 2
_CODES = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLDataTypeCode → numpy's kind
_NUMBERS = {kind: code for code, kind in _CODES.items()}
_get = ctypes.pythonapi.PyCapsule_GetPointer
_get.restype, _get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


def read_capsule(capsule: Any) -> tuple[int, tuple[int, ...], np.dtype[Any]]:  # noqa: ANN401 - a PyCapsule
    """Return address, shape and type of a contiguous tensor; the capsule keeps it alive."""
    tensor = ctypes.cast(_get(capsule, _NAME), ctypes.POINTER(_Managed)).contents.tensor
    kind = np.dtype(f"{_CODES[tensor.dtype.code]}{tensor.dtype.bits // 8}")
    return tensor.data + tensor.byte_offset, tuple(tensor.shape[: tensor.ndim]), kind


class Exported:
    """Device memory of ours as a DLPack capsule for Triton, which must have read it before it is written again.

    Args:
        address: Where it lies.
        like: An array of the same shape and type.
        gpu: The GPU's number.
    """

    def __init__(self, address: int, like: Array, gpu: int) -> None:
        self._shape = (ctypes.c_int64 * like.ndim)(*like.shape)
        kind = _Type(_NUMBERS[like.dtype.kind], 8 * like.dtype.itemsize, 1)
        tensor = _Tensor(address, _Device(_CUDA, gpu), like.ndim, kind, self._shape, None, 0)
        self._managed = _Managed(tensor, None, _kept)

    def capsule(self) -> Any:  # noqa: ANN401 - a PyCapsule
        """Return the capsule; this object must outlive it."""
        return _new(ctypes.addressof(self._managed), _NAME, None)


def _nothing(_: Any) -> None:  # noqa: ANN401 - a pointer
    """Free nothing: the memory is the engine's."""


_kept = _Deleter(_nothing)
