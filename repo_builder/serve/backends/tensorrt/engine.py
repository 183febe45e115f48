"""One engine instance: a stream, buffers on both sides, an execution context a profile, and CUDA graphs.

A batch is gathered once. Small inputs are copied into page-locked staging and go to the GPU in one piece; large ones go
there straight from where Triton put them, each as soon as it is enqueued, so that the next is prepared meanwhile.
Inputs on the GPU are copied there. Instances are processes of their own, so the copies of one instance's batch overlap
the arithmetic of another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorrt as trt

from repo_builder.device import ON_DEVICE, TO_DEVICE, TO_HOST, DeviceBuffer, PinnedBuffer, Stream, check, cudart
from repo_builder.serve.backends.tensorrt.memory import LockedPages
from repo_builder.tensors import Array, DType

Shapes = tuple[tuple[int, ...], ...]  # full shapes, one an input, in the engine's order

# From this size on, one copy of the GPU's own beats a copy into staging by the CPU.
_DIRECT_BYTES = 64 << 10


class Piece(NamedTuple):
    """One request's share of one input.

    Attributes:
        array: The values, where they are in host memory.
        address: Where they are on the GPU, if ``array`` is None.
        size: Bytes.
    """

    array: Array | None
    address: int
    size: int


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
        self._elements: Array = self.host.bytes[: size // dtype.itemsize * dtype.itemsize].view(dtype)
        self._views: dict[tuple[int, ...], Array] = {}

    def view(self, shape: tuple[int, ...]) -> Array:
        """Return the start of the staging buffer as an array of that shape."""
        found = self._views.get(shape)
        if found is None:
            found = self._views[shape] = self._elements[: int(np.prod(shape))].reshape(shape)
        return found


class Lane:
    """An execution context bound to the instance's buffers.

    Args:
        engine: The engine.
        profile: Its optimization profile.
        stream: The instance's stream.
    """

    def __init__(self, engine: Engine, profile: int, stream: Stream) -> None:
        self._inputs, self._outputs, self._stream = engine.inputs, engine.outputs, stream
        self._context = engine.cuda_engine.create_execution_context()
        if self._context is None:
            raise RuntimeError("TensorRT makes no execution context: the GPU's memory may be full")
        if profile:
            self._context.set_optimization_profile_async(profile, stream.handle)
            stream.synchronize()
        for item in (*engine.inputs, *engine.outputs):
            self._context.set_tensor_address(item.name, item.device.handle)
        self._shapes: Shapes = ()
        self._results: Shapes = ()
        self._graph: Any = None

    def set(self, shapes: Shapes) -> Shapes:
        """Set the inputs' shapes and return the outputs'."""
        if shapes != self._shapes:
            for item, shape in zip(self._inputs, shapes, strict=True):
                if not self._context.set_input_shape(item.name, shape):
                    raise ValueError(f"the engine does not take {item.name} of shape {list(shape)}")
            self._shapes = shapes
            self._results = tuple(tuple(self._context.get_tensor_shape(item.name)) for item in self._outputs)
        return self._results

    def enqueue(self) -> None:
        """Put a run into the stream: the graph's, where one was captured for the shapes."""
        if self._graph is not None:
            check(cudart.cudaGraphLaunch(self._graph, self._stream.handle))
        elif not self._context.execute_async_v3(self._stream.handle):
            raise RuntimeError("TensorRT does not run the engine")

    def capture(self, shapes: Shapes) -> None:
        """Record the run for these shapes as a CUDA graph, after one plain run, which TensorRT needs first."""
        self.set(shapes)
        self.enqueue()
        self._stream.synchronize()
        check(
            cudart.cudaStreamBeginCapture(
                self._stream.handle, cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            )
        )
        ran = self._context.execute_async_v3(self._stream.handle)
        graph = check(cudart.cudaStreamEndCapture(self._stream.handle))
        if not ran:
            raise RuntimeError("TensorRT does not run the engine inside a graph")
        self._graph = check(cudart.cudaGraphInstantiate(graph, 0))
        check(cudart.cudaGraphDestroy(graph))


