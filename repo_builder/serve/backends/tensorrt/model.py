"""Triton's ``tensorrt`` backend, Python-based: the same repository loads unchanged in the native backend."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from repo_builder.serve.backends.tensorrt.engine import DIRECT_BYTES, Engine, Piece, Shapes
from repo_builder.serve.backends.tensorrt.memory import Exported, address_of, read_capsule
from repo_builder.tensors import Array

# From this size on, an output that may stay on the GPU does; below it, the further exchange with Triton costs more.
_STAY_BYTES = 64 << 10
_STAGES = ("read", "start", "finish", "respond")
# After a pause of this length, what was counted before it is told in the log and counting starts anew.
_PAUSE_NS = 300_000_000


class _RefusedError(ValueError):
    """A request that the engine cannot take."""


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
        self._exported: list[Exported] = []
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

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Run the requests of one dynamic batch; one that cannot be run fails alone."""
        before = time.perf_counter_ns()
        if self._batch_count and before - self._ended > _PAUSE_NS:
            self._report()
        responses: list[Any] = [None] * len(requests)
        groups: dict[Any, list[int]] = {}  # requests that can share a batch
        pieces: list[list[Piece]] = []
        shapes: list[Shapes] = []
        for place, request in enumerate(requests):
            try:
                mine, whole = self._read(request)
            except _RefusedError as error:
                mine, whole = [], ()
                responses[place] = _failure(str(error), pb_utils.TritonError.INVALID_ARG)
            else:
                key = tuple(shape[1:] for shape in whole) if self._batches else place
                groups.setdefault(key, []).append(place)
            pieces.append(mine)
            shapes.append(whole)
        before = self._count("read", before)
        for places in groups.values():
            try:
                self._run(places, pieces, shapes, responses, alone=len(groups) == 1, before=before)
            except (RuntimeError, ValueError) as error:
                for place in places:
                    responses[place] = _failure(str(error), pb_utils.TritonError.INTERNAL)
            before = time.perf_counter_ns()
        self._ended = before
        self._batch_count += 1
        self._request_count += len(requests)
        return responses

    def finalize(self) -> None:
        """Say in Triton's log where the time went."""
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

    def _read(self, request: Any) -> tuple[list[Piece], Shapes]:  # noqa: ANN401 - pb_utils.InferenceRequest
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
        whole = tuple(shapes)
        if self._engine.profile_for(whole) is None and not self._batches:
            raise _RefusedError(f"no optimization profile of the engine covers {[list(shape) for shape in shapes]}")
        return pieces, whole

    def _run(
        self,
        places: Sequence[int],
        pieces: Sequence[Sequence[Piece]],
        shapes: Sequence[Shapes],
        responses: list[Any],
        *,
        alone: bool,
        before: int,
    ) -> None:
        """Run the requests at ``places`` as one batch and fill in their responses.

        Args:
            places: Which requests.
            pieces: All requests' inputs.
            shapes: All requests' shapes.
            responses: Filled in.
            alone: Whether no further batch runs before Triton has read the responses.
            before: When the stage before this ended.
        """
        rows = [shapes[place][0][0] if self._batches else 1 for place in places]
        first = shapes[places[0]]
        whole = tuple((sum(rows), *shape[1:]) for shape in first) if self._batches else first
        mine = [pieces[place] for place in places]
        results = self._engine.start(whole, mine)
        before = self._count("start", before)
        came_on_gpu = alone and all(piece.on_gpu for request in mine for piece in request)
        sizes = (
            int(np.prod(shape)) * item.dtype.itemsize for shape, item in zip(results, self._engine.outputs, strict=True)
        )
        on_host = [not came_on_gpu or size // len(places) < _STAY_BYTES for size in sizes]
        arrays = self._engine.finish(results, on_host)
        before = self._count("finish", before)
        self._exported.clear()
        offset = 0
        for place, count in zip(places, rows, strict=True):
            cut = slice(offset, offset + count) if self._batches else slice(None)
            offset += count
            responses[place] = pb_utils.InferenceResponse(
                [
                    self._output(number, array[cut], on_host=here, copy=not alone)
                    for number, (array, here) in enumerate(zip(arrays, on_host, strict=True))
                ]
            )
        self._count("respond", before)

    def _output(self, number: int, values: Array, *, on_host: bool, copy: bool) -> Any:  # noqa: ANN401 - pb_utils.Tensor
        """Return one output of one request, where it is."""
        item = self._engine.outputs[number]
        if on_host:
            return pb_utils.Tensor(item.name, values.copy() if copy else values)
        start = values.ctypes.data - item.host.handle  # the staging buffer mirrors the one on the GPU
        exported = Exported(item.device.handle + start, values, self._gpu)
        self._exported.append(exported)
        return pb_utils.Tensor.from_dlpack(item.name, exported.capsule())

    def _count(self, stage: str, before: int) -> int:
        """Add the time since ``before`` to a stage and return the present."""
        now = time.perf_counter_ns()
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
