# ruff: noqa: N801, N815, N816 - the names are CUDA's
"""The CUDA calls that the tensorrt backend makes, on host memory: "device" addresses are addresses of this process.

Everything happens at once, in the order of the calls. While a stream is captured, ``RECORDING`` holds what the stand-in
for TensorRT would have run.
"""

import ctypes
import enum
import itertools


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

CALLS: list[str] = []
RECORDING: list | None = None
_memory: dict[int, object] = {}
_graphs: dict[int, list] = {}
_numbers = itertools.count(1)


def _done(*values):
    return (cudaError_t.cudaSuccess, *values)


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
    CALLS.append("register")
    return _done()


def cudaMemcpyAsync(target, source, size, kind, stream):
    CALLS.append(f"copy {kind.name[10:]} {size}")
    ctypes.memmove(target, source, size)
    return _done()


def cudaStreamCreateWithFlags(flags):
    return _done(next(_numbers))


def cudaStreamSynchronize(stream):
    return _done()


def cudaStreamDestroy(stream):
    return _done()


def cudaEventCreateWithFlags(flags):
    return _done(next(_numbers))


def cudaEventRecord(event, stream):
    return _done()


def cudaEventSynchronize(event):
    return _done()


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
    CALLS.append("graph")
    for run in _graphs[graph]:
        run()
    return _done()
