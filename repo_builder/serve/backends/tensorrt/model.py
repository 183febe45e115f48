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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import triton_python_backend_utils as pb_utils

from repo_builder.serve.backends.tensorrt.engine import DIRECT_BYTES, Engine, use_gpu
from repo_builder.serve.backends.tensorrt.memory import Exported, address_of, read_capsule
from repo_builder.serve.backends.tensorrt.slots import Batch, Piece, Shapes, Tensor
from repo_builder.tensors import Array

_STAGES = ("read", "start", "finish", "respond")
# After a pause of this length, what was counted before it is told in the log and counting starts anew.
_PAUSE_NS = 50_000_000
# Threads that wait for batches answered from behind and send their responses.
_SENDERS = 8


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
        """Whether no input has to be gathered by the CPU."""
        return all(piece.array is None and piece.size >= DIRECT_BYTES for piece in self.pieces)


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
        self._senders = ThreadPoolExecutor(_SENDERS, initializer=use_gpu, initargs=(self._gpu,))
        try:
            self._engine = Engine(
                folder / (config.get("default_model_filename") or "model.plan"),
                gpu=self._gpu,
                profiles=_profiles(config, args.get("model_instance_name", "")),
                batches=self._batches,
            )
        except (OSError, RuntimeError, KeyError) as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        for shapes in _warmup_shapes(config, [item.name for item in self._engine.inputs]):
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
            key = tuple(shape[1:] for shape in item.shapes) if self._batches else place
            groups.setdefault(key, []).append(item)
        before = self._count("read", before)
        alone = len(groups) == 1
        members = next(iter(groups.values()), [])
        if alone and len(members) == len(requests) and all(item.is_large for item in members):
            if self._start_behind(requests, members, responses, before):
                return None
        else:
            for members in groups.values():
                self._run(members, responses, alone=alone, before=before)
                before = time.perf_counter_ns()
        self._tally(len(requests))
        return responses

    def finalize(self) -> None:
        """Wait for batches under way, and say in Triton's log where the time went."""
        self._senders.shutdown(wait=True)
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
            if tensor.is_cpu():
                array = tensor.as_numpy()
                shape, dtype, size = array.shape, array.dtype, array.nbytes
                direct = size >= DIRECT_BYTES
                address = address_of(tensor.to_dlpack()) if direct else 0
                pieces.append(Piece(None if direct else array, address, size, False))
            else:
                address, shape, dtype = read_capsule(tensor.to_dlpack())
                pieces.append(Piece(None, address, int(np.prod(shape)) * dtype.itemsize, True))
            if dtype != item.dtype:
                raise _RefusedError(f"the input '{item.name}' is {dtype}, the engine takes {item.dtype}")
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
        """Run requests as one batch and fill in their responses.

        Args:
            members: The requests.
            responses: Of all requests.
            alone: Whether no further batch runs before Triton has read the responses.
            before: When the stage before this ended.
        """
        stays = alone and all(piece.on_gpu for item in members for piece in item.pieces)
        try:
            batch, cuts = self._start(members, stays=stays, behind=False)
            before = self._count("start", before)
            batch.slot.done.synchronize()
            before = self._count("finish", before)
            self._exported.clear()
            for item, cut in zip(members, cuts, strict=True):
                responses[item.place] = self._response(batch, cut, self._exported, copy=not alone)
            self._engine.release(batch)
        except (RuntimeError, ValueError) as error:
            for item in members:
                responses[item.place] = _failure(str(error), pb_utils.TritonError.INTERNAL)
        self._count("respond", before)

    def _start_behind(self, requests: Sequence[Any], members: list[_Item], responses: list[Any], before: int) -> bool:
        """Enqueue a batch that is answered later; where that fails, fill in the responses and return False."""
        try:
            stays = all(piece.on_gpu for item in members for piece in item.pieces)
            batch, cuts = self._start(members, stays=stays, behind=True)
        except (RuntimeError, ValueError) as error:
            responses[:] = [_failure(str(error), pb_utils.TritonError.INTERNAL) for _ in requests]
            return False
        senders = [request.get_response_sender() for request in requests]
        self._senders.submit(self._answer, batch, cuts, senders, requests)
        self._count("start", before)
        self._tally(len(requests))
        return True

    def _answer(self, batch: Batch, cuts: list[slice], senders: list[Any], requests: Sequence[Any]) -> None:
        """Wait for a batch and send its responses; ``requests`` are held, since the GPU reads from their memory."""
        before = time.perf_counter_ns()
        exported: list[Exported] = []
        try:
            batch.slot.done.synchronize()
            before = self._count("finish", before)
            made = [self._response(batch, cut, exported, copy=False) for cut in cuts]
        except RuntimeError as error:
            made = [_failure(str(error), pb_utils.TritonError.INTERNAL) for _ in requests]
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        others = [
            self._senders.submit(sender.send, response, flags=final)
            for sender, response in zip(senders[1:], made[1:], strict=True)
        ]
        senders[0].send(made[0], flags=final)
        for other in others:
            other.result()
        self._engine.release(batch)
        self._count("respond", before)

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


def _failure(message: str, code: Any) -> Any:  # noqa: ANN401 - pb_utils' error codes and responses
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def _profiles(config: dict[str, Any], instance: str) -> list[int]:
    """Return the optimization profiles that the instance's group names; the first where it names none."""
    groups = config.get("instance_group") or [{}]
    mine = next((group for group in groups if group.get("name") and instance.startswith(group["name"])), groups[0])
    return [int(name) for name in mine.get("profile") or ["0"]]


def _warmup_shapes(config: dict[str, Any], inputs: Sequence[str]) -> list[Shapes]:
    """Return the full shapes of the inputs in each warm-up request that names them all."""
    found: list[Shapes] = []
    for sample in config.get("model_warmup") or []:
        given = sample.get("inputs", {})
        if all(name in given for name in inputs):
            batch = [int(sample["batch_size"])] if int(config["max_batch_size"]) else []
            found.append(tuple((*batch, *(int(size) for size in given[name]["dims"])) for name in inputs))
    return list(dict.fromkeys(found))
