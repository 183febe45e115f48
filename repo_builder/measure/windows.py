"""One level, in windows: warm-up, then windows until the last three agree, and what they add up to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from repo_builder.errors import RepoBuilderError
from repo_builder.measure import server_stats, stats
from repo_builder.measure.load import Records
from repo_builder.measure.server_stats import Snapshot
from repo_builder.measure.worker import Fleet, LoadFailed
from repo_builder.results import ClientCost, Hardware, Level, LevelResult, Window
from repo_builder.tensors import Array

MERGED = 3
_SAMPLE = 2000
_LIMIT = 0.9


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long a level is measured.

    Attributes:
        warmup_s: Time before the first window; what happens in it is discarded.
        window_s: Least time of a window.
        window_requests: Least number of requests answered in a window.
        most_windows: Windows after which a level that is not stable is given up as unstable.
        most_s: Time after which no other window is begun.
        until_stable: Whether to end as soon as the last three windows agree; else after exactly three.
        tolerance: How far throughput and latency of each of the three may be from their mean, as a fraction.
        percentile: The latency percentile that must agree.
        raw: Whether to keep every latency.
    """

    warmup_s: float = 0.5
    window_s: float = 1.0
    window_requests: int = 50
    most_windows: int = 10
    most_s: float = 60.0
    until_stable: bool = True
    tolerance: float = 0.1
    percentile: float = 50.0
    raw: bool = False

    @property
    def longest_s(self) -> float:
        """The longest that a level can take, for the schedule of an open loop."""
        return self.warmup_s + max(self.most_s, self.window_s * MERGED) + self.window_s * 2


class LevelStopped(Exception):  # noqa: N818 - carries what was measured until then
    """A level ended early.

    Attributes:
        result: What was measured of it.
        cause: Why it ended.
    """

    def __init__(self, result: LevelResult, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.result = result
        self.cause = cause


@dataclass
class _Piece:
    """A window: its end, its records and the server's counters at its end."""

    start_ns: int
    end_ns: int
    records: Records
    end: Snapshot | None


@dataclass
class _Run:
    """What has been collected of a level so far."""

    level: Level
    pace: Pace
    workers: int = 1
    begin: Snapshot | None = None
    begin_ns: int = 0
    pending: list[Records] = field(default_factory=list)
    cuts: list[_Piece] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)

    def add(self, records: Records) -> None:
        """Keep records that belong to the present window or to the next."""
        self.pending.append(records)
        for text, number in records.failures.items():
            self.failures[text] = self.failures.get(text, 0) + number

    def waiting(self) -> int:
        """Return how many requests the present window has."""
        return sum(len(part.done_ns) for part in self.pending)

    def cut(self, end_ns: int, end: Snapshot | None) -> None:
        """End the present window; what is later stays for the next."""
        start_ns = self.cuts[-1].end_ns if self.cuts else self.begin_ns
        joined = Records.join(self.pending)
        self.cuts.append(_Piece(start_ns, end_ns, joined.between(start_ns, end_ns), end))
        rest = joined.between(end_ns, 1 << 62)
        self.pending = [
            Records(due_ns=rest.due_ns, sent_ns=rest.sent_ns, done_ns=rest.done_ns, failed_ns=rest.failed_ns)
        ]


def measure(
    fleet: Fleet,
    level: Level,
    pace: Pace,
    *,
    arrivals_ns: Array | None,
    probe: Callable[[], Snapshot] | None,
    hardware: Callable[[int, int, int], Hardware | None],
) -> LevelResult:
    """Measure one level with a fleet that is prepared for it.

    Args:
        fleet: The load.
        level: What load it is.
        pace: How long.
        arrivals_ns: Offsets in ns at which requests are due in an open loop; None closes the loop.
        probe: Reads the server's counters; None where it has none.
        hardware: Gives the machine's metrics between two moments, for a number of inferences.

    Raises:
        LevelStopped: The server failed or the user interrupted; holds what was measured so far.
    """
    run = _Run(level=level, pace=pace, workers=len(fleet))
    try:
        if level.mode == "trace":
            _warm_up(fleet, pace)
        start_ns = time.monotonic_ns() + 2_000_000
        fleet.start(None if arrivals_ns is None else arrivals_ns + start_ns)
        _sleep_until(start_ns + int(0 if level.mode == "trace" else pace.warmup_s * 1e9))
        run.begin, run.begin_ns = _look(probe)
        run.add(fleet.take())
        while not _finished(run):
            _collect(fleet, run)
            _cut(fleet.take, run, probe)
        if level.mode == "trace":
            _cut(fleet.stop, run, probe)
        else:
            fleet.stop()
        return _result(run, hardware)
    except (RepoBuilderError, KeyboardInterrupt) as cause:
        raise _stopped(fleet, run, cause, hardware) from cause


