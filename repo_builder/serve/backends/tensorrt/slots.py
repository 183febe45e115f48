"""What a batch passes through: requests' pieces of the inputs, tensors with their buffers, and sets of those."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from repo_builder.core.device import DeviceBuffer, Event, PinnedBuffer
from repo_builder.core.tensors import Array

_VIEWS = 1024  # of a tensor, kept at a time
Shapes = tuple[tuple[int, ...], ...]  # full shapes, one an input or output, in the engine's order


class Piece(NamedTuple):
    """One request's share of one input.

    Attributes:
        array: The values, where they are gathered by the CPU.
        address: Where they are, otherwise.
        size: Bytes.
        on_gpu: Whether the address is on the GPU.
    """

    array: Array | None
    address: int
    size: int
    on_gpu: bool


class Tensor:
    """An input or output of the engine with its buffers.

    Args:
        name: Its name.
        dtype: Its numpy type.
        size: Bytes of the largest batch.
    """

    def __init__(self, name: str, dtype: np.dtype[Any], size: int) -> None:
        self.name = name
        self.dtype = dtype
        self.device = DeviceBuffer(size)
        self.host = PinnedBuffer(size)
        self.host.bytes[:] = 0
        self._elements: Array = self.host.bytes[: size // dtype.itemsize * dtype.itemsize].view(dtype)
        self._views: dict[tuple[int, ...], Array] = {}

    def view(self, shape: tuple[int, ...]) -> Array:
        """Return the start of the staging buffer as an array of that shape."""
        found = self._views.get(shape)
        if found is None:
            if len(self._views) >= _VIEWS:
                self._views.clear()
            found = self._views[shape] = self._elements[: int(np.prod(shape))].reshape(shape)
        return found


class Slot:
    """A set of buffers for one batch.

    Args:
        number: Which of the instance's sets.
        inputs: Inputs, in the engine's order.
        outputs: Outputs, likewise.
    """

    def __init__(self, number: int, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self.number = number
        self.inputs = inputs
        self.outputs = outputs
        self.gathered = Event()
        self.computed = Event()
        self.done = Event()


class Batch(NamedTuple):
    """A batch on its way.

    Attributes:
        slot: The buffers that it uses until ``Engine.release``.
        arrays: Its outputs in page-locked memory, filled once ``done`` is reached.
        on_host: For each output whether it is filled; where not, the array tells shape and type, and where the values
            are on the GPU.
    """

    slot: Slot
    arrays: list[Array]
    on_host: list[bool]
