from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from repo_builder.core.errors import MeasureError
from repo_builder.measure.load.loop import Loop
from repo_builder.measure.load.records import Records
from repo_builder.measure.wire.transport import Done


class Instant:
    """A transport whose server answers after a set time, in the order of sending."""

    def __init__(
        self, slots: int, *, takes_s: float = 0.002, answer: Callable[[bytes], tuple[bytes | None, str | None]]
    ) -> None:
        self.slots = slots
        self.reconnects = 0
        self.sent: list[tuple[int, bytes]] = []
        self.most = 0
        self._takes_ns = int(takes_s * 1e9)
        self._answer = answer
        self._flying: list[tuple[int, int, bytes]] = []

    def expect(self, payloads: Sequence[bytes]) -> None:
        self.expected = payloads

    def send(self, slot: int, payload: bytes) -> None:
        assert slot not in [item[1] for item in self._flying], "a slot carries one request at a time"
        self.sent.append((slot, payload))
        self._flying.append((time.monotonic_ns() + self._takes_ns, slot, payload))
        self.most = max(self.most, len(self._flying))

    def wait(self, timeout_s: float, done: Done) -> None:
        if not self._flying or self._flying[0][0] > time.monotonic_ns() + timeout_s * 1e9:
            time.sleep(timeout_s)
            return
        due, slot, payload = self._flying.pop(0)
        time.sleep(max(0, due - time.monotonic_ns()) / 1e9)
        done(slot, time.monotonic_ns(), *self._answer(payload))

    def parts(self, slot: int) -> tuple[int, ...]:
        return ()

    def close(self) -> None:
        self._flying = []


def echo(payload: bytes) -> tuple[bytes | None, str | None]:
    return payload, None


def never(raw: bytes, turn: int) -> None:
    """Accept every response."""


def for_ticks(number: int) -> Callable[[], bool]:
    left = iter(range(number))
    return lambda: next(left, None) is not None


def test_a_closed_loop_keeps_every_slot_busy_and_sends_payloads_in_turn() -> None:
    transport = Instant(3, answer=echo)
    loop = Loop(transport, [b"a", b"b"], never, timeout_s=5)
    loop.run(None, for_ticks(10))
    records = loop.take()
    assert transport.most == 3
    assert [payload for _, payload in transport.sent] == [
        b"ab"[place % 2 : place % 2 + 1] for place in range(len(transport.sent))
    ]
    assert len(records.done_ns) == len(transport.sent)  # what was in flight is waited for
    assert len(records.done_ns) > 20
    assert (records.sent_ns >= records.due_ns).all()
    assert (records.done_ns - records.sent_ns >= 2_000_000).all()
    assert len(loop.take().done_ns) == 0


def test_an_open_loop_sends_when_it_is_due_whatever_the_server_does() -> None:
    transport = Instant(50, takes_s=0.05, answer=echo)
    loop = Loop(transport, [b"a"], never, timeout_s=5)
    start = time.monotonic_ns() + 5_000_000
    loop.run(start + np.arange(40) * 2_000_000, for_ticks(10_000))
    records = loop.take()
    assert len(records.done_ns) == 40
    assert sorted(records.due_ns - start) == [place * 2_000_000 for place in range(40)]
    assert (records.sent_ns >= records.due_ns).all()
    assert transport.most > 10  # it did not wait for answers


def test_a_slow_server_shows_in_the_latency_from_the_intended_time() -> None:
    """One slot, 2 ms a request, one due every millisecond: the schedule runs away, and that is not hidden."""
    transport = Instant(1, takes_s=0.002, answer=echo)
    loop = Loop(transport, [b"a"], never, timeout_s=5)
    start = time.monotonic_ns()
    loop.run(start + np.arange(60) * 1_000_000, for_ticks(10_000))
    records = loop.take()
    from_sent, from_due = records.done_ns - records.sent_ns, records.done_ns - records.due_ns
    assert np.median(from_due) > 5 * np.median(from_sent)
    assert from_due[-1] > from_due[0]


def test_a_response_that_does_not_come_ends_the_load() -> None:
    transport = Instant(2, takes_s=60, answer=echo)
    loop = Loop(transport, [b"a"], never, timeout_s=0.05)
    with pytest.raises(MeasureError, match=r"no response within 0\.05 s"):
        loop.run(None, lambda: True)


def test_a_response_that_does_not_come_while_draining_ends_the_load_too() -> None:
    transport = Instant(1, takes_s=60, answer=echo)
    loop = Loop(transport, [b"a"], never, timeout_s=0.05)
    with pytest.raises(MeasureError, match=r"no response within"):
        loop.run(np.array([time.monotonic_ns()]), lambda: True)


