"""A serialized plan in this process: what it says of itself, and running it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tensorrt as trt

from repo_builder.compile.tensorrt.log import Log
from repo_builder.compile.tensorrt.profiles import choose
from repo_builder.core import device, profiles
from repo_builder.core.errors import CompileError
from repo_builder.core.profiles import Profile
from repo_builder.core.tensors import Array, DType, ShapeProfile, narrowed


@dataclass(frozen=True, kw_only=True)
class PlanTensor:
    """One input or output of an engine.

    Attributes:
        name: Its name.
        dtype: Its element type.
        shape: Its full shape, batch first; -1 where it varies.
        is_input: Whether it is an input.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    is_input: bool


class Plan:
    """A deserialized engine.

    Args:
        data: The serialized plan.
        where: What to call it in an error.

    Raises:
        CompileError: It is no plan, or one for another TensorRT or GPU; TensorRT's own words are given.
    """

    def __init__(self, data: bytes, *, where: str) -> None:
        self.log = Log()
        try:
            self._runtime = trt.Runtime(self.log)
        except TypeError as error:  # pybind11's way to say that TensorRT returned nothing
            raise CompileError(
                f"TensorRT {trt.__version__} makes no runtime: {self.log.last_words()}", where=where
            ) from error
        self.engine = self._runtime.deserialize_cuda_engine(data)
        if self.engine is None:
            raise CompileError(
                f"TensorRT {trt.__version__} cannot load the plan: {self.log.last_words()}",
                where=where,
                hint="build it on this machine: repo-builder compile build/MODEL --target tensorrt",
            )
        names = [self.engine.get_tensor_name(place) for place in range(self.engine.num_io_tensors)]
        self.tensors = tuple(self._tensor(name) for name in names)
        self.inputs = tuple(item for item in self.tensors if item.is_input)
        self.outputs = tuple(item for item in self.tensors if not item.is_input)
        self.profiles = tuple(self._profile(place) for place in range(self.engine.num_optimization_profiles))

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read and deserialize a .plan file."""
        return cls(path.read_bytes(), where=str(path))

    def inspect(self) -> dict[str, Any]:
        """Return the engine inspector's JSON: ``{"Layers": [...], "Bindings": [...]}``.

        TensorRT 8.5 tells no types of tensors whose shapes vary, also where a context with shapes is given; weights'
        types and kernels it tells always.
        """
        inspector = self.engine.create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        found: dict[str, Any] = json.loads(text, strict=False)  # 8.6 writes raw control characters into strings
        return found

    def _tensor(self, name: str) -> PlanTensor:
        return PlanTensor(
            name=name,
            dtype=self._dtype(name),
            shape=tuple(self.engine.get_tensor_shape(name)),
            is_input=self.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
        )

    def _dtype(self, name: str) -> DType:
        kind = self.engine.get_tensor_dtype(name).name
        try:
            return DType.of(kind)
        except KeyError:
            raise CompileError(f"the tensor '{name}' is {kind}, a type that Triton's clients cannot send") from None

    def _profile(self, place: int) -> Profile:
        shapes: Profile = {}
        for item in self.inputs:
            low, opt, high = self.engine.get_tensor_profile_shape(item.name, place)
            shapes[item.name] = ShapeProfile(min=tuple(low), opt=tuple(opt), max=tuple(high))
        return shapes


class Session:
    """An execution context on its own stream, with device buffers as large as its profile allows.

    Args:
        plan: The plan; it must outlive the session.
        profile: Which of its optimization profiles.

    Raises:
        CompileError: TensorRT makes no context, or an output's size depends on data.
    """

    def __init__(self, plan: Plan, profile: int = 0) -> None:
        self.plan = plan
        self.profile = plan.profiles[profile]
        self.stream = device.Stream()
        self.context = plan.engine.create_execution_context()
        if self.context is None:
            raise CompileError(f"TensorRT makes no execution context: {plan.log.last_words()}")
        self.context.set_optimization_profile_async(profile, self.stream.handle)
        self.stream.synchronize()
        largest = self.set_shapes({name: shape.max for name, shape in self.profile.items()})
        self.buffers: dict[str, device.DeviceBuffer] = {}
        for item in plan.tensors:
            shape = largest[item.name]
            if any(size < 0 for size in shape):
                raise CompileError(f"the size of the output '{item.name}' depends on data, which is not supported")
            self.buffers[item.name] = device.DeviceBuffer(int(np.prod(shape)) * item.dtype.numpy.itemsize)
            self.context.set_tensor_address(item.name, self.buffers[item.name].handle)

    def set_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Set the inputs' full shapes and return those of all tensors.

        Raises:
            CompileError: The profile does not cover them.
        """
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise CompileError(f"the profile does not cover {name} {list(shape)}: {self.plan.log.last_words()}")
        return {item.name: tuple(self.context.get_tensor_shape(item.name)) for item in self.plan.tensors}

    def enqueue(self) -> None:
        """Put one run, with the shapes set last, into the stream.

        Raises:
            CompileError: TensorRT refuses.
        """
        if not self.context.execute_async_v3(self.stream.handle):
            raise CompileError(f"TensorRT does not run the engine: {self.plan.log.last_words()}")

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch that the profile covers, with copies to and from the GPU; wait for it.

        Raises:
            CompileError: A whole number does not fit into the engine's type.
        """
        ready = {item.name: _as_engine_takes(inputs[item.name], item) for item in self.plan.inputs}
        shapes = self.set_shapes({name: array.shape for name, array in ready.items()})
        outputs = {item.name: np.empty(shapes[item.name], item.dtype.numpy) for item in self.plan.outputs}
        for name, array in ready.items():
            device.copy(self.buffers[name].handle, array.ctypes.data, array.nbytes, device.TO_DEVICE, self.stream)
        self.enqueue()
        for name, array in outputs.items():
            device.copy(array.ctypes.data, self.buffers[name].handle, array.nbytes, device.TO_HOST, self.stream)
        self.stream.synchronize()
        return outputs

    def close(self) -> None:
        """Give back the context, the stream and the buffers."""
        self.stream.synchronize()
        del self.context
        for buffer in self.buffers.values():
            buffer.free()
        self.stream.free()


def _as_engine_takes(array: Array, tensor: PlanTensor) -> Array:
    try:
        return np.ascontiguousarray(narrowed(array, tensor.dtype), dtype=tensor.dtype.numpy)
    except ValueError as error:
        raise CompileError(f"{error}, the type of '{tensor.name}' in TensorRT {trt.__version__}") from None


class PlanRunner:
    """Runs any number of samples through a plan, in batches that one of its profiles covers.

    Args:
        model_file: The plan.
    """

    def __init__(self, model_file: Path) -> None:
        self.plan = Plan.load(model_file)
        self._sessions: dict[int, Session] = {}

    def __call__(self, inputs: dict[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Run samples, batch first, and return the outputs that are wanted, or all, by name.

        Raises:
            CompileError: No profile covers the samples' shape.
        """
        count = len(next(iter(inputs.values())))
        largest = profiles.max_batch(self.plan.profiles)
        parts = [
            self._batch({name: array[start : start + largest] for name, array in inputs.items()})
            for start in range(0, count, largest)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs or parts[0]}

    def _batch(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run one batch; one smaller than the smallest that any profile takes is filled up with its last sample."""
        count = len(next(iter(inputs.values())))
        smallest = profiles.min_batch(self.plan.profiles)
        if count < smallest:
            inputs = {
                name: np.concatenate([array, np.repeat(array[-1:], smallest - count, axis=0)])
                for name, array in inputs.items()
            }
        return {name: array[:count] for name, array in self.whole(inputs).items()}

    def whole(self, inputs: dict[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Run whole tensors once, as they are.

        Raises:
            CompileError: No profile covers their shapes.
        """
        shapes = {item.name: tuple(inputs[item.name].shape) for item in self.plan.inputs}
        chosen = choose(self.plan.profiles, shapes)
        if chosen is None:
            raise CompileError(f"no optimization profile of the plan covers {shapes}")
        if chosen not in self._sessions:
            self._sessions[chosen] = Session(self.plan, chosen)
        found = self._sessions[chosen](inputs)
        return {name: found[name] for name in outputs or found}

    def __enter__(self) -> PlanRunner:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back what runs the plan."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
