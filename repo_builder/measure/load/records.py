"""What is written down of every request, and how it travels from the workers to who measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from repo_builder.core.tensors import Array

# arrays that are cut by when a request ended, and the array that says when
_CUT_BY = {
    "due_ns": "done_ns",
    "sent_ns": "done_ns",
    "first_ns": "done_ns",
    "responses": "done_ns",
    "done_ns": "done_ns",
    "failed_ns": "failed_ns",
    "refused_ns": "refused_ns",
    "gaps_ns": "gap_ends_ns",
    "gap_ends_ns": "gap_ends_ns",
}


def _none() -> Array:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Records:
    """Requests in the order of their completion.

    Attributes:
        due_ns: When each was due, ``(n,)`` int64.
        sent_ns: When it was sent.
        done_ns: When its response was complete.
        first_ns: When the first of its responses came, 0 where none did; empty unless the model is decoupled.
        responses: How many responses it had; empty unless the model is decoupled.
        gaps_ns: Times between two responses to one request, ``(g,)``.
        gap_ends_ns: When the request of each of these ended.
        failed_ns: When each failed request failed, ``(m,)``; these are in none of the above.
        refused_ns: When each request was refused that the server's queue policy sheds; none of the failed.
        failures: What the server said of both, by text → count.
        cpu_ns: CPU time that the worker's process used for them, ns.
        wall_ns: Time over which it used that, ns; summed over workers.
        lag_open_ns: How late the schedule is at the end: age of the oldest request that is due and not sent, ns.
        reconnects: Connections that ended politely and were made anew.
    """

    due_ns: Array = field(default_factory=_none)
    sent_ns: Array = field(default_factory=_none)
    done_ns: Array = field(default_factory=_none)
    first_ns: Array = field(default_factory=_none)
    responses: Array = field(default_factory=_none)
    gaps_ns: Array = field(default_factory=_none)
    gap_ends_ns: Array = field(default_factory=_none)
    failed_ns: Array = field(default_factory=_none)
    refused_ns: Array = field(default_factory=_none)
    failures: dict[str, int] = field(default_factory=dict)
    cpu_ns: int = 0
    wall_ns: int = 0
    lag_open_ns: int = 0
    reconnects: int = 0

    @property
    def ended(self) -> int:
        """How many requests there are, however they ended."""
        return len(self.done_ns) + len(self.failed_ns) + len(self.refused_ns)

    @classmethod
    def join(cls, parts: Sequence[Records]) -> Records:
        """Put the records of several workers, or of several times, together."""
        arrays = {name: np.concatenate([getattr(part, name) for part in parts] or [_none()]) for name in _CUT_BY}
        orders = {name: np.argsort(arrays[name], kind="stable") for name in set(_CUT_BY.values())}
        failures: dict[str, int] = {}
        for part in parts:
            for text, count in part.failures.items():
                failures[text] = failures.get(text, 0) + count
        return cls(
            **{name: arrays[name][orders[by]] if len(arrays[name]) else arrays[name] for name, by in _CUT_BY.items()},
            failures=failures,
            cpu_ns=sum(part.cpu_ns for part in parts),
            wall_ns=sum(part.wall_ns for part in parts),
            lag_open_ns=max((part.lag_open_ns for part in parts), default=0),
            reconnects=sum(part.reconnects for part in parts),
        )

    def between(self, start_ns: int, end_ns: int) -> Records:
        """Return the requests that ended after ``start_ns`` and not after ``end_ns``."""
        times = {name: getattr(self, name) for name in set(_CUT_BY.values())}
        keep = {name: (moments > start_ns) & (moments <= end_ns) for name, moments in times.items()}
        arrays = {name: getattr(self, name) for name in _CUT_BY}
        cut = {name: array[keep[_CUT_BY[name]]] if len(array) else array for name, array in arrays.items()}
        return replace(self, **cut)
