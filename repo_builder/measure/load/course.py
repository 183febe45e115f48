"""The course of a level: its windows as they are cut, and whether the last of them agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from repo_builder.measure.judge import statistics
from repo_builder.measure.load.records import Records
from repo_builder.measure.load.server_stats import Snapshot
from repo_builder.results import Level, Window

MERGED = 3


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

    def for_seconds(self, seconds: float) -> Pace:
        """Return the pace of exactly three windows that together last so long."""
        share = seconds / MERGED
        return dataclasses.replace(self, window_s=share, window_requests=1, until_stable=False, most_s=2 * seconds)

    def for_requests(self, number: int) -> Pace:
        """Return the pace of exactly three windows that together answer at least so many requests."""
        share = -(-number // MERGED)
        return dataclasses.replace(self, window_s=0.0, window_requests=share, until_stable=False, most_s=3600.0)

    def for_rate(self, rate: float) -> Pace:
        """Return the pace of an open loop: a number of requests is given up after ten times what it should take."""
        if self.window_s:
            return self
        return dataclasses.replace(self, most_s=min(self.most_s, max(60.0, 10 * MERGED * self.window_requests / rate)))

    def for_trace(self, seconds: float) -> Pace:
        """Return the pace of windows of a third of a trace, until all of it is answered."""
        return dataclasses.replace(
            self, window_s=max(0.05, seconds / MERGED), window_requests=0, until_stable=False, most_s=3 * seconds + 60
        )

    @property
    def longest_s(self) -> float:
        """The longest that a level can take, for the schedule of an open loop."""
        return self.warmup_s + max(self.most_s, self.window_s * MERGED) + self.window_s * 2


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One window as it was cut.

    Attributes:
        start_ns: Its start, ``time.monotonic_ns``.
        end_ns: Its end.
        records: The requests that ended in it.
        end: The server's counters at its end; None where it has none.
    """

    start_ns: int
    end_ns: int
    records: Records
    end: Snapshot | None


@dataclass(kw_only=True)
class Course:
    """What has been collected of a level so far.

    Attributes:
        level: The load.
        pace: How long it is measured.
        workers: Processes that make the load.
        expected: Requests after whose answers the level is over; None where windows decide.
        begin_ns: When the first window began; 0 until then.
        begin: The server's counters at that moment.
        pieces: The windows.
        failures: What the server said of failed requests → how often.
        pending: Records of the window that is still open.
        reconnects: Connections that ended politely so far.
    """

    level: Level
    pace: Pace
    workers: int
    expected: int | None = None
    begin_ns: int = 0
    begin: Snapshot | None = None
    pieces: list[Piece] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    pending: list[Records] = field(default_factory=list)
    reconnects: int = 0

    @property
    def since_ns(self) -> int:
        """When the open window began."""
        return self.pieces[-1].end_ns if self.pieces else self.begin_ns

    @property
    def waiting(self) -> int:
        """How many requests the open window has."""
        return sum(len(part.done_ns) for part in self.pending)

    @property
    def seen(self) -> int:
        """How many requests have ended since the first window began."""
        parts = [*self.pending, *(item.records for item in self.pieces)]
        return sum(part.ended for part in parts)

    def start(self, begin_ns: int, begin: Snapshot | None, warm_up: Records) -> None:
        """Begin the first window; of the warm-up nothing is kept."""
        self.begin_ns, self.begin = begin_ns, begin
        self.pending = [_after(warm_up, begin_ns)]

    def add(self, records: Records) -> None:
        """Keep records of the open window, or of the next."""
        self.pending.append(records)
        self.reconnects += records.reconnects
        for text, number in records.failures.items():
            self.failures[text] = self.failures.get(text, 0) + number

    def cut(self, end_ns: int, end: Snapshot | None) -> None:
        """End the open window; what is later stays for the next."""
        joined = Records.join(self.pending)
        records = joined.between(self.since_ns, end_ns)
        self.pieces.append(Piece(start_ns=self.since_ns, end_ns=end_ns, records=records, end=end))
        self.pending = [_after(joined, end_ns)]

    def windows(self) -> tuple[Window, ...]:
        """Return the windows' figures."""
        return tuple(_window(item, self.level) for item in self.pieces)


def stable(windows: Sequence[Window], pace: Pace) -> bool:
    """Whether the last three windows agree in throughput and in the chosen latency percentile."""
    last = windows[-MERGED:]
    if len(last) < MERGED or any(item.latency is None or item.requests < pace.window_requests for item in last):
        return False
    latencies = [item.latency.percentile_us(pace.percentile) for item in last if item.latency is not None]
    rates = [item.infer_per_s for item in last]
    return statistics.spread(rates) <= pace.tolerance and statistics.spread(latencies) <= pace.tolerance


def _after(records: Records, moment_ns: int) -> Records:
    """Return the requests that ended after a moment, without the costs, lag and failures that came before it."""
    return dataclasses.replace(records.between(moment_ns, 1 << 62), failures={}, cpu_ns=0, wall_ns=0, lag_open_ns=0)


def _window(piece: Piece, level: Level) -> Window:
    seconds = max(1e-9, (piece.end_ns - piece.start_ns) / 1e9)
    requests = len(piece.records.done_ns)
    return Window(
        seconds=seconds,
        requests=requests,
        errors=len(piece.records.failed_ns),
        refused=len(piece.records.refused_ns),
        infer_per_s=requests * level.batch_size / seconds,
        latency=statistics.summarise(piece.records.done_ns - piece.records.sent_ns),
    )