def test_some_failures_are_counted_and_kept_out_of_the_latencies() -> None:
    count = iter(range(10**9))
    transport = Instant(2, answer=lambda payload: (None, "busy") if next(count) % 4 == 0 else (payload, None))
    loop = Loop(transport, [b"a"], never, timeout_s=5)
    loop.run(None, for_ticks(10))
    records = loop.take()
    assert records.failures == {"busy": len(records.failed_ns)}
    assert len(records.failed_ns) + len(records.done_ns) == len(transport.sent)
    assert 0 < len(records.failed_ns) < len(records.done_ns)


def test_a_server_that_sheds_load_is_no_server_that_refuses_everything() -> None:
    """Many quick refusals for every answer, as a full queue gives them."""
    count = iter(range(10**9))

    def answer(payload: bytes) -> tuple[bytes | None, str | None]:
        return (payload, None) if next(count) % 200 == 0 else (None, "[x] Exceeds maximum queue size (UNAVAILABLE)")

    loop = Loop(Instant(4, takes_s=0.0002, answer=answer), [b"a"], never, timeout_s=5)
    loop.run(None, for_ticks(30))
    records = loop.take()
    assert len(records.refused_ns) > 100
    assert len(records.failed_ns) == 0
    assert sum(records.failures.values()) == len(records.refused_ns)


def test_a_server_that_refuses_everything_ends_the_load() -> None:
    transport = Instant(2, takes_s=0, answer=lambda payload: (None, "model unloaded"))
    loop = Loop(transport, [b"a"], never, timeout_s=5)
    with pytest.raises(MeasureError, match="refuses every request: model unloaded"):
        loop.run(None, lambda: True)


def test_responses_of_a_new_length_are_always_checked_and_others_now_and_then() -> None:
    checked: list[tuple[bytes, int]] = []
    count = iter(range(10**9))

    def answer(payload: bytes) -> tuple[bytes | None, str | None]:
        return payload * (2 if next(count) == 15 else 1), None

    loop = Loop(Instant(1, answer=answer), [b"a", b"b"], lambda raw, turn: checked.append((raw, turn)), timeout_s=5)
    loop.run(None, for_ticks(20))
    assert {(b"a", 0), (b"b", 1), (b"bb", 1)} <= set(checked)
    assert len(checked) < len(loop.take().done_ns)


def test_the_very_answer_that_was_looked_at_is_not_looked_at_again_and_any_other_is() -> None:
    checked: list[bytes] = []
    said = [b"1"]
    transport = Instant(1, answer=lambda _: (said[0], None))
    loop = Loop(transport, [b"a"], lambda raw, _: checked.append(raw), timeout_s=5)
    loop.run(None, for_ticks(30))  # 300 ms: more than one look
    assert checked == [b"1"]
    said[0] = b"2"  # of the same length
    loop.run(None, for_ticks(30))
    assert checked == [b"1", b"2"]


def test_requests_that_are_sent_again_and_again_are_announced() -> None:
    transport = Instant(1, answer=echo)
    Loop(transport, [b"a", b"b"], never, timeout_s=5)
    assert transport.expected == [b"a", b"b"]


def test_connections_that_were_made_anew_are_in_the_records() -> None:
    transport = Instant(1, answer=echo)
    loop = Loop(transport, [b"a"], never, timeout_s=5)
    transport.reconnects = 3
    assert loop.take().reconnects == 3
    transport.reconnects = 4
    assert loop.take().reconnects == 1


def test_a_wrong_response_ends_the_load() -> None:
    def refuse(raw: bytes, turn: int) -> None:
        raise MeasureError("wrong")

    with pytest.raises(MeasureError, match="wrong"):
        Loop(Instant(1, answer=echo), [b"a"], refuse, timeout_s=5).run(None, lambda: True)


def records(done: list[int], failed: list[int], **rest: int) -> Records:
    array = np.array(done, dtype=np.int64)
    return Records(
        due_ns=array - 2,
        sent_ns=array - 1,
        done_ns=array,
        failed_ns=np.array(failed),
        failures={"x": len(failed)},
        **rest,
    )


def test_records_of_several_workers_are_joined_in_order_and_cut_by_completion() -> None:
    joined = Records.join([records([10, 30], [15], cpu_ns=1, wall_ns=5), records([20, 40], [35], cpu_ns=2, wall_ns=5)])
    assert joined.done_ns.tolist() == [10, 20, 30, 40]
    assert joined.sent_ns.tolist() == [9, 19, 29, 39]
    assert joined.failures == {"x": 2}
    assert (joined.cpu_ns, joined.wall_ns) == (3, 10)
    inside = joined.between(10, 30)
    assert inside.done_ns.tolist() == [20, 30]
    assert inside.failed_ns.tolist() == [15]
    assert len(Records.join([]).done_ns) == 0