def _warm_up(fleet: Fleet, pace: Pace) -> None:
    """Load the server without recording: a trace is replayed once, so nothing of it can be discarded."""
    fleet.start(None)
    time.sleep(pace.warmup_s)
    fleet.stop()


def _cut(take: Callable[[], Records], run: _Run, probe: Callable[[], Snapshot] | None) -> None:
    """End a window: the server's counters first, then what was recorded up to that moment."""
    end, end_ns = _look(probe)
    if run.begin is not None and end is not None:
        server_stats.between(run.begin, end)  # raises where the model was loaded anew
    run.add(take())
    run.cut(end_ns, end)


def _collect(fleet: Fleet, run: _Run) -> None:
    """Wait until the present window has enough of both, time and requests."""
    pace = run.pace
    start_ns = run.cuts[-1].end_ns if run.cuts else run.begin_ns
    _sleep_until(start_ns + int(pace.window_s * 1e9))
    run.add(fleet.take())
    while run.waiting() < pace.window_requests and time.monotonic_ns() - run.begin_ns < pace.most_s * 1e9:
        rate = run.waiting() / max(1e-9, (time.monotonic_ns() - start_ns) / 1e9)
        time.sleep(min(1.0, max(0.02, (pace.window_requests - run.waiting()) / max(rate, 1.0))))
        run.add(fleet.take())


def _finished(run: _Run) -> bool:
    pace, number = run.pace, len(run.cuts)
    if number < MERGED:
        return number > 0 and time.monotonic_ns() - run.begin_ns >= pace.most_s * 1e9
    if not pace.until_stable or number >= pace.most_windows:
        return True
    spent = (time.monotonic_ns() - run.begin_ns) / 1e9
    return stable([_window(item, run.level) for item in run.cuts], pace) or spent >= pace.most_s


def stable(windows: list[Window], pace: Pace) -> bool:
    """Whether the last three windows agree in throughput and in the chosen latency percentile."""
    last = windows[-MERGED:]
    if len(last) < MERGED or any(item.latency is None or item.requests < pace.window_requests for item in last):
        return False
    latencies = [item.latency.percentile_us(pace.percentile) for item in last if item.latency is not None]
    rates = [item.infer_per_s for item in last]
    return stats.spread(rates) <= pace.tolerance and stats.spread(latencies) <= pace.tolerance


def _look(probe: Callable[[], Snapshot] | None) -> tuple[Snapshot | None, int]:
    if probe is None:
        return None, time.monotonic_ns()
    taken = probe()
    return taken, taken.time_ns


def _window(cut: _Piece, level: Level) -> Window:
    seconds = max(1e-9, (cut.end_ns - cut.start_ns) / 1e9)
    requests = len(cut.records.done_ns)
    return Window(
        seconds=seconds,
        requests=requests,
        errors=len(cut.records.failed_ns),
        infer_per_s=requests * level.batch_size / seconds,
        latency=stats.summarise(cut.records.done_ns - cut.records.sent_ns),
    )


def _stopped(
    fleet: Fleet, run: _Run, cause: BaseException, hardware: Callable[[int, int, int], Hardware | None]
) -> LevelStopped:
    """Save what there is: the records that came with the failure, or those still with the workers."""
    try:
        run.add(cause.records if isinstance(cause, LoadFailed) else fleet.stop())
    except LoadFailed as late:
        run.add(late.records)
    except (RepoBuilderError, KeyboardInterrupt):
        pass
    last = max((int(part.done_ns[-1]) for part in run.pending if len(part.done_ns)), default=0)
    start_ns = run.cuts[-1].end_ns if run.cuts else run.begin_ns
    if run.begin_ns and last > start_ns:
        run.cut(last, None)
    reason = cause.message if isinstance(cause, RepoBuilderError) else "interrupted"
    return LevelStopped(_result(run, hardware, stopped=reason), cause)


