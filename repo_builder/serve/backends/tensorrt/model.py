"""Triton's ``tensorrt`` backend, Python-based: the same repository loads unchanged in the native backend.

A batch of small requests is answered when ``execute`` returns: one exchange with Triton for all. A batch of large ones
is answered from behind, by response senders: ``execute`` returns when the batch is enqueued, and Triton hands over the
next one while the GPU computes.

What comes in CUDA shared memory is read there; large outputs stay on the GPU where all inputs of the batch came there.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

from repo_builder.core.tensors import Array
from repo_builder.serve.backends.tensorrt.configuration import profiles, warmup_shapes
from repo_builder.serve.backends.tensorrt.engine import DIRECT_BYTES, SLOTS, Engine, use_gpu
from repo_builder.serve.backends.tensorrt.memory import Exported, address_of, read_capsule
from repo_builder.serve.backends.tensorrt.slots import Batch, Piece, Shapes, Tensor

_STAGES = ("read", "start", "finish", "respond")
# After a pause of this length, what was counted before it is told in the log and counting starts anew.
_PAUSE_NS = 50_000_000
# Threads that wait for batches answered from behind, as many as are under way, and threads that send their responses.
_WAITERS, _SENDERS = SLOTS, 8


class _RefusedError(ValueError):
    """A request that the engine cannot take."""


class _Item(NamedTuple):
    """One request that can be run.

    Attributes:
        place: Which of the requests.
        pieces: Its inputs, in the engine's order.
        shapes: Their full shapes.
    """

    place: int
    pieces: list[Piece]
    shapes: Shapes

    @property
    def is_large(self) -> bool:
        """Whether some input is worth a copy of its own."""
        return any(piece.array is None and piece.size >= DIRECT_BYTES for piece in self.pieces)


class TritonPythonModel:
    """One instance of a model: one engine instance, one batch at a time."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:  # noqa: ANN401 - triton_python_backend_utils.ModelConfig
        """Return the configuration as it is: repo-builder writes whole ones."""
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Load the plan, and capture a CUDA graph for every batch size that the warm-up names.

        Raises:
            TritonModelException: The plan cannot be used here.
        """
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self._gpu = int(args.get("model_instance_device_id") or 0)
        self._batches = int(config["max_batch_size"]) > 0
        self._nanoseconds = dict.fromkeys(_STAGES, 0)
        self._batch_count = self._request_count = self._ended = 0
        self._exported: list[Exported] = []  # of the batch answered last: Triton reads it when execute has returned
        self._lock = threading.Lock()
        self._waiters, self._senders = (
            ThreadPoolExecutor(count, initializer=use_gpu, initargs=(self._gpu,)) for count in (_WAITERS, _SENDERS)
        )
        try:
            self._engine = Engine(
                folder / (config.get("default_model_filename") or "model.plan"),
                gpu=self._gpu,
                profiles=profiles(config, args.get("model_instance_name", "")),
                batches=self._batches,
            )
        except (OSError, RuntimeError, KeyError) as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        for shapes in warmup_shapes(config, [item.name for item in self._engine.inputs]):
            self._capture(shapes, args["model_name"])

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Run the requests of one dynamic batch; one that cannot be run fails alone."""
        before = time.perf_counter_ns()
        if self._batch_count and before - self._ended > _PAUSE_NS:
            self._report()
        responses: list[Any] = [None] * len(requests)
        groups: dict[Any, list[_Item]] = {}  # requests that can share a batch
        for place, request in enumerate(requests):
            try:
                item = self._read(place, request)
            except _RefusedError as error:
                responses[place] = _failure(str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            except Exception as error:  # whatever it is, it concerns this request only
                responses[place] = _failure(str(error), pb_utils.TritonError.INTERNAL)
                continue
            key = tuple(shape[1:] for shape in item.shapes) if self._batches else place
            groups.setdefault(key, []).append(item)
        before = self._count("read", before)
        alone = len(groups) == 1
        members = next(iter(groups.values()), [])
        large = alone and len(members) == len(requests) and all(item.is_large for item in members)
        if large and self._start_behind(requests, members, before):
            return None
        for members in groups.values():
            self._run(members, responses, alone=alone, before=before)
            before = time.perf_counter_ns()
        self._tally(len(requests))
        return responses

    def finalize(self) -> None:
        """Wait for batches under way, and say in Triton's log where the time went."""
        for pool in (self._waiters, self._senders):
            pool.shutdown(wait=True)
        if self._batch_count:
            self._report()

    def _report(self) -> None:
        """Log the mean time of each stage since the last report."""
        count = self._batch_count
        times = ", ".join(f"{name} {self._nanoseconds[name] / count / 1e3:.1f}" for name in _STAGES)
        pb_utils.Logger.log_info(
            f"tensorrt backend: {count} batches of {self._request_count / count:.2f} requests, "
            f"microseconds a batch: {times}"
        )
        self._nanoseconds = dict.fromkeys(_STAGES, 0)
        self._batch_count = self._request_count = 0

    def _capture(self, shapes: Shapes, model: str) -> None:
        try:
            self._engine.capture(shapes)
        except (RuntimeError, ValueError) as error:
            pb_utils.Logger.log_warn(f"{model}: no CUDA graph for {shapes}: {error}")

    def _read(self, place: int, request: Any) -> _Item:  # noqa: ANN401 - pb_utils.InferenceRequest
        """Find a request's inputs; nothing is copied.

        Raises:
            _RefusedError: An input is missing, or of another type, or batch sizes differ.
        """
        pieces: list[Piece] = []
        shapes: list[tuple[int, ...]] = []
        for item in self._engine.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, item.name)
            if tensor is None:
                raise _RefusedError(f"the input '{item.name}' is missing")
            piece, shape = _located(tensor, item)
            pieces.append(piece)
            shapes.append(shape)
        if self._batches and len(shapes) > 1 and len({shape[:1] for shape in shapes}) != 1:
            raise _RefusedError(f"the inputs differ in batch size: {[list(shape) for shape in shapes]}")
        return _Item(place, pieces, tuple(shapes))

    def _start(self, members: Sequence[_Item], *, stays: bool, behind: bool) -> tuple[Batch, list[slice]]:
        """Enqueue requests as one batch; return it and which rows of it are whose."""
        first = members[0].shapes
        if not self._batches:
            batch = self._engine.start(first, [members[0].pieces], stays=stays, behind=behind)
            return batch, [slice(None)]
        ends = list(itertools.accumulate(item.shapes[0][0] for item in members))
        whole = tuple((ends[-1], *shape[1:]) for shape in first)
        batch = self._engine.start(whole, [item.pieces for item in members], stays=stays, behind=behind)
        return batch, [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    def _run(self, members: Sequence[_Item], responses: list[Any], *, alone: bool, before: int) -> None:
        """Run requests as one batch and fill in their responses; where it cannot be begun, run each alone.

        Args:
            members: The requests.
            responses: Of all requests.
            alone: Whether no further batch runs before Triton has read the responses.
            before: When the stage before this ended.
        """
        stays = alone and all(piece.on_gpu for item in members for piece in item.pieces)
        try:
            batch, cuts = self._start(members, stays=stays, behind=False)
        except Exception as error:
            if len(members) > 1:
                for item in members:
                    self._run([item], responses, alone=False, before=time.perf_counter_ns())
                return
            made = _failures(error, len(members))
        else:
            before = self._count("start", before)
            self._exported.clear()
            try:
                made, before = self._finish(batch, cuts, self._exported, copy=not alone, before=before)
            finally:
                self._engine.release(batch)
        for item, response in zip(members, made, strict=True):
            responses[item.place] = response
        self._count("respond", before)

    def _start_behind(self, requests: Sequence[Any], members: list[_Item], before: int) -> bool:
        """Enqueue a batch that is answered later; return False where that fails."""
        stays = all(piece.on_gpu for item in members for piece in item.pieces)
        try:
            batch, cuts = self._start(members, stays=stays, behind=True)
            try:
                senders = [request.get_response_sender() for request in requests]
                self._waiters.submit(self._answer, batch, cuts, senders, requests)
            except Exception:
                self._engine.cancel(batch.slot)
                raise
        except Exception as error:
            pb_utils.Logger.log_verbose(f"{len(requests)} requests are not run behind: {error}")
            return False
        self._count("start", before)
        self._tally(len(requests))
        return True

    def _answer(self, batch: Batch, cuts: list[slice], senders: list[Any], requests: Sequence[Any]) -> None:
        """Wait for a batch and send its responses; ``requests`` are held, since the GPU reads from their memory."""
        exported: list[Exported] = []
        made: list[Any] = []
        before = time.perf_counter_ns()
        try:
            made, before = self._finish(batch, cuts, exported, copy=False, before=before)
            others = [self._senders.submit(_send, *pair) for pair in zip(senders[1:], made[1:], strict=True)]
            _send(senders[0], made[0])
            wait(others)
        finally:
            made.clear()  # tensors call the deleters in their capsules when they go: those must still be there
            self._engine.release(batch)
        self._count("respond", before)

    def _finish(
        self, batch: Batch, cuts: list[slice], exported: list[Exported], *, copy: bool, before: int
    ) -> tuple[list[Any], int]:
        """Wait for a batch; return the response of each request, whose rows are ``cuts``, and when the wait ended."""
        try:
            batch.slot.done.synchronize()
            before = self._count("finish", before)
            return [self._response(batch, cut, exported, copy=copy) for cut in cuts], before
        except Exception as error:
            return _failures(error, len(cuts)), before

    def _response(self, batch: Batch, cut: slice, exported: list[Exported], *, copy: bool) -> Any:  # noqa: ANN401
        """Return the response of the request whose rows are ``cut``; ``exported`` takes what must outlive it."""
        return pb_utils.InferenceResponse(
            [
                self._output(item, array[cut], exported, on_host=here, copy=copy)
                for item, array, here in zip(batch.slot.outputs, batch.arrays, batch.on_host, strict=True)
            ]
        )

    def _output(self, item: Tensor, values: Array, kept: list[Exported], *, on_host: bool, copy: bool) -> Any:  # noqa: ANN401
        """Return one output of one request, where it is."""
        if on_host:
            return pb_utils.Tensor(item.name, values.copy() if copy else values)
        start = values.ctypes.data - item.host.handle  # the staging buffer mirrors the one on the GPU
        exported = Exported(item.device.handle + start, values, self._gpu)
        kept.append(exported)
        return pb_utils.Tensor.from_dlpack(item.name, exported.capsule())

    def _tally(self, requests: int) -> None:
        """Count a batch."""
        self._ended = time.perf_counter_ns()
        self._batch_count += 1
        self._request_count += requests

    def _count(self, stage: str, before: int) -> int:
        """Add the time since ``before`` to a stage and return the present."""
        now = time.perf_counter_ns()
        with self._lock:
            self._nanoseconds[stage] += now - before
        return now


def _located(tensor: Any, item: Tensor) -> tuple[Piece, tuple[int, ...]]:  # noqa: ANN401 - pb_utils.Tensor
    """Return where a request's input lies, and its full shape; nothing is copied.

    Raises:
        _RefusedError: It is of another type.
    """
    array = tensor.as_numpy() if tensor.is_cpu() else None
    if array is None:
        address, shape, dtype = read_capsule(tensor.to_dlpack())
    else:
        shape, dtype = array.shape, array.dtype
    if dtype != item.dtype:
        raise _RefusedError(f"the input '{item.name}' is {dtype}, the engine takes {item.dtype}")
    if array is None:
        return Piece(None, address, int(np.prod(shape)) * dtype.itemsize, True), shape
    if array.nbytes < DIRECT_BYTES:
        return Piece(array, 0, array.nbytes, False), shape
    return Piece(None, address_of(tensor.to_dlpack()), array.nbytes, False), shape


def _send(sender: Any, response: Any) -> None:  # noqa: ANN401 - pb_utils' response sender and response
    """Send a request's only response; where Triton cannot take it, only that request goes without."""
    try:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception as error:
        pb_utils.Logger.log_error(f"tensorrt backend: a response cannot be sent: {error}")


def _failures(error: Exception, count: int) -> list[Any]:
    """Return the responses of requests that all fail for one reason."""
    return [_failure(str(error), pb_utils.TritonError.INTERNAL) for _ in range(count)]


def _failure(message: str, code: Any) -> Any:  # noqa: ANN401 - pb_utils' error codes and responses
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
