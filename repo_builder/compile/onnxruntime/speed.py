"""Does the lower precision pay? Two ONNX files timed in turns on this CPU, right after the build."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from repo_builder.core.details import SpeedRecord
from repo_builder.core.tensors import Array, TensorSpec

_SECONDS = 0.5
_MIN_RUNS = 7


def compare(
    reference: Path, candidate: Path, inputs: tuple[TensorSpec, ...], *, batch_sizes: Sequence[int]
) -> tuple[SpeedRecord, ...]:
    """Time two files in ONNX Runtime on one thread of this CPU, run about.

    Args:
        reference: The fp32 model.
        candidate: The compiled model.
        inputs: Inputs of both; a dynamic dimension is taken as 1.
        batch_sizes: Batch sizes to time.

    Returns:
        One row a batch size.
    """
    sessions = [_session(path) for path in (reference, candidate)]
    rows: list[SpeedRecord] = []
    for size in batch_sizes:
        feeds = {spec.name: _noise(spec, size) for spec in inputs}
        times: list[list[float]] = [[], []]
        for session in sessions:
            session.run(None, feeds)
        deadline = time.perf_counter() + _SECONDS
        while time.perf_counter() < deadline or len(times[0]) < _MIN_RUNS:
            for session, taken in zip(sessions, times, strict=True):
                started = time.perf_counter()
                session.run(None, feeds)
                taken.append(time.perf_counter() - started)
        slow, fast = (statistics.median(taken) * 1e6 for taken in times)
        rows.append(SpeedRecord(batch_size=size, reference_us=slow, candidate_us=fast))
    return tuple(rows)


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _noise(spec: TensorSpec, batch: int) -> Array:
    """Return seeded noise; times of zeros can differ from those of data."""
    shape = (batch, *(abs(size) for size in spec.shape))
    values: Array = np.random.default_rng(0).standard_normal(shape).astype(spec.dtype.numpy)
    return values
