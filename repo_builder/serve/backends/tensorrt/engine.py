"""One engine instance: a stream, buffers on both sides, an execution context a profile, and CUDA graphs.

A batch is gathered once. Small inputs are copied into page-locked staging and go to the GPU in one piece; large ones go
there straight from where Triton put them, so that the next is prepared while one travels. Inputs on the GPU are copied
there. Instances are processes of their own, so the copies of one's batch overlap the arithmetic of another's.

A CUDA graph is captured for each batch size of the warm-up. A batch of another size runs in the graph of the next
larger one, with rows that are left over from earlier batches: setting shapes and launching kernels one by one costs
more than those.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorrt as trt

from repo_builder.device import ON_DEVICE, TO_DEVICE, TO_HOST, DeviceBuffer, PinnedBuffer, Stream, check, cudart
from repo_builder.serve.backends.tensorrt.memory import LockedPages
from repo_builder.tensors import Array, DType

Shapes = tuple[tuple[int, ...], ...]  # full shapes, one an input or output, in the engine's order

# From this size on, a copy of the GPU's own for each request beats one copy of all after a gathering by the CPU.
DIRECT_BYTES = 64 << 10
# A batch runs in a graph of at most this many times its size.
_PADDING = 4


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
        self._elements: Array = self.host.bytes[: size // dtype.itemsize * dtype.itemsize].view(dtype)
        self._views: dict[tuple[int, ...], Array] = {}

    def view(self, shape: tuple[int, ...]) -> Array:
        """Return the start of the staging buffer as an array of that shape."""
        found = self._views.get(shape)
        if found is None:
            found = self._views[shape] = self._elements[: int(np.prod(shape))].reshape(shape)
        return found


class Lane:
    """An execution context of one profile, bound to the instance's buffers, and the graphs captured in it.

    Args:
        engine: The engine.
        profile: Its optimization profile; before TensorRT 8.6 only one context may use each.
        stream: The instance's stream.
    """

    def __init__(self, engine: Any, profile: int, stream: Stream) -> None:  # noqa: ANN401 - tensorrt.ICudaEngine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise RuntimeError("TensorRT makes no execution context: the GPU's memory may be full")
        self._context.set_optimization_profile_async(profile, stream.handle)
        stream.synchronize()
        self._stream = stream
        self._shapes: Shapes = ()
        self._results: Shapes = ()
        self.graphs: dict[Shapes, tuple[Any, Shapes]] = {}  # inputs' shapes → graph, outputs' shapes

    def bind(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Tell the context where the buffers are."""
        for item in (*inputs, *outputs):
            self._context.set_tensor_address(item.name, item.device.handle)

    def set(self, names: tuple[Sequence[str], Sequence[str]], shapes: Shapes) -> Shapes:
        """Set the inputs' shapes and return the outputs'; ``names`` are those of inputs and outputs."""
        if shapes != self._shapes:
            for name, shape in zip(names[0], shapes, strict=True):
                if not self._context.set_input_shape(name, shape):
                    raise ValueError(f"the engine does not take {name} of shape {list(shape)}")
            self._shapes = shapes
            self._results = tuple(tuple(self._context.get_tensor_shape(name)) for name in names[1])
        return self._results

    def run(self) -> None:
        """Put a run with the shapes set last into the stream."""
        if not self._context.execute_async_v3(self._stream.handle):
            raise RuntimeError("TensorRT does not run the engine")

    def capture(self, shapes: Shapes, results: Shapes) -> None:
        """Record the run for the shapes set last as a CUDA graph, after one plain run, which TensorRT needs first."""
        self.run()
        self._stream.synchronize()
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(self._stream.handle, mode))
        try:
            self.run()
        finally:
            graph = check(cudart.cudaStreamEndCapture(self._stream.handle))
        self.graphs[shapes] = check(cudart.cudaGraphInstantiate(graph, 0)), results
        check(cudart.cudaGraphDestroy(graph))


