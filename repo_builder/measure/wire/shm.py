"""Requests whose tensors lie in shared memory that the server reads and writes: POSIX memory, or a GPU's.

All batches of a level lie in one region, one after another, and so do their outputs. Equal requests give equal outputs,
so that two of the same batch in flight at once do not disturb each other.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from repo_builder.core.errors import MeasureError, MissingDependency
from repo_builder.core.tensors import Array, DType
from repo_builder.measure.wire.control import Control
from repo_builder.measure.wire.messages import Codec, Extra, Input, Region, from_bytes, to_bytes
from repo_builder.measure.wire.model import ServedModel

_ALIGN = 256


class Memory(Protocol):
    """A stretch of memory that a server on this machine can map."""

    def register(self, control: Control, name: str) -> None:
        """Make it known to the server."""

    def read(self) -> bytes:
        """Return its content."""

    def close(self) -> None:
        """Give it back."""


class SystemMemory:
    """POSIX shared memory."""

    kind = "system"

    def __init__(self, content: bytes) -> None:
        self._size = len(content)
        self._memory = SharedMemory(create=True, size=self._size)
        memory = self._memory.buf
        assert memory is not None  # noqa: S101 - just created
        memory[: self._size] = content

    def register(self, control: Control, name: str) -> None:
        """Make it known to the server by its key."""
        control.register_system(name, "/" + self._memory.name.lstrip("/"), self._size)

    def read(self) -> bytes:
        """Return its content."""
        return bytes(self._memory.buf[: self._size]) if self._memory.buf is not None else b""

    def close(self) -> None:
        """Unmap and unlink it."""
        self._memory.close()
        self._memory.unlink()


class CudaMemory:
    """Memory of GPU 0, which the server opens by its IPC handle."""

    kind = "cuda"
    device = 0

    def __init__(self, content: bytes) -> None:
        try:
            from tritonclient.utils import cuda_shared_memory
        except (ImportError, RuntimeError) as error:
            raise MissingDependency(
                "CUDA shared memory needs the library 'cuda-python'", hint="pip install 'cuda-python<13'"
            ) from error
        self._library = cuda_shared_memory
        self._size = len(content)
        try:
            self._region: Any = cuda_shared_memory.create_shared_memory_region("repo-builder", self._size, self.device)
            cuda_shared_memory.set_shared_memory_region(self._region, [np.frombuffer(content, dtype=np.uint8)])
        except cuda_shared_memory.CudaSharedMemoryException as error:
            raise MeasureError(
                f"CUDA shared memory cannot be made ({error})", where="--shared-memory", hint="is there a GPU here?"
            ) from error

    def register(self, control: Control, name: str) -> None:
        """Make it known to the server by its IPC handle."""
        handle = base64.b64decode(self._library.get_raw_handle(self._region))
        control.register_cuda(name, handle, self.device, self._size)

    def read(self) -> bytes:
        """Copy its content to the host."""
        content: bytes = self._library.get_contents_as_numpy(self._region, np.uint8, [self._size]).tobytes()
        return content

    def close(self) -> None:
        """Free it."""
        self._library.destroy_shared_memory_region(self._region)


MEMORIES: dict[str, type[SystemMemory] | type[CudaMemory]] = {"system": SystemMemory, "cuda": CudaMemory}


class SharedRequests:
    """The prepared requests of a level, with inputs and outputs in shared memory; registered while the block lasts.

    Args:
        control: The server.
        wire: The wire form.
        model: As served.
        batches: One mapping of input name → ``(batch, *shape)`` a request.
        reference: For each batch the outputs that came inline; they say how large outputs are, and are compared with
            what lies in shared memory in the end.
        kind: ``system`` or ``cuda``.
        extras: What each request says beside its tensors.
    """

    def __init__(
        self,
        control: Control,
        wire: Codec,
        model: ServedModel,
        batches: Sequence[Mapping[str, Array]],
        reference: Sequence[Mapping[str, Array]],
        kind: str,
        extras: Sequence[Extra],
    ) -> None:
        self._control = control
        self._model = model.name
        self._kind = kind
        self._reference = reference
        # Never a name twice: Triton may forget a region some time after it was told to.
        mark = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._names = [f"repo-builder-{mark}-{side}" for side in ("in", "out")]
        content, self._inputs = _lay_out([[(name, to_bytes(batch[name])) for name in batch] for batch in batches])
        # Strings take as much room as those that came inline: equal requests give equal outputs.
        space, self._outputs = _lay_out(
            [[(name, bytes(len(to_bytes(batch[name])))) for name in batch] for batch in reference]
        )
        self._memories: list[SystemMemory | CudaMemory] = []
        try:
            for data in (content, space):
                self._memories.append(MEMORIES[kind](data))
        except BaseException:
            self.close()
            raise
        self.payloads = tuple(
            self._encode(wire, model, batch, place, extras[place]) for place, batch in enumerate(batches)
        )

    def __enter__(self) -> SharedRequests:
        try:
            for name, memory in zip(self._names, self._memories, strict=True):
                memory.register(self._control, name)
        except MeasureError as error:
            self.close()
            raise MeasureError(
                f"the server does not take {self._kind} shared memory: {error.message}",
                where="--shared-memory",
                hint="it must run on this machine and see the same memory (docker run --ipc=host)",
            ) from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(forget=error is None or self._answers())

    def verify(self) -> None:
        """Refuse outputs in shared memory that differ from those that came inline.

        Raises:
            MeasureError: They do; names the batch.
        """
        content = self._memories[1].read()
        if not any(content):
            raise MeasureError("the server has written no output to shared memory", where="--shared-memory")
        for place, batch in enumerate(self._reference):
            for name, expected in batch.items():
                offset, size = self._outputs[place][name]
                data = content[offset : offset + size]
                found = from_bytes(data, DType.of_numpy(expected.dtype), expected.shape) if any(data) else expected
                # A batch whose turn never came is still all zero.
                if not _alike(found, expected):
                    raise MeasureError(
                        f"the output '{name}' of batch {place} in shared memory differs from the one sent inline",
                        where="--shared-memory",
                    )

    def close(self, *, forget: bool = True) -> None:
        """Free the regions, and make the server forget them.

        Args:
            forget: Whether to tell the server. One that hangs would do as told when it goes on, before it comes to the
                requests that it holds, and dies of those.
        """
        for name, memory in zip(self._names, self._memories, strict=False):
            if forget:
                with contextlib.suppress(MeasureError):  # the server is gone, or never knew it
                    self._control.unregister(self._kind, name)
            memory.close()
        self._memories = []

    def _answers(self) -> bool:
        try:
            self._control.statistics(self._model)
        except MeasureError:
            return False
        return True

    def _encode(self, wire: Codec, model: ServedModel, batch: Mapping[str, Array], place: int, extra: Extra) -> bytes:
        inputs = [
            Input(
                name=spec.name,
                dtype=spec.dtype,
                shape=tuple(batch[spec.name].shape),
                data=_region(self._names[0], self._inputs[place][spec.name]),
            )
            for spec in model.inputs
            if spec.name in batch
        ]
        outputs = [(name, _region(self._names[1], where)) for name, where in self._outputs[place].items()]
        return wire.encode(inputs, outputs, extra)


def _alike(found: Array, expected: Array) -> bool:
    if expected.dtype.kind in "fiu":
        return bool(np.allclose(found, expected, rtol=1e-2, atol=1e-3))
    return bool(np.array_equal(found, expected))


def _region(name: str, where: tuple[int, int]) -> Region:
    return Region(name=name, offset=where[0], byte_size=where[1])


def _lay_out(batches: Sequence[Sequence[tuple[str, bytes]]]) -> tuple[bytes, list[dict[str, tuple[int, int]]]]:
    """Put tensors behind each other at aligned offsets; return the bytes, and (offset, size) by batch and name."""
    content = bytearray()
    places: list[dict[str, tuple[int, int]]] = []
    for batch in batches:
        places.append({})
        for name, data in batch:
            places[-1][name] = len(content), len(data)
            content += data + bytes(-len(data) % _ALIGN)
    return bytes(content), places