def _result(run: _Run, hardware: Callable[[int, int, int], Hardware | None], stopped: str = "") -> LevelResult:
    """Merge the last windows."""
    level = run.level
    number = len(run.cuts) if level.mode == "trace" else min(MERGED, len(run.cuts))
    merged = run.cuts[len(run.cuts) - number :]
    windows = [_window(item, level) for item in run.cuts]
    records = Records.join([item.records for item in merged])
    latencies = records.done_ns - records.sent_ns
    seconds = sum(item.seconds for item in windows[len(windows) - number :])
    requests = len(latencies)
    summary = stats.summarise(latencies)
    begin = run.cuts[-number - 1].end if len(run.cuts) > number else run.begin
    end = merged[-1].end if merged else None
    server = server_stats.between(begin, end) if begin is not None and end is not None else ()
    in_order_us = latencies / 1000
    step = max(1, -(-requests // _SAMPLE))
    client = _client(records, run.workers) if requests else None
    inside = server[0].total_us if server and server[0].requests else None
    steady = None if level.mode == "trace" else not stopped and stable(windows, run.pace)
    return LevelResult(
        level=level,
        stable=steady,
        windows=tuple(windows),
        merged=len(merged),
        seconds=seconds,
        requests=requests,
        errors=len(records.failed_ns),
        failures=run.failures,
        requests_per_s=requests / seconds if seconds else 0.0,
        infer_per_s=requests * level.batch_size / seconds if seconds else 0.0,
        latency=summary,
        latency_from_due=None if level.mode == "concurrency" else stats.summarise(records.done_ns - records.due_ns),
        latency_sample_us=tuple(round(float(item), 1) for item in in_order_us[::step]),
        server=server,
        network_and_client_us=max(0.0, summary.mean_us - inside) if summary and inside is not None else None,
        client=client,
        hardware=hardware(merged[0].start_ns, merged[-1].end_ns, requests * level.batch_size) if merged else None,
        notes=tuple(_notes(level, records, server[0].requests if server else None, client)),
        stopped=stopped,
        raw_latencies_us=tuple(in_order_us.tolist()) if run.pace.raw else (),
    )


def _client(records: Records, workers: int) -> ClientCost:
    lag = stats.summarise(records.sent_ns - records.due_ns)
    requests = max(1, len(records.done_ns) + len(records.failed_ns))
    share = records.cpu_ns / max(1, records.wall_ns)
    return ClientCost(
        workers=workers,
        cpu_us_per_request=records.cpu_ns / requests / 1000,
        cpu_share=share,
        lag_p50_us=lag.p50_us if lag else 0.0,
        lag_p99_us=lag.p99_us if lag else 0.0,
        limited=share > _LIMIT,
    )


def _notes(level: Level, records: Records, counted: int | None, client: ClientCost | None) -> list[str]:
    """Say what makes the figures mean something else than they seem to."""
    notes = []
    if client and client.limited:
        notes.append(
            f"the client was the limit: it used {client.cpu_share:.0%} of {client.workers} cores; add --workers"
        )
    if level.mode != "concurrency" and records.lag_open_ns > 100_000_000 and client and not client.limited:
        notes.append(
            f"the server does not keep up with this rate: requests were {records.lag_open_ns / 1e6:.0f} ms late at the "
            "end, and latency from the intended time grows for as long as it is measured"
        )
    requests = len(records.done_ns)
    if counted is not None and counted > requests * 1.05 + 2 * level.concurrency:
        notes.append(f"others used the model meanwhile: the server counted {counted} requests, {requests} were ours")
    return notes


def _sleep_until(moment_ns: int) -> None:
    time.sleep(max(0, moment_ns - time.monotonic_ns()) / 1e9)