class Engine:
    """A plan that is ready to run batches, one at a time.

    Args:
        plan: The plan file.
        gpu: The GPU's number.
        profiles: The optimization profiles to use.

    Raises:
        RuntimeError: The plan is not for this TensorRT and GPU.
    """

    def __init__(self, plan: Path, *, gpu: int, profiles: Sequence[int]) -> None:
        check(cudart.cudaSetDevice(gpu))
        self._log = trt.Logger(trt.Logger.ERROR)
        runtime = trt.Runtime(self._log)
        self.cuda_engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        if self.cuda_engine is None:
            raise RuntimeError(
                f"TensorRT {trt.__version__} cannot load {plan} (its reason stands above in the log); "
                "build it on this machine with repo-builder compile"
            )
        self._stream = Stream()
        self._locked = LockedPages()
        engine = self.cuda_engine
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        taken = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._limits = {
            place: tuple(tuple(map(tuple, engine.get_tensor_profile_shape(name, place)[::2])) for name in taken)
            for place in profiles
        }
        largest = tuple(
            tuple(np.max([limit[k][1] for limit in self._limits.values()], axis=0)) for k in range(len(taken))
        )
        self.inputs = [self._tensor(name, shape) for name, shape in zip(taken, largest, strict=True)]
        self.outputs: list[Tensor] = []
        self.outputs = self._measure_outputs([name for name in names if name not in taken])
        self._lanes = {place: Lane(self, place, self._stream) for place in profiles}
        self._graphs: dict[Shapes, Lane] = {}

    def _tensor(self, name: str, shape: Sequence[int]) -> Tensor:
        dtype = DType.of(self.cuda_engine.get_tensor_dtype(name).name).numpy
        return Tensor(name, dtype, int(np.prod(shape)) * dtype.itemsize)

    def _measure_outputs(self, names: Sequence[str]) -> list[Tensor]:
        """Make the outputs' buffers as large as any profile's largest batch makes them."""
        sizes: dict[str, tuple[int, ...]] = {}
        for place, limits in self._limits.items():
            context = self.cuda_engine.create_execution_context()
            if place:
                context.set_optimization_profile_async(place, self._stream.handle)
                self._stream.synchronize()
            for item, (_, high) in zip(self.inputs, limits, strict=True):
                context.set_input_shape(item.name, high)
            for name in names:
                shape = tuple(context.get_tensor_shape(name))
                if any(size < 0 for size in shape):
                    raise RuntimeError(
                        f"the size of the output '{name}' depends on data, which this backend cannot serve"
                    )
                sizes[name] = max(sizes.get(name, ()), shape, key=lambda item: int(np.prod(item)) if item else 0)
        return [self._tensor(name, sizes[name]) for name in names]

    def profile_for(self, shapes: Shapes) -> int | None:
        """Return the first profile that covers the inputs' shapes, None where none does."""
        for place, limits in self._limits.items():
            pairs = zip(shapes, limits, strict=True)
            if all(len(shape) == len(low) and all(map(_between, low, shape, high)) for shape, (low, high) in pairs):
                return place
        return None

    def capture(self, shapes: Shapes) -> bool:
        """Record a CUDA graph for these shapes, in a context of its own; return whether there is one now."""
        profile = self.profile_for(shapes)
        if profile is None or shapes in self._graphs:
            return profile is not None
        lane = Lane(self, profile, self._stream)
        lane.capture(shapes)
        self._graphs[shapes] = lane
        return True

    def start(self, shapes: Shapes, requests: Sequence[Sequence[Piece]]) -> Shapes:
        """Enqueue a batch: copies to the GPU and the run. Return the outputs' shapes.

        Args:
            shapes: The batch's full shapes.
            requests: For each request one piece an input; together they make up the batch.

        Raises:
            ValueError: No profile covers the shapes.
        """
        lane = self._graphs.get(shapes)
        if lane is None:
            profile = self.profile_for(shapes)
            if profile is None:
                raise ValueError(f"no optimization profile of the engine covers {[list(shape) for shape in shapes]}")
            lane = self._lanes[profile]
        results = lane.set(shapes)
        for place, tensor in enumerate(self.inputs):
            self._gather(tensor, shapes[place], [pieces[place] for pieces in requests])
        lane.enqueue()
        return results

    def finish(self, shapes: Shapes, on_host: Sequence[bool]) -> list[Array]:
        """Wait for the batch and return its outputs in page-locked memory that the next batch overwrites.

        Args:
            shapes: The outputs' shapes, as ``start`` returned them.
            on_host: For each output whether its values are wanted here; where not, the array tells shape and type only.
        """
        arrays = [item.view(shape) for item, shape in zip(self.outputs, shapes, strict=True)]
        for item, array, wanted in zip(self.outputs, arrays, on_host, strict=True):
            if wanted:
                self._copy(item.host.handle, item.device.handle, array.nbytes, TO_HOST)
        self._stream.synchronize()
        return arrays

    def _gather(self, tensor: Tensor, shape: tuple[int, ...], pieces: Sequence[Piece]) -> None:
        """Copy the requests' pieces of one input, side by side, to the GPU."""
        arrays = [piece.array for piece in pieces if piece.array is not None]
        if len(arrays) == len(pieces) and shape and sum(piece.size for piece in pieces) < _DIRECT_BYTES * len(pieces):
            whole = tensor.view(shape)
            np.concatenate(arrays, out=whole)
            self._copy(tensor.device.handle, tensor.host.handle, whole.nbytes, TO_DEVICE)
            return
        offset = 0
        for piece in pieces:
            source, kind = piece.address, ON_DEVICE
            if piece.array is not None:
                source, kind = piece.array.ctypes.data, TO_DEVICE
                if not self._locked.holds(source, piece.size):
                    tensor.host.bytes[offset : offset + piece.size] = piece.array.reshape(-1).view(np.uint8)
                    source = tensor.host.handle + offset
            self._copy(tensor.device.handle + offset, source, piece.size, kind)
            offset += piece.size

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:  # noqa: ANN401 - cudaMemcpyKind
        check(cudart.cudaMemcpyAsync(target, source, size, kind, self._stream.handle))


def _between(low: int, size: int, high: int) -> bool:
    return low <= size <= high
