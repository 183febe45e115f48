# ruff: noqa: N801, N815, N816 - the names are CUDA's
"""The CUDA calls that the tensorrt backend makes, on host memory: "device" addresses are addresses of this process.

What is put into a stream happens as late as CUDA allows: when that stream, or an event in it, is waited for, by the
host or by another stream. Memory that is given back too early is then read when it holds something else, and a stream
that should have waited for another runs before it. What is put into a stream that is captured goes into the graph.
"""

import ctypes
import enum
import itertools
import threading
from collections import defaultdict, deque


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

_memory: dict[int, object] = {}
_graphs: dict[int, list] = {}
_captured: dict[int, list] = {}  # stream that is captured → what has been put into it
_numbers = itertools.count(1)
_lock = threading.RLock()
_waiting: dict[int, deque] = defaultdict(deque)  # stream → what has been put into it and has not happened yet
_put: dict[int, int] = defaultdict(int)  # stream → how many of those there have been
_happened: dict[int, int] = defaultdict(int)  # stream → how many have happened
_marks: dict[int, tuple[int, int]] = {}  # event → its stream, and what has to have happened in it


def _done(*values):
    return (cudaError_t.cudaSuccess, *values)


def put(work, stream):
    """Put work into a stream."""
    with _lock:
        if stream in _captured:
            _captured[stream].append(work)
            return
        _waiting[stream].append(work)
        _put[stream] += 1


def _catch_up(stream, until):
    """Do what is first in a stream until so much of it has happened."""
    with _lock:
        while _happened[stream] < until:
            _waiting[stream].popleft()()
            _happened[stream] += 1
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
    put(lambda: ctypes.memmove(target, source, size), stream)
    return _done()


def cudaStreamCreateWithFlags(flags):
    return _done(next(_numbers))


def cudaStreamSynchronize(stream):
    return _catch_up(stream, _put[stream])


def cudaStreamDestroy(stream):
    return _done()


def cudaEventCreateWithFlags(flags):
    return _done(next(_numbers))


def cudaEventRecord(event, stream):
    _marks[event] = stream, _put[stream]
    return _done()


def cudaEventSynchronize(event):
    return _catch_up(*_marks[event])


def cudaStreamWaitEvent(stream, event, flags):
    mark = _marks[event]  # as it was recorded last: what is recorded later does not count
    put(lambda: _catch_up(*mark), stream)
    return _done()


def cudaStreamBeginCapture(stream, mode):
    _captured[stream] = []
    return _done()


def cudaStreamEndCapture(stream):
    graph = next(_numbers)
    _graphs[graph] = _captured.pop(stream)
    return _done(graph)


def cudaGraphInstantiate(graph, flags):
    return _done(graph)


def cudaGraphDestroy(graph):
    return _done()


def cudaGraphExecDestroy(graph):
    return _done()


def cudaGraphLaunch(graph, stream):
    for run in _graphs[graph]:
        put(run, stream)
    return _done()
