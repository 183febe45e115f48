"""Does the lower precision pay? Two ONNX files timed in turns on this CPU, right after the build."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from repo_builder.core.tensors import Array, TensorSpec

_SECONDS = 0.5
_MIN_RUNS = 7


def compare(
    reference: Path, candidate: Path, inputs: tuple[TensorSpec, ...], *, batch_sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """Time two files in ONNX Runtime on one thread of this CPU, run about.

    Args:
        reference: The fp32 model.
        candidate: The compiled model.
        inputs: Inputs of both; a dynamic dimension is taken as 1.
        batch_sizes: Batch sizes to time.

    Returns:
        One row a batch size: ``batch_size``, ``reference_us`` and ``candidate_us`` (medians), ``speedup``.
    """
    sessions = [_session(path) for path in (reference, candidate)]
    rows = []
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
        rows.append({"batch_size": size, "reference_us": slow, "candidate_us": fast, "speedup": slow / fast})
    return rows


def verdict(rows: list[dict[str, Any]], precisions: str) -> str:
    """Say in one sentence whether it pays, as in ``int8 runs 1.9 times as fast as fp32 at batch 1 ...``.

    Args:
        rows: From ``compare``.
        precisions: What the candidate is made of, as in ``int8``.
    """
    shares = " and ".join(f"{row['speedup']:.2f} times as fast at batch {row['batch_size']}" for row in rows)
    measured = f"{precisions} against fp32 in ONNX Runtime on one thread of this CPU: {shares}"
    if all(row["speedup"] < 1 for row in rows):
        return f"{measured}. {precisions} is SLOWER than fp32 here: serve this model in fp32 on CPUs like this one."
    if any(row["speedup"] < 1 for row in rows):
        return f"{measured}. It does not pay at every batch size: look at the ones that you serve."
    return f"{measured}."


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
