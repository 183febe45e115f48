"""Does the lower precision pay? Two ONNX files timed in turns on this CPU, right after the build."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from repo_builder.core.batches import Batches
from repo_builder.core.details import SpeedRecord
from repo_builder.core.tensors import Array

_SECONDS = 0.5
_MIN_RUNS = 7


def feeds(batches: Batches, samples: Mapping[str, Array], *, most: int) -> dict[int, dict[str, Array]]:
    """Return what is timed: number of samples → a model's inputs, of held-out samples; used again where there are few.

    Args:
        batches: How the model takes samples.
        samples: ``(n, *shape)`` by input name.
        most: The largest batch.
    """
    sizes = [batches.size] if batches.fixed or batches.size == 1 else sorted({1, max(1, most)})
    total = len(next(iter(samples.values())))
    found = {}
    for size in sizes:
        some = {name: value[np.arange(size) % total] for name, value in samples.items()}
        _, found[size] = next(dataclasses.replace(batches, size=size).feeds(some))
    return found


def compare(reference: Path, candidate: Path, inputs: Mapping[int, dict[str, Array]]) -> tuple[SpeedRecord, ...]:
    """Time two files in ONNX Runtime on one thread of this CPU, run about.

    Args:
        reference: The fp32 model.
        candidate: The compiled model.
        inputs: Batch size → inputs of both, from ``feeds``.

    Returns:
        One row a batch size.
    """
    sessions = [_session(path) for path in (reference, candidate)]
    rows: list[SpeedRecord] = []
    for size, feed in inputs.items():
        times: list[list[float]] = [[], []]
        for session in sessions:
            session.run(None, feed)
        deadline = time.perf_counter() + _SECONDS
        while time.perf_counter() < deadline or len(times[0]) < _MIN_RUNS:
            for session, taken in zip(sessions, times, strict=True):
                started = time.perf_counter()
                session.run(None, feed)
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