class Engine:
    """A plan that is ready to run batches, one at a time.

    Args:
        plan: The plan file.
        gpu: The GPU's number.
        profiles: The optimization profiles to use.
        batches: Whether the first dimension of every tensor counts samples.

    Raises:
        RuntimeError: The plan is not for this TensorRT and GPU.
    """

    def __init__(self, plan: Path, *, gpu: int, profiles: Sequence[int], batches: bool) -> None:
        check(cudart.cudaSetDevice(gpu))
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise RuntimeError(
                f"TensorRT {trt.__version__} cannot load {plan} (its reason stands above in the log); "
                "build it on this machine with repo-builder compile"
            )
        self._engine, self._batches = engine, batches
        self._stream = Stream()
        self._locked = LockedPages()
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        taken = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        given = [name for name in names if name not in taken]
        self._names = (taken, given)
        self._limits = {
            place: tuple(tuple(map(tuple, engine.get_tensor_profile_shape(name, place)[::2])) for name in taken)
            for place in profiles
        }
        self._lanes = {place: Lane(engine, place, self._stream) for place in profiles}
        largest = [self._largest(place) for place in profiles]
        sizes = [[int(np.prod(shape)) for shape in shapes] for shapes in largest]
        tensors = [
            self._tensor(name, max(counts))
            for name, counts in zip(taken + given, zip(*sizes, strict=True), strict=True)
        ]
        self.inputs, self.outputs = tensors[: len(taken)], tensors[len(taken) :]
        for lane in self._lanes.values():
            lane.bind(self.inputs, self.outputs)

    def _largest(self, profile: int) -> Shapes:
        """Return the largest shapes of all tensors in a profile."""
        inputs = tuple(high for _, high in self._limits[profile])
        outputs = self._lanes[profile].set(self._names, inputs)
        for name, shape in zip(self._names[1], outputs, strict=True):
            if any(size < 0 for size in shape):
                raise RuntimeError(f"the size of the output '{name}' depends on data, which this backend cannot serve")
        return inputs + outputs

    def _tensor(self, name: str, count: int) -> Tensor:
        dtype = DType.of(self._engine.get_tensor_dtype(name).name).numpy
        return Tensor(name, dtype, count * dtype.itemsize)

    def profile_for(self, shapes: Shapes) -> int | None:
        """Return the first profile that covers the inputs' shapes, None where none does."""
        for place, limits in self._limits.items():
            pairs = zip(shapes, limits, strict=True)
            if all(len(shape) == len(low) and all(map(_between, low, shape, high)) for shape, (low, high) in pairs):
                return place
        return None

    def capture(self, shapes: Shapes) -> None:
        """Record a CUDA graph for these shapes.

        Raises:
            ValueError: No profile covers them.
            RuntimeError: The engine cannot be captured.
        """
        lane = self._lanes[self._profile(shapes)]
        lane.capture(shapes, lane.set(self._names, shapes))

    def _profile(self, shapes: Shapes) -> int:
        profile = self.profile_for(shapes)
        if profile is None:
            raise ValueError(f"no optimization profile of the engine covers {[list(shape) for shape in shapes]}")
        return profile

    def start(self, shapes: Shapes, requests: Sequence[Sequence[Piece]]) -> Shapes:
        """Enqueue a batch: copies to the GPU and the run. Return the outputs' shapes.

        Args:
            shapes: The batch's full shapes.
            requests: For each request one piece an input; together they make up the batch.

        Raises:
            ValueError: No profile covers the shapes.
        """
        lane = self._lanes[self._profile(shapes)]
        found = self._graph(lane, shapes)
        results = lane.set(self._names, shapes) if found is None else found[1]
        for place, tensor in enumerate(self.inputs):
            self._gather(tensor, shapes[place], [pieces[place] for pieces in requests])
        if found is None:
            lane.run()
            return results
        check(cudart.cudaGraphLaunch(found[0], self._stream.handle))
        return tuple((shapes[0][0], *shape[1:]) for shape in results) if self._batches else results

    def _graph(self, lane: Lane, shapes: Shapes) -> tuple[Any, Shapes] | None:
        """Return the graph of these shapes, or of the next larger batch of them; None where there is none."""
        found = lane.graphs.get(shapes)
        if found is not None or not self._batches:
            return found
        count, tails = shapes[0][0], [shape[1:] for shape in shapes]
        larger = (
            item
            for item in lane.graphs
            if count < item[0][0] <= _PADDING * count and [shape[1:] for shape in item] == tails
        )
        chosen = min(larger, default=None)
        if chosen is not None:
            lane.graphs[shapes] = lane.graphs[chosen]
        return lane.graphs.get(shapes)

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
        if len(arrays) == len(pieces) and shape:
            whole = tensor.view(shape)
            np.concatenate(arrays, out=whole)
            self._copy(tensor.device.handle, tensor.host.handle, whole.nbytes, TO_DEVICE)
            return
        offset = 0
        for array, address, size, on_gpu in pieces:
            source = address
            if array is not None or not (on_gpu or self._locked.hold(address, size)):
                source = tensor.host.handle + offset
                ctypes.memmove(source, address if array is None else array.ctypes.data, size)
            self._copy(tensor.device.handle + offset, source, size, ON_DEVICE if on_gpu else TO_DEVICE)
            offset += size

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:  # noqa: ANN401 - cudaMemcpyKind
        check(cudart.cudaMemcpyAsync(target, source, size, kind, self._stream.handle))


def _between(low: int, size: int, high: int) -> bool:
    return low <= size <= high
