"""Where tensors lie that Triton's Python backend hands over, without copying them.

Host tensors lie in the shared memory between Triton and this process; once those pages are locked, the GPU reads them
straight from there. ``as_numpy`` gives a copy of them on the heap, so their address is taken from a DLPack capsule
(https://dmlc.github.io/dlpack). Tensors on the GPU come and go as capsules too.
"""

from __future__ import annotations

import ctypes
import re
import struct
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np

from repo_builder.core.device import cudart
from repo_builder.core.tensors import Array

# Triton names the region after the backend: triton_tensorrt_backend_shm_region_1, in the embedded server.
_REGION = re.compile(r"triton_\w+_backend_shm_region")
_MAPS = Path("/proc/self/maps")

# DLTensor: data, device type, device number, ndim, type code, bits, lanes, shape, strides, byte offset.
_TENSOR = struct.Struct("<QiiiBBHQQQ")
_CUDA = 2
_CODES = {0: "i", 1: "u", 2: "f", 6: "b"}  # DLDataTypeCode → numpy's kind
_NUMBERS = {kind: code for code, kind in _CODES.items()}
_NAME = b"dltensor"
_get = ctypes.pythonapi.PyCapsule_GetPointer
_get.restype, _get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def address_of(capsule: Any) -> int:  # noqa: ANN401 - a PyCapsule
    """Return where a tensor of Triton's lies."""
    return int.from_bytes(ctypes.string_at(_get(capsule, _NAME), 8), "little")


def read_capsule(capsule: Any) -> tuple[int, tuple[int, ...], np.dtype[Any]]:  # noqa: ANN401 - a PyCapsule
    """Return address, shape and type of a contiguous tensor; the tensor it was made from keeps it alive."""
    fields = _TENSOR.unpack(ctypes.string_at(_get(capsule, _NAME), _TENSOR.size))
    data, _, _, ndim, code, bits, _, shape, _, offset = fields
    sizes = struct.unpack(f"<{ndim}q", ctypes.string_at(shape, 8 * ndim))
    return data + offset, sizes, np.dtype(f"{_CODES[code]}{bits // 8}")


class Exported:
    """Device memory of ours as a DLPack capsule for Triton, which must have read it before it is written again.

    Args:
        address: Where it lies.
        like: An array of the same shape and type.
        gpu: The GPU's number.
    """

    def __init__(self, address: int, like: Array, gpu: int) -> None:
        self._shape = (ctypes.c_int64 * like.ndim)(*like.shape)
        kind = (_NUMBERS[like.dtype.kind], 8 * like.dtype.itemsize, 1)
        tensor = _TENSOR.pack(address, _CUDA, gpu, like.ndim, *kind, ctypes.addressof(self._shape), 0, 0)
        # DLManagedTensor: the tensor, a context that the deleter may need, and the deleter
        deleter = ctypes.cast(_keep, ctypes.c_void_p).value or 0
        self._managed = ctypes.create_string_buffer(tensor + struct.pack("<QQ", 0, deleter))

    def capsule(self) -> Any:  # noqa: ANN401 - a PyCapsule
        """Return the capsule; this object must outlive it."""
        return _new(ctypes.addressof(self._managed), _NAME, None)


def _nothing(_: int) -> None:
    """Free nothing: the memory is the engine's."""


_keep = _Deleter(_nothing)


class LockedPages:
    """Page-locks the Python backend's shared memory where a tensor is first seen in it.

    Regions are never unmapped while this process lives: when Triton needs more room it maps a larger one beside them.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ranges: list[tuple[int, bool]] = []  # end, locked; in the order of _starts

    def hold(self, address: int, size: int) -> bool:
        """Return whether the GPU may copy ``size`` bytes straight from ``address``."""
        place = bisect_right(self._starts, address) - 1
        if place < 0 or self._ranges[place][0] < address + size:
            self._add(address)
            place = bisect_right(self._starts, address) - 1
        return place >= 0 and self._ranges[place][0] >= address + size and self._ranges[place][1]

    def _add(self, address: int) -> None:
        """Look up the mapping around an address, and lock it if it is the backend's."""
        for line in _MAPS.read_text(encoding="utf-8").splitlines():
            bounds, _, rest = line.partition(" ")
            start, end = (int(part, 16) for part in bounds.split("-"))
            if start <= address < end:
                place = bisect_right(self._starts, start)
                if place and self._starts[place - 1] == start:  # a mapping of the heap's that has grown
                    self._ranges[place - 1] = (end, self._ranges[place - 1][1])
                    return
                self._starts.insert(place, start)
                self._ranges.insert(place, (end, bool(_REGION.search(rest)) and _lock(start, end - start)))
                return


def _lock(start: int, size: int) -> bool:
    """Page-lock a stretch of memory; return whether that worked."""
    status = cudart.cudaHostRegister(start, size, cudart.cudaHostRegisterDefault)[0]
    if status:
        cudart.cudaGetLastError()  # fetched, so that no later call reports it
    return not status
