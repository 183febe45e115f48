"""The load loop: when requests go out, and what is written down of each.

It runs in a worker process, in one thread, over a transport. Every request leaves three times (``time.monotonic_ns``):
when it was due, when it was sent, when its response was complete. In a closed loop a request is due when the response
before it in its slot was complete; in an open loop when the schedule says so, whether or not the server keeps up.
"""

from __future__ import annotations

import itertools
import time
from array import array
from collections.abc import Callable, Sequence

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import Array
from repo_builder.measure.load.records import Records
from repo_builder.measure.load.sequences import Sequences
from repo_builder.measure.wire.transport import Transport

_TICK_NS = 10_000_000
_SAMPLE_NS = 100_000_000
_KEPT_BYTES = 1 << 20
_REFUSED = 20
_PATIENCE_NS = 1_000_000_000
# What Triton's queue policy (max_queue_size, timeouts) says of a request that it sheds, and what proxies that limit do.
_SHED = ("Exceeds maximum queue size", "Request timeout expired", "RESOURCE_EXHAUSTED", "HTTP status 429")


class Loop:
    """Sends prepared requests over a transport and records them.

    Args:
        transport: Connected.
        payloads: Prepared requests, sent in turn.
        check: Called with a response and its request's index when the response is of an unseen length, and with one of
            the others now and then, unless it is the very one that was looked at before; raises for one that is wrong.
        timeout_s: Deadline for each response.
        sequences: What makes sequences of the payloads, for models that need them; None sends them as they are.
        decoupled: Whether a request has any number of responses.
    """

    def __init__(
        self,
        transport: Transport,
        payloads: Sequence[bytes],
        check: Callable[[bytes, int], None],
        timeout_s: float,
        sequences: Sequences | None = None,
        *,
        decoupled: bool = False,
    ) -> None:
        transport.expect(() if sequences else payloads)
        self._transport = transport
        self._payloads = payloads
        self._check = check
        self._timeout_ns = int(timeout_s * 1e9)
        self._sequences = sequences
        self._decoupled = decoupled
        self._turn = 0
        self._due = [0] * transport.slots
        self._sent = [0] * transport.slots
        self._payload_of = [0] * transport.slots
        self._lengths = [-1] * len(payloads)
        self._right: list[bytes | None] = [None] * len(payloads)  # what was looked at and need not be once more
        self._next_sample = 0
        self._in_a_row = 0
        self._answered_ns = 0
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
        self._answered_ns = time.monotonic_ns()
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
            first_ns=np.array(self._first_ns, dtype=np.int64),
            responses=np.array(self._responses, dtype=np.int64),
            gaps_ns=np.array(self._gaps_ns, dtype=np.int64),
            gap_ends_ns=np.array(self._gap_ends_ns, dtype=np.int64),
            failed_ns=np.array(self._failed_ns, dtype=np.int64),
            refused_ns=np.array(self._refused_ns, dtype=np.int64),
            failures=self._failures,
            cpu_ns=cpu - self._cpu_since,
            wall_ns=now - self._wall_since,
            lag_open_ns=max(0, now - self._waiting_since_ns) if self._waiting_since_ns else 0,
            reconnects=self._transport.reconnects - self._reconnects_since,
        )
        self._clear()
        return taken

    def _clear(self) -> None:
        self._due_ns, self._sent_ns, self._done_ns = array("q"), array("q"), array("q")
        self._failed_ns, self._refused_ns = array("q"), array("q")
        self._first_ns, self._responses, self._gaps_ns, self._gap_ends_ns = (array("q") for _ in range(4))
        self._reconnects_since = self._transport.reconnects
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
        if self._sequences is None:
            turn = self._turn
            self._turn = turn + 1 if turn + 1 < len(self._payloads) else 0
            payload = self._payloads[turn]
        else:
            turn, payload = self._sequences.next(slot)
        self._due[slot] = due_ns
        self._payload_of[slot] = turn
        self._sent[slot] = time.monotonic_ns()
        self._transport.send(slot, payload)

    def _on_done(self, slot: int, now: int, raw: bytes | None, error: str | None) -> None:
        turn = self._payload_of[slot]
        if raw is None:
            if self._sequences is not None:
                self._sequences.give_up(slot)
            self._on_failure(now, error or "unknown error")
        else:
            self._in_a_row = 0
            self._answered_ns = now
            if self._decoupled:
                self._on_parts(slot, now)
            self._due_ns.append(self._due[slot])
            self._sent_ns.append(self._sent[slot])
            self._done_ns.append(now)
        if self._draining and self._sequences is not None and self._sequences.under_way(slot):
            self._send(slot, now)  # a sequence that is left open holds its place in the server
        elif self._draining or not self._closed:
            self._sent[slot] = 0
            self._free.append(slot)
        else:
            self._send(slot, now)
        # The next request is on its way: looking at this response costs no latency.
        if raw is not None and (len(raw) != self._lengths[turn] or now >= self._next_sample):
            if raw != self._right[turn]:
                self._check(raw, turn)
                self._right[turn] = raw if len(raw) <= _KEPT_BYTES else None
            self._lengths[turn] = len(raw)
            self._next_sample = now + _SAMPLE_NS

    def _on_parts(self, slot: int, now: int) -> None:
        """Write down when the responses of a decoupled model came."""
        times = self._transport.parts(slot)
        self._first_ns.append(times[0] if times else 0)
        self._responses.append(len(times))
        for before, after in itertools.pairwise(times):
            self._gaps_ns.append(after - before)
            self._gap_ends_ns.append(now)

    def _on_failure(self, now: int, text: str) -> None:
        shed = any(words in text for words in _SHED)
        (self._refused_ns if shed else self._failed_ns).append(now)
        self._failures[text] = self._failures.get(text, 0) + 1
        self._in_a_row += 1
        # A server that sheds load refuses many at once while it works on the few that it took.
        patience_ns = self._timeout_ns if shed else min(_PATIENCE_NS, self._timeout_ns)
        if self._in_a_row >= max(_REFUSED, 2 * self._transport.slots) and now - self._answered_ns > patience_ns:
            raise MeasureError(
                f"the server refuses every request: {text}",
                hint="the model or the request is at fault: look at the server's log",
            )

    def _enforce(self, now: int) -> None:
        """Raise when a response is overdue."""
        oldest = min((item for item in self._sent if item), default=now)
        if now - oldest > self._timeout_ns:
            raise MeasureError(
                f"no response within {self._timeout_ns / 1e9:g} s",
                hint="the server or what is before it hangs, or is slower than --timeout allows",
            )
