"""Triton's statistics of a model, differenced over exactly the measured windows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
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
        cache_hits: Requests that the response cache answered.
        versions: Version → requests of it that succeeded or failed.
    """

    requests: int
    inferences: int
    executions: int
    total_ns: int
    parts_ns: tuple[int, ...]
    batch_sizes: dict[int, int]
    cache_hits: int = 0
    versions: dict[str, int] = field(default_factory=dict)

    def fell_since(self, before: Counters) -> bool:
        """Whether any counter is lower than it was, or a version is gone: the model was loaded anew in between."""
        mine = (self.requests, self.inferences, self.executions, self.total_ns, self.cache_hits, *self.parts_ns)
        theirs = (
            before.requests, before.inferences, before.executions, before.total_ns, before.cache_hits, *before.parts_ns
        )  # fmt: skip
        fell = any(new < old for new, old in zip(mine, theirs, strict=True))
        return fell or any(self.versions.get(name, -1) < count for name, count in before.versions.items())


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The counters of a model and of those that it is made of, at one moment.

    Attributes:
        time_ns: The moment, ``time.monotonic_ns``.
        counters: Model name → counters, the measured model first.
        leaves: Those inside an ensemble that are no ensembles themselves: they alone queue and compute.
        slack_ns: How far off that moment may be: half the time that the server took to answer.
    """

    time_ns: int
    counters: dict[str, Counters]
    leaves: tuple[str, ...] = ()
    slack_ns: int = 0


def snapshot(control: Control, model: ServedModel) -> Snapshot:
    """Read the counters of a model and of those that it is made of.

    Raises:
        MeasureError: The server does not answer in time, or no longer has the model.
    """
    counters, moment, slack_ns = {}, 0, 0
    for name in (model.name, *model.composing):
        before = time.monotonic_ns()
        try:
            counters[name] = count(control.statistics(name))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise MeasureError(f"the statistics of '{name}' cannot be read ({error!r})") from error
        if not moment:
            after = time.monotonic_ns()
            moment, slack_ns = (before + after) // 2, (after - before) // 2
    return Snapshot(time_ns=moment, counters=counters, leaves=model.leaves, slack_ns=slack_ns)


def count(entries: Iterable[Mapping[str, Any]]) -> Counters:
    """Sum the statistics' entries, one a version."""
    requests = inferences = executions = total_ns = cache_hits = 0
    versions: dict[str, int] = {}
    parts = [0] * len(_PARTS)
    sizes: dict[int, int] = {}
    for entry in entries:
        stats = entry.get("inference_stats", {})
        inferences += int(entry.get("inference_count", 0))
        executions += int(entry.get("execution_count", 0))
        success = stats.get("success", {})
        requests += int(success.get("count", 0))
        cache_hits += int(stats.get("cache_hit", {}).get("count", 0))
        ended = int(success.get("count", 0)) + int(stats.get("fail", {}).get("count", 0))
        versions[str(entry.get("version", ""))] = ended
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
        cache_hits=cache_hits,
        versions=versions,
    )


def between(before: Snapshot, after: Snapshot) -> tuple[ServerTime, ...]:
    """Return what happened between two snapshots, the measured model first.

    Triton counts under an ensemble what the models that it is made of compute, at any depth, but not how long their
    queues were: that is added here, so that the parts of the first entry add up to its total where steps follow each
    other. (Steps that run side by side take more together than the ensemble as a whole.)

    Raises:
        MeasureError: Counters went down: the server or the model was restarted.
    """
    first, *others = (_difference(name, before.counters[name], after.counters[name]) for name in after.counters)
    waits = sum(item.queue_us * item.requests for item in others if item.model in after.leaves)
    return replace(first, queue_us=first.queue_us + waits / max(1, first.requests)), *others


def require_same(before: Snapshot, after: Snapshot, ours: int, flying: int, near: int = 0) -> None:
    """Refuse a window in which the model was loaded anew.

    Counters that went down say so. Where they have grown again beyond what they were, this does: since the reload they
    have counted no more than this window's requests, and fewer than it had.

    Args:
        before: The window's first edge.
        after: Its second.
        ours: Requests of the client that were answered between them.
        flying: Requests that were in flight at either edge, which may stand on one side or the other.
        near: Requests of the client that were answered while the server was asked for its counters. On a machine that
            stalls they may be many more than the window's mean says.

    Raises:
        MeasureError: The model, or the server, was restarted.
    """
    for name, counters in after.counters.items():
        if counters.fell_since(before.counters[name]):
            raise _anew(name)
    name = next(iter(after.counters))
    if missed(before, after, ours, flying + near) and after.counters[name].requests <= ours + flying:
        raise _anew(name)


def missed(before: Snapshot, after: Snapshot, ours: int, flying: int) -> bool:
    """Whether the server counted fewer answers than the client had, beyond what may be in flight at the edges."""
    name = next(iter(after.counters))
    theirs = after.counters[name].requests - before.counters[name].requests
    return theirs + unsure(before, after, ours, flying) < 0.97 * ours


def unsure(before: Snapshot, after: Snapshot, ours: int, flying: int) -> float:
    """Return how many requests may be on one side of an edge for the server and on the other for the client."""
    spent_ns = max(1, after.time_ns - before.time_ns)
    return 2 * flying + 2 + ours * (before.slack_ns + after.slack_ns) / spent_ns


def _anew(name: str) -> MeasureError:
    return MeasureError(
        f"the model '{name}' was reloaded or replaced, or its server restarted, while it was measured",
        hint="measure again when nobody loads it",
    )


def _difference(name: str, before: Counters, after: Counters) -> ServerTime:
    if after.fell_since(before):
        raise _anew(name)
    requests = after.requests - before.requests
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
        cache_hits=after.cache_hits - before.cache_hits,
    )
