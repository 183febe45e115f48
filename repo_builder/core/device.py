"""CUDA through cuda-python: checked calls, and buffers, streams and events that free themselves.

A leaf: importing it needs cuda-python, using it a GPU. Everything runs on the current device, which is the first one
that ``CUDA_VISIBLE_DEVICES`` leaves.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from cuda.bindings import runtime as cudart

from repo_builder.core.tensors import Array

__all__ = [
    "ON_DEVICE", "TO_DEVICE", "TO_HOST", "CudaError", "DeviceBuffer", "Event", "Graph", "PinnedBuffer", "Stream",
    "captured", "check", "copy", "cudart", "versions",
]  # fmt: skip

TO_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
TO_HOST = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
ON_DEVICE = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice

R = TypeVar("R", bound="Resource")


class CudaError(RuntimeError):
    """A CUDA call that failed; the message names CUDA's error and what it says."""


def check(result: tuple[Any, ...]) -> Any:  # noqa: ANN401 - whatever the call returns beside its status
    """Return what a cudart call gave beside its status: nothing, one value, or a tuple of them.

    Raises:
        CudaError: The status is not success.
    """
    status, *values = result
    if status:
        said = cudart.cudaGetErrorString(status)[1]
        raise CudaError(f"{status.name}: {said.decode() if isinstance(said, bytes) else said}")
    if not values:
        return None
    return values[0] if len(values) == 1 else tuple(values)


def copy(target: int, source: int, size: int, kind: Any, stream: Stream) -> None:  # noqa: ANN401 - cudaMemcpyKind
    """Put a copy of so many bytes into a stream; ``kind`` is one of ``TO_DEVICE``, ``TO_HOST`` and ``ON_DEVICE``."""
    check(cudart.cudaMemcpyAsync(target, source, size, kind, stream.handle))


def versions() -> dict[str, str]:
    """Return the CUDA versions of the runtime library and of the driver, as in ``12.9``.

    Raises:
        CudaError: There is no driver.
    """
    found = {"runtime": check(cudart.cudaRuntimeGetVersion()), "driver": check(cudart.cudaDriverGetVersion())}
    return {name: f"{number // 1000}.{number % 1000 // 10}" for name, number in found.items()}


class Resource:
    """Something of CUDA's that must be given back: ``handle`` is what cudart calls take."""

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 - a pointer or one of cudart's handle classes
        self.handle = handle

    def free(self) -> None:
        """Give it back; more than once does no harm."""
        handle, self.handle = self.handle, None
        if handle is not None:
            self._release(handle)

    def _release(self, handle: Any) -> None:  # noqa: ANN401 - as in __init__
        raise NotImplementedError

    def __enter__(self: R) -> R:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        self.free()


class DeviceBuffer(Resource):
    """Memory on the GPU; ``handle`` is its address.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int) -> None:
        super().__init__(check(cudart.cudaMalloc(max(size, 1))))
        self.size = size

    def _release(self, handle: Any) -> None:  # noqa: ANN401
        check(cudart.cudaFree(handle))


class PinnedBuffer(Resource):
    """Page-locked memory of the host, which the GPU copies from and to without the CPU; ``handle`` is its address.

    Args:
        size: Bytes.
    """

    def __init__(self, size: int) -> None:
        super().__init__(check(cudart.cudaHostAlloc(max(size, 1), cudart.cudaHostAllocDefault)))
        self.size = size
        self.bytes: Array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.handle))

    def _release(self, handle: Any) -> None:  # noqa: ANN401
        check(cudart.cudaFreeHost(handle))


class Stream(Resource):
    """A queue of work on the GPU that does not wait for the default stream."""

    def __init__(self) -> None:
        super().__init__(check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking)))

    def wait(self, event: Event) -> None:
        """Make what is put in from now on wait for a mark in another stream."""
        check(cudart.cudaStreamWaitEvent(self.handle, event.handle, 0))

    def synchronize(self) -> None:
        """Wait until everything in the queue is done."""
        check(cudart.cudaStreamSynchronize(self.handle))

    def _release(self, handle: Any) -> None:  # noqa: ANN401
        check(cudart.cudaStreamDestroy(handle))


class Event(Resource):
    """A mark in a stream.

    Args:
        timed: Whether the time between two marks can be asked for.
    """

    def __init__(self, *, timed: bool = False) -> None:
        flags = cudart.cudaEventDefault if timed else cudart.cudaEventDisableTiming
        super().__init__(check(cudart.cudaEventCreateWithFlags(flags)))

    def record(self, stream: Stream) -> None:
        """Put the mark at the end of a stream."""
        check(cudart.cudaEventRecord(self.handle, stream.handle))

    def synchronize(self) -> None:
        """Wait until the stream has come to the mark."""
        check(cudart.cudaEventSynchronize(self.handle))

    def since(self, earlier: Event) -> float:
        """Return the time from an earlier mark to this one on the GPU, milliseconds; both must have been reached."""
        return float(check(cudart.cudaEventElapsedTime(earlier.handle, self.handle)))

    def _release(self, handle: Any) -> None:  # noqa: ANN401
        check(cudart.cudaEventDestroy(handle))


class Graph(Resource):
    """Work that was captured from a stream, to be started as a whole; ``captured`` makes it."""

    def launch(self, stream: Stream) -> None:
        """Put it into a stream."""
        check(cudart.cudaGraphLaunch(self.handle, stream.handle))

    def _release(self, handle: Any) -> None:  # noqa: ANN401
        check(cudart.cudaGraphExecDestroy(handle))


def captured(stream: Stream, work: Callable[[], None]) -> Graph:
    """Return what a call puts into a stream, which does not run it.

    Args:
        stream: The stream; it takes work again when this returns and when it raises.
        work: Puts it in.

    Raises:
        CudaError: Something in it cannot be captured.
    """
    check(cudart.cudaStreamBeginCapture(stream.handle, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal))
    try:
        work()
    except BaseException:
        cudart.cudaStreamEndCapture(stream.handle)  # what went wrong is being raised; the stream is free again
        raise
    graph = check(cudart.cudaStreamEndCapture(stream.handle))
    try:
        return Graph(check(cudart.cudaGraphInstantiate(graph, 0)))
    finally:
        check(cudart.cudaGraphDestroy(graph))
