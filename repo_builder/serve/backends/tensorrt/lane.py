"""An execution context of one optimization profile, and the CUDA graphs captured in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from repo_builder.core.device import TO_DEVICE, TO_HOST, Graph, Stream, captured, copy
from repo_builder.serve.backends.tensorrt.slots import Shapes, Slot

# Up to this size, kernels that reach into the host's memory beat a copy before or after them.
REACH_BYTES = 64 << 10


class Graphs(NamedTuple):
    """What was captured for one set of buffers and the inputs' shapes.

    Attributes:
        run: The run on the buffers on the GPU.
        round: From the staging buffers into the staging buffers: one launch is all that a small batch costs.
        results: Shapes of the outputs.
    """

    run: Graph
    round: Graph
    results: Shapes


class Lane:
    """An execution context of one profile, and the graphs captured in it.

    Args:
        engine: The engine.
        profile: Its optimization profile; before TensorRT 8.6 only one context may use each.
        stream: The stream of all arithmetic.
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
        # number of the slot, inputs' shapes → what was captured for them, and what is used for them without
        self.graphs: dict[tuple[int, Shapes], Graphs] = {}
        self.larger: dict[tuple[int, Shapes], Graphs] = {}

    def set(self, names: tuple[Sequence[str], Sequence[str]], shapes: Shapes) -> Shapes:
        """Set the inputs' shapes and return the outputs'; ``names`` are those of inputs and outputs."""
        if shapes != self._shapes:
            for name, shape in zip(names[0], shapes, strict=True):
                if not self._context.set_input_shape(name, shape):
                    raise ValueError(f"the engine does not take {name} of shape {list(shape)}")
            self._shapes = shapes
            self._results = tuple(tuple(self._context.get_tensor_shape(name)) for name in names[1])
        return self._results

    def run(self, slot: Slot, on_host: Sequence[str] = ()) -> None:
        """Put a run with the shapes set last into the stream; tensors named in ``on_host`` are used in staging."""
        for item in (*slot.inputs, *slot.outputs):
            buffer = item.host if item.name in on_host else item.device
            self._context.set_tensor_address(item.name, buffer.handle)
        if not self._context.execute_async_v3(self._stream.handle):
            raise RuntimeError("TensorRT does not run the engine")

    def capture(self, slot: Slot, shapes: Shapes, results: Shapes) -> None:
        """Record CUDA graphs for the shapes set last, after one plain run, which TensorRT needs first."""
        self.run(slot)
        self._stream.synchronize()
        self.graphs[slot.number, shapes] = Graphs(
            captured(self._stream, lambda: self.run(slot)),
            captured(self._stream, lambda: self._go_round(slot, shapes, results)),
            results,
        )

    def _go_round(self, slot: Slot, shapes: Shapes, results: Shapes) -> None:
        """Put copies from staging, a run, and copies to staging into the stream; small tensors need no copies."""
        there = list(zip(slot.inputs, shapes, strict=True))
        back = list(zip(slot.outputs, results, strict=True))
        sizes = {item.name: item.view(shape).nbytes for item, shape in (*there, *back)}
        small = [name for name, size in sizes.items() if size <= REACH_BYTES]
        for item, _ in there:
            if item.name not in small:
                copy(item.device.handle, item.host.handle, sizes[item.name], TO_DEVICE, self._stream)
        self.run(slot, on_host=small)
        for item, _ in back:
            if item.name not in small:
                copy(item.host.handle, item.device.handle, sizes[item.name], TO_HOST, self._stream)

    def launch(self, graph: Graph) -> None:
        """Put a captured graph into the stream."""
        graph.launch(self._stream)
