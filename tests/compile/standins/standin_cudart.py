# ruff: noqa: N801, N815, N816 - the names are CUDA's
"""The CUDA calls that the tensorrt backend makes, on host memory: "device" addresses are addresses of this process.

What is put into a stream happens as late as CUDA allows: when a stream, or an event behind it, is waited for. Memory
that is given back too early is then read when it holds something else. While a stream is captured, ``RECORDING`` holds
what the stand-in for TensorRT would have run.
"""

import ctypes
import enum
import itertools
import threading
from collections import deque


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


cudaHostAllocDefault = cudaHostRegisterDefault = cudaEventDefault = 0
cudaStreamNonBlocking = 1
cudaEventDisableTiming = 2

RECORDING: list | None = None
_memory: dict[int, object] = {}
_graphs: dict[int, list] = {}
_numbers = itertools.count(1)
_lock = threading.Lock()
_waiting: deque = deque()  # what has been put into any stream and has not happened yet
_put = _happened = 0  # how many of those there have been, and how many have happened
_marks: dict[int, int] = {}  # event → what has to have happened


def _done(*values):
    return (cudaError_t.cudaSuccess, *values)


def put(work):
    """Put work into a stream; all streams are one, which no program that waits rightly can tell."""
    global _put
    with _lock:
        _waiting.append(work)
        _put += 1


def _catch_up(until):
    global _happened
    with _lock:
        while _happened < until:
            _waiting.popleft()()
            _happened += 1
    return _done()


def cudaGetErrorString(status):
    return _done(b"a stand-in's error")


def cudaGetLastError():
    return _done()


def cudaSetDevice(number):
    return _done()


def cudaMalloc(size):
    block = ctypes.create_string_buffer(size)
    _memory[ctypes.addressof(block)] = block
    return _done(ctypes.addressof(block))


def cudaHostAlloc(size, flags):
    return cudaMalloc(size)


def cudaFree(address):
    return _done() if _memory.pop(address, None) else (cudaError_t.cudaErrorInvalidValue,)


cudaFreeHost = cudaFree


def cudaHostRegister(address, size, flags):
    return _done()


def cudaMemcpyAsync(target, source, size, kind, stream):
    put(lambda: ctypes.memmove(target, source, size))
    return _done()


def cudaStreamCreateWithFlags(flags):
    return _done(next(_numbers))


def cudaStreamSynchronize(stream):
    return _catch_up(_put)


def cudaStreamDestroy(stream):
    return _done()


def cudaEventCreateWithFlags(flags):
    return _done(next(_numbers))


def cudaEventRecord(event, stream):
    _marks[event] = _put
    return _done()


def cudaEventSynchronize(event):
    return _catch_up(_marks[event])


def cudaStreamWaitEvent(stream, event, flags):
    return _done()


def cudaStreamBeginCapture(stream, mode):
    global RECORDING
    RECORDING = []
    return _done()


def cudaStreamEndCapture(stream):
    global RECORDING
    graph = next(_numbers)
    _graphs[graph], RECORDING = RECORDING, None
    return _done(graph)


def cudaGraphInstantiate(graph, flags):
    return _done(graph)


def cudaGraphDestroy(graph):
    return _done()


def cudaGraphLaunch(graph, stream):
    for run in _graphs[graph]:
        put(run)
    return _done()
