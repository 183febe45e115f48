"""The load loop: when requests go out, and what is written down of each.

It runs in a worker process, in one thread, over a transport. Every request leaves three times (``time.monotonic_ns``):
when it was due, when it was sent, when its response was complete. In a closed loop a request is due when the response
before it in its slot was complete; in an open loop when the schedule says so, whether or not the server keeps up.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import Array
from repo_builder.measure.wire.transport import Transport

_TICK_NS = 10_000_000
_SAMPLE_NS = 100_000_000
_REFUSED = 20


@dataclass(frozen=True, kw_only=True)
class Records:
    """Requests in the order of their completion.

    Attributes:
        due_ns: When each was due, ``(n,)`` int64.
        sent_ns: When it was sent.
        done_ns: When its response was complete.
        failed_ns: When each failed request failed, ``(m,)``; these are in none of the above.
        failures: What the server said of them, by text → count.
        cpu_ns: CPU time that the worker's process used for them, ns.
        wall_ns: Time over which it used that, ns; summed over workers.
        lag_open_ns: How late the schedule is at the end: age of the oldest request that is due and not sent, ns.
    """

    due_ns: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    sent_ns: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    done_ns: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    failed_ns: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    failures: dict[str, int] = field(default_factory=dict)
    cpu_ns: int = 0
    wall_ns: int = 0
    lag_open_ns: int = 0

    @classmethod
    def join(cls, parts: Sequence[Records]) -> Records:
        """Put the records of several workers, or of several times, together."""
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts] or [np.zeros(0, dtype=np.int64)])
            for name in ("due_ns", "sent_ns", "done_ns", "failed_ns")
        }
        order = np.argsort(arrays["done_ns"], kind="stable")
        failures: dict[str, int] = {}
        for part in parts:
            for text, count in part.failures.items():
                failures[text] = failures.get(text, 0) + count
        return cls(
            due_ns=arrays["due_ns"][order],
            sent_ns=arrays["sent_ns"][order],
            done_ns=arrays["done_ns"][order],
            failed_ns=np.sort(arrays["failed_ns"]),
            failures=failures,
            cpu_ns=sum(part.cpu_ns for part in parts),
            wall_ns=sum(part.wall_ns for part in parts),
            lag_open_ns=max((part.lag_open_ns for part in parts), default=0),
        )

    def between(self, start_ns: int, end_ns: int) -> Records:
        """Return the requests that ended after ``start_ns`` and not after ``end_ns``."""
        keep = (self.done_ns > start_ns) & (self.done_ns <= end_ns)
        failed = (self.failed_ns > start_ns) & (self.failed_ns <= end_ns)
        return Records(
            due_ns=self.due_ns[keep],
            sent_ns=self.sent_ns[keep],
            done_ns=self.done_ns[keep],
            failed_ns=self.failed_ns[failed],
            failures=self.failures,
            cpu_ns=self.cpu_ns,
            wall_ns=self.wall_ns,
            lag_open_ns=self.lag_open_ns,
        )


class Loop:
    """Sends prepared requests over a transport and records them.

    Args:
        transport: Connected.
        payloads: Prepared requests, sent in turn.
        check: Called with a response and its request's index when the response is of an unseen length, and with one of
            the others now and then; raises for one that is wrong.
        timeout_s: Deadline for each response.
    """

    def __init__(
        self, transport: Transport, payloads: Sequence[bytes], check: Callable[[bytes, int], None], timeout_s: float
    ) -> None:
        self._transport = transport
        self._payloads = payloads
        self._check = check
        self._timeout_ns = int(timeout_s * 1e9)
        self._turn = 0
        self._due = [0] * transport.slots
        self._sent = [0] * transport.slots
        self._payload_of = [0] * transport.slots
        self._lengths = [-1] * len(payloads)
        self._next_sample = 0
        self._in_a_row = 0
        self._draining = False
        self._closed = True
        self._free: list[int] = []
        self._last_failure = ""
        self._waiting_since_ns = 0
        self._clear()

    def run(self, arrivals_ns: Array | None, tick: Callable[[], bool]) -> None:
        """Load the server until ``tick`` says to stop or the schedule ends, then wait for what is in flight.

        Args:
            arrivals_ns: When requests are due (``time.monotonic_ns``), ascending, for an open loop; None closes the
                loop: every slot sends again as soon as it can.
            tick: Called about every 10 ms; returns whether to go on.

        Raises:
            MeasureError: No response in time, the server refuses every request, or a response is wrong.
        """
        self._draining = False
        self._in_a_row = 0
        self._waiting_since_ns = 0
        self._closed = arrivals_ns is None
        self._free = list(range(self._transport.slots))
        if arrivals_ns is None:
            self._run_closed(tick)
        else:
            self._run_open(arrivals_ns.data, tick)
        self._draining = True
        while len(self._free) < self._transport.slots:
            self._transport.wait(0.01, self._on_done)
            self._enforce(time.monotonic_ns())

    def take(self) -> Records:
        """Return the records since the last time, and forget them."""
        now, cpu = time.monotonic_ns(), time.process_time_ns()
        taken = Records(
            due_ns=np.array(self._due_ns, dtype=np.int64),
            sent_ns=np.array(self._sent_ns, dtype=np.int64),
            done_ns=np.array(self._done_ns, dtype=np.int64),
            failed_ns=np.array(self._failed_ns, dtype=np.int64),
            failures=self._failures,
            cpu_ns=cpu - self._cpu_since,
            wall_ns=now - self._wall_since,
            lag_open_ns=max(0, now - self._waiting_since_ns) if self._waiting_since_ns else 0,
        )
        self._clear()
        return taken

    def _clear(self) -> None:
        self._due_ns, self._sent_ns, self._done_ns, self._failed_ns = array("q"), array("q"), array("q"), array("q")
        self._failures: dict[str, int] = {}
        self._cpu_since, self._wall_since = time.process_time_ns(), time.monotonic_ns()

    def _run_closed(self, tick: Callable[[], bool]) -> None:
        free, self._free = self._free, []
        for slot in free:
            self._send(slot, time.monotonic_ns())
        next_tick = time.monotonic_ns() + _TICK_NS
        while True:
            self._transport.wait(_TICK_NS / 1e9, self._on_done)
            now = time.monotonic_ns()
            if now >= next_tick:
                self._enforce(now)
                if not tick():
                    return
                next_tick = now + _TICK_NS

    def _run_open(self, arrivals: Sequence[int], tick: Callable[[], bool]) -> None:
        position, next_tick = 0, time.monotonic_ns() + _TICK_NS
        while position < len(arrivals):
            now = time.monotonic_ns()
            while position < len(arrivals) and arrivals[position] <= now and self._free:
                self._send(self._free.pop(), arrivals[position])
                position += 1
            pending = position < len(arrivals)
            self._waiting_since_ns = arrivals[position] if pending and arrivals[position] <= now else 0
            until = arrivals[position] if pending and self._free else next_tick
            self._transport.wait(max(0, min(until, next_tick) - time.monotonic_ns()) / 1e9, self._on_done)
            if now >= next_tick:
                self._enforce(now)
                if not tick():
                    return
                next_tick = now + _TICK_NS

    def _send(self, slot: int, due_ns: int) -> None:
        turn = self._turn
        self._turn = turn + 1 if turn + 1 < len(self._payloads) else 0
        self._due[slot] = due_ns
        self._payload_of[slot] = turn
        self._sent[slot] = time.monotonic_ns()
        self._transport.send(slot, self._payloads[turn])

    def _on_done(self, slot: int, now: int, raw: bytes | None, error: str | None) -> None:
        turn = self._payload_of[slot]
        if raw is None:
            self._on_failure(now, error or "unknown error")
        else:
            self._in_a_row = 0
            self._due_ns.append(self._due[slot])
            self._sent_ns.append(self._sent[slot])
            self._done_ns.append(now)
        if self._draining or not self._closed:
            self._sent[slot] = 0
            self._free.append(slot)
        else:
            self._send(slot, now)
        # The next request is on its way: looking at this response costs no latency.
        if raw is not None and (len(raw) != self._lengths[turn] or now >= self._next_sample):
            self._check(raw, turn)
            self._lengths[turn] = len(raw)
            self._next_sample = now + _SAMPLE_NS

    def _on_failure(self, now: int, text: str) -> None:
        self._failed_ns.append(now)
        self._failures[text] = self._failures.get(text, 0) + 1
        self._in_a_row += 1
        self._last_failure = text
        if self._in_a_row >= max(_REFUSED, 2 * self._transport.slots):
            raise MeasureError(
                f"the server refuses every request: {text}", hint="look at the server's log; is the model still loaded?"
            )

    def _enforce(self, now: int) -> None:
        """Raise when a response is overdue."""
        oldest = min((item for item in self._sent if item), default=now)
        if now - oldest > self._timeout_ns:
            raise MeasureError(
                f"no response within {self._timeout_ns / 1e9:g} s",
                hint="the server hangs, or is slower than --timeout-s allows",
            )
