"""Triton's statistics of a model, differenced over exactly the measured windows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from repo_builder.core.errors import MeasureError
from repo_builder.measure.wire.control import Control
from repo_builder.measure.wire.model import ServedModel
from repo_builder.results import ServerTime

_PARTS = ("queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")


@dataclass(frozen=True, kw_only=True)
class Counters:
    """A model's counters since it was loaded, summed over its versions.

    Attributes:
        requests: Requests that succeeded.
        inferences: Samples that succeeded.
        executions: Batches run.
        total_ns: Time of the requests that succeeded, in the server.
        parts_ns: Of that, time by part, in the order of ``_PARTS``.
        batch_sizes: Batch size → executions.
    """

    requests: int
    inferences: int
    executions: int
    total_ns: int
    parts_ns: tuple[int, ...]
    batch_sizes: dict[int, int]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The counters of a model and of those that it is made of, at one moment.

    Attributes:
        time_ns: The moment, ``time.monotonic_ns``.
        counters: Model name → counters.
    """

    time_ns: int
    counters: dict[str, Counters]


def snapshot(control: Control, model: ServedModel) -> Snapshot:
    """Read the counters of a model and of those that it is made of.

    Raises:
        MeasureError: The server does not answer in time, or no longer has the model.
    """
    counters, moment = {}, 0
    for name in (model.name, *model.composing):
        before = time.monotonic_ns()
        counters[name] = count(control.statistics(name))
        moment = moment or (before + time.monotonic_ns()) // 2
    return Snapshot(time_ns=moment, counters=counters)


def count(entries: Iterable[Mapping[str, Any]]) -> Counters:
    """Sum the statistics' entries, one a version."""
    requests = inferences = executions = total_ns = 0
    parts = [0] * len(_PARTS)
    sizes: dict[int, int] = {}
    for entry in entries:
        stats = entry.get("inference_stats", {})
        inferences += int(entry.get("inference_count", 0))
        executions += int(entry.get("execution_count", 0))
        success = stats.get("success", {})
        requests += int(success.get("count", 0))
        total_ns += int(success.get("ns", 0))
        for place, name in enumerate(_PARTS):
            parts[place] += int(stats.get(name, {}).get("ns", 0))
        for item in entry.get("batch_stats", ()):
            size = int(item.get("batch_size", 0))
            sizes[size] = sizes.get(size, 0) + int(item.get("compute_infer", {}).get("count", 0))
    return Counters(
        requests=requests,
        inferences=inferences,
        executions=executions,
        total_ns=total_ns,
        parts_ns=tuple(parts),
        batch_sizes=sizes,
    )


def between(before: Snapshot, after: Snapshot) -> tuple[ServerTime, ...]:
    """Return what happened between two snapshots, the measured model first.

    Triton counts under an ensemble what the models that it is made of compute, but not how long their queues were:
    that is added here, so that the parts of the first entry add up to its total.

    Raises:
        MeasureError: Counters went down: the server or the model was restarted.
    """
    first, *others = (_difference(name, before.counters[name], after.counters[name]) for name in after.counters)
    waits = sum(item.queue_us * item.requests / max(1, first.requests) for item in others)
    return replace(first, queue_us=first.queue_us + waits), *others


def _difference(name: str, before: Counters, after: Counters) -> ServerTime:
    requests = after.requests - before.requests
    if requests < 0 or after.executions < before.executions:
        raise MeasureError(
            f"the model '{name}' was loaded anew while it was measured", hint="measure again when nobody restarts it"
        )
    each = [(new - old) / max(1, requests) / 1000 for old, new in zip(before.parts_ns, after.parts_ns, strict=True)]
    sizes = {size: runs - before.batch_sizes.get(size, 0) for size, runs in sorted(after.batch_sizes.items())}
    return ServerTime(
        model=name,
        requests=requests,
        inferences=after.inferences - before.inferences,
        executions=after.executions - before.executions,
        total_us=(after.total_ns - before.total_ns) / max(1, requests) / 1000,
        queue_us=each[0],
        compute_input_us=each[1],
        compute_infer_us=each[2],
        compute_output_us=each[3],
        cache_us=each[4] + each[5],
        batch_sizes=tuple((size, runs) for size, runs in sizes.items() if runs > 0),
    )
