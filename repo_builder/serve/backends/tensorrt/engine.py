"""One engine instance: three streams, two sets of buffers, an execution context a profile, and CUDA graphs.

A batch is gathered once. Small inputs are copied into page-locked staging and go to the GPU in one piece; large ones go
there straight from where Triton put them, so that the next is prepared while one travels. Inputs on the GPU are copied
there. A batch of large inputs is answered from behind: its copies to the GPU and back go through streams of their own,
in the set of buffers that its neighbours do not use, and so overlap the arithmetic of the batches before and after it.

CUDA graphs are captured for each batch size of the warm-up: of the run, and of the way from the staging buffers through
the run into the staging buffers, which is all that a small batch takes: between several launches the GPU would turn to
other processes. A batch of another size runs in the graph of the next larger one, with rows that are left over from
earlier batches: setting shapes and launching kernels one by one costs more than those.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import tensorrt as trt

from repo_builder.core.device import ON_DEVICE, TO_DEVICE, TO_HOST, Stream, check, copy, cudart
from repo_builder.core.tensors import Array, DType
from repo_builder.serve.backends.tensorrt.lane import Graphs, Lane
from repo_builder.serve.backends.tensorrt.memory import LockedPages
from repo_builder.serve.backends.tensorrt.slots import Batch, Piece, Shapes, Slot, Tensor

# From this size on, a copy of the GPU's own for each request beats one copy of all after a gathering by the CPU.
DIRECT_BYTES = 64 << 10
# From this size on, an output that may stay on the GPU does; below it, the further exchange with Triton costs more.
STAY_BYTES = 64 << 10
# A batch runs in a graph of at most this many times its size.
_PADDING = 4
# Sets of buffers: one in the GPU's hands while the next is filled.
SLOTS = 2


class Engine:
    """A plan that is ready to run batches: one in each set of buffers at a time.

    Args:
        plan: The plan file.
        gpu: The GPU's number.
        profiles: The optimization profiles to use.
        batches: Whether the first dimension of every tensor counts samples.

    Raises:
        RuntimeError: The plan is not for this TensorRT and GPU.
    """

    def __init__(self, plan: Path, *, gpu: int, profiles: Sequence[int], batches: bool) -> None:
        use_gpu(gpu)
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise RuntimeError(
                f"TensorRT {trt.__version__} cannot load {plan} (its reason stands above in the log); "
                "build it on this machine with repo-builder compile"
            )
        self._engine, self._batches = engine, batches
        self._arithmetic, self._there, self._back = Stream(), Stream(), Stream()
        self._locked = LockedPages()
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        taken = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._names = (taken, [name for name in names if name not in taken])
        self._limits = {
            place: tuple(tuple(map(tuple, engine.get_tensor_profile_shape(name, place)[::2])) for name in taken)
            for place in profiles
        }
        self._lanes = {place: Lane(engine, place, self._arithmetic) for place in profiles}
        counts = [[int(np.prod(shape)) for shape in self._largest(place)] for place in profiles]
        self._slots = [self._slot(number, [max(item) for item in zip(*counts, strict=True)]) for number in range(SLOTS)]
        self.inputs, self.outputs = self._slots[0].inputs, self._slots[0].outputs
        self._free: SimpleQueue[Slot] = SimpleQueue()
        for slot in self._slots:
            for item in (*slot.inputs, *slot.outputs):  # rows that no request has filled yet run too
                copy(item.device.handle, item.host.handle, item.host.size, TO_DEVICE, self._arithmetic)
            self._free.put(slot)
        self._arithmetic.synchronize()

    def _largest(self, profile: int) -> Shapes:
        """Return the largest shapes of all tensors in a profile."""
        inputs = tuple(high for _, high in self._limits[profile])
        outputs = self._lanes[profile].set(self._names, inputs)
        for name, shape in zip(self._names[1], outputs, strict=True):
            if any(size < 0 for size in shape):
                raise RuntimeError(f"the size of the output '{name}' depends on data, which this backend cannot serve")
        return inputs + outputs

    def _slot(self, number: int, counts: Sequence[int]) -> Slot:
        """Make a set of buffers for that many elements a tensor."""
        tensors = []
        for name, count in zip(self._names[0] + self._names[1], counts, strict=True):
            dtype = DType.of(self._engine.get_tensor_dtype(name).name).numpy
            tensors.append(Tensor(name, dtype, count * dtype.itemsize))
        inputs = len(self._names[0])
        return Slot(number, tensors[:inputs], tensors[inputs:])

    def profile_for(self, shapes: Shapes) -> int | None:
        """Return the first profile that covers the inputs' shapes, None where none does."""
        for place, limits in self._limits.items():
            pairs = zip(shapes, limits, strict=True)
            if all(len(shape) == len(low) and all(map(_between, low, shape, high)) for shape, (low, high) in pairs):
                return place
        return None

    def capture(self, shapes: Shapes) -> None:
        """Record a CUDA graph for these shapes in each set of buffers.

        Raises:
            ValueError: No profile covers them.
            RuntimeError: The engine cannot be captured.
        """
        lane = self._lane(shapes)
        for slot in self._slots:
            lane.capture(slot, shapes, lane.set(self._names, shapes))

    def _lane(self, shapes: Shapes) -> Lane:
        profile = self.profile_for(shapes)
        if profile is None:
            raise ValueError(f"no optimization profile of the engine covers {[list(shape) for shape in shapes]}")
        return self._lanes[profile]

    def start(self, shapes: Shapes, requests: Sequence[Sequence[Piece]], *, stays: bool, behind: bool) -> Batch:
        """Enqueue a batch in the next free set of buffers: copies to the GPU, the run, copies back.

        Args:
            shapes: The batch's full shapes.
            requests: For each request one piece an input; together they make up the batch. On the host they must live
                until the batch is done; on the GPU they are read when this returns.
            stays: Whether large outputs may stay on the GPU.
            behind: Whether copies may overlap the batches before and after.

        Raises:
            ValueError: No profile covers the shapes.
        """
        lane = self._lane(shapes)
        slot = self._free.get()
        try:
            found = self._graphs(lane, slot, shapes)
            results = lane.set(self._names, shapes) if found is None else self._cut(found.results, shapes)
            if found and not behind and all(piece.array is not None for pieces in requests for piece in pieces):
                for place, tensor in enumerate(slot.inputs):
                    _stage(tensor, shapes[place], [pieces[place].array for pieces in requests])
                lane.launch(found.round)
                slot.done.record(self._arithmetic)
                return Batch(slot, _views(slot, results), [True] * len(results))
            stream = self._there if behind else self._arithmetic
            for place, tensor in enumerate(slot.inputs):
                self._gather(tensor, shapes[place], [pieces[place] for pieces in requests], stream)
            if behind:
                slot.gathered.record(stream)
                self._arithmetic.wait(slot.gathered)
            if found is None:
                lane.run(slot)
            else:
                lane.launch(found.run)
            batch = self._collect(slot, results, len(requests), stays=stays, behind=behind)
            if behind and any(piece.on_gpu for pieces in requests for piece in pieces):
                slot.gathered.synchronize()
        except BaseException:
            self.cancel(slot)
            raise
        return batch

    def _collect(self, slot: Slot, shapes: Shapes, requests: int, *, stays: bool, behind: bool) -> Batch:
        """Enqueue the copies of the outputs, and the mark behind them."""
        arrays = _views(slot, shapes)
        on_host = [not stays or array.nbytes // requests < STAY_BYTES for array in arrays]
        stream = self._back if behind and any(on_host) else self._arithmetic
        if stream is self._back:
            slot.computed.record(self._arithmetic)
            stream.wait(slot.computed)
        for item, array, wanted in zip(slot.outputs, arrays, on_host, strict=True):
            if wanted:
                copy(item.host.handle, item.device.handle, array.nbytes, TO_HOST, stream)
        slot.done.record(stream)
        return Batch(slot, arrays, on_host)

    def release(self, batch: Batch) -> None:
        """Give a batch's buffers back: it is done, and what ``start`` returned is not used any more."""
        self._free.put(batch.slot)

    def cancel(self, slot: Slot) -> None:
        """Give buffers back that nobody will wait for, once nothing that is enqueued uses them or requests any more."""
        for stream in (self._there, self._arithmetic, self._back):
            with contextlib.suppress(RuntimeError):  # after an error of the GPU nothing runs any more
                stream.synchronize()
        self._free.put(slot)

    def _cut(self, results: Shapes, shapes: Shapes) -> Shapes:
        """Return a graph's output shapes with the batch's own number of rows."""
        return tuple((shapes[0][0], *shape[1:]) for shape in results) if self._batches else results

    def _graphs(self, lane: Lane, slot: Slot, shapes: Shapes) -> Graphs | None:
        """Return the graphs of these shapes, or of the next larger batch of them; None where there is none."""
        key = (slot.number, shapes)
        found = lane.graphs.get(key) or lane.larger.get(key)
        if found is None and self._batches:
            count, tails = shapes[0][0], [shape[1:] for shape in shapes]
            fitting = (
                item
                for number, item in lane.graphs
                if number == slot.number
                and count < item[0][0] <= _PADDING * count
                and [shape[1:] for shape in item] == tails
            )
            chosen = min(fitting, default=None)
            if chosen is not None:
                found = lane.larger[key] = lane.graphs[slot.number, chosen]
        return found

    def _gather(self, tensor: Tensor, shape: tuple[int, ...], pieces: Sequence[Piece], stream: Stream) -> None:
        """Copy the requests' pieces of one input, side by side, to the GPU."""
        arrays = [piece.array for piece in pieces if piece.array is not None]
        if len(arrays) == len(pieces):
            size = _stage(tensor, shape, arrays).nbytes
            copy(tensor.device.handle, tensor.host.handle, size, TO_DEVICE, stream)
            return
        offset = 0
        for array, address, size, on_gpu in pieces:
            source = address
            if array is not None or not (on_gpu or self._locked.hold(address, size)):
                source = tensor.host.handle + offset
                ctypes.memmove(source, address if array is None else array.ctypes.data, size)
            copy(tensor.device.handle + offset, source, size, ON_DEVICE if on_gpu else TO_DEVICE, stream)
            offset += size


def use_gpu(number: int) -> None:
    """Make a GPU the calling thread's own."""
    check(cudart.cudaSetDevice(number))


def _stage(tensor: Tensor, shape: tuple[int, ...], arrays: Sequence[Any]) -> Array:
    """Put the requests' arrays side by side into the staging buffer and return all of them."""
    whole = tensor.view(shape)
    if shape:
        np.concatenate(arrays, out=whole)
    else:
        whole[...] = arrays[0]
    return whole


def _views(slot: Slot, shapes: Shapes) -> list[Array]:
    """Return the outputs' staging buffers as arrays."""
    return [item.view(shape) for item, shape in zip(slot.outputs, shapes, strict=True)]


def _between(low: int, size: int, high: int) -> bool:
    return low <= size <= high
