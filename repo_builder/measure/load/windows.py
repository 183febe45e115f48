"""One level, in windows: warm-up, then windows until the last three agree."""

from __future__ import annotations

import time
from collections.abc import Callable

from repo_builder.core.errors import RepoBuilderError
from repo_builder.core.tensors import Array
from repo_builder.measure.load import merging, server_stats
from repo_builder.measure.load.course import MERGED, Course, Pace, stable
from repo_builder.measure.load.merging import Metrics
from repo_builder.measure.load.server_stats import Snapshot
from repo_builder.measure.load.worker import Fleet, LoadFailed
from repo_builder.results import Level, LevelResult

_LEAD_NS = 2_000_000
Probe = Callable[[], Snapshot]


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


def measure(
    fleet: Fleet,
    level: Level,
    pace: Pace,
    *,
    arrivals_ns: Array | None,
    probe: Probe | None,
    metrics: Metrics,
) -> LevelResult:
    """Measure one level with a fleet that is prepared for it.

    Args:
        fleet: The load.
        level: What load it is.
        pace: How long.
        arrivals_ns: Offsets in ns at which requests are due in an open loop; None closes the loop.
        probe: Reads the server's counters; None where it has none.
        metrics: Gives the machine's metrics between two moments.

    Raises:
        LevelStopped: The server failed or the user interrupted; holds what was measured so far.
    """
    replay = level.mode == "trace"
    expected = len(arrivals_ns) if replay and arrivals_ns is not None else None
    course = Course(level=level, pace=pace, workers=len(fleet), expected=expected)
    try:
        if replay:
            # It is replayed once, so that nothing of it can be discarded: warm up with something else.
            _warm_up(fleet, pace)
            course.begin, course.begin_ns = _look(probe)
            _start(fleet, arrivals_ns)
        else:
            start_ns = _start(fleet, arrivals_ns)
            _sleep_until(start_ns + int(pace.warmup_s * 1e9))
            begin, begin_ns = _look(probe)
            course.start(begin_ns, begin, fleet.take())
        while not _finished(course):
            _fill(fleet, course)
            _cut(fleet, course, probe)
        fleet.stop()
        return merging.result(course, metrics)
    except (RepoBuilderError, KeyboardInterrupt) as cause:
        raise _stopped(fleet, course, cause, metrics) from cause


def _start(fleet: Fleet, arrivals_ns: Array | None) -> int:
    """Start the load in a moment, which is returned."""
    start_ns = time.monotonic_ns() + _LEAD_NS
    fleet.start(None if arrivals_ns is None else arrivals_ns + start_ns)
    return start_ns


def _warm_up(fleet: Fleet, pace: Pace) -> None:
    """Load the server for a while without keeping anything of it."""
    fleet.start(None)
    time.sleep(pace.warmup_s)
    fleet.stop()


def _fill(fleet: Fleet, course: Course) -> None:
    """Wait until the open window has enough of both, time and requests."""
    pace = course.pace
    _sleep_until(course.since_ns + int(pace.window_s * 1e9))
    course.add(fleet.take())
    while course.waiting < pace.window_requests and not _out_of_time(course):
        rate = course.waiting / max(1e-9, (time.monotonic_ns() - course.since_ns) / 1e9)
        time.sleep(min(1.0, max(0.02, (pace.window_requests - course.waiting) / rate)) if rate else 0.02)
        course.add(fleet.take())


def _cut(fleet: Fleet, course: Course, probe: Probe | None) -> None:
    """End the open window: the server's counters first, then what was recorded up to that moment."""
    end, end_ns = _look(probe)
    before = course.pieces[-1].end if course.pieces else course.begin
    course.add(fleet.take())
    course.cut(end_ns, end)
    if before is not None and end is not None:
        # a decoupled model's answers are many, and counted otherwise
        done_ns = course.pieces[-1].records.done_ns[: 0 if len(course.pieces[-1].records.responses) else None]
        near = sum(int((abs(done_ns - edge.time_ns) <= edge.slack_ns).sum()) for edge in (before, end))
        server_stats.require_same(before, end, len(done_ns), course.level.concurrency, near)


def _finished(course: Course) -> bool:
    pace, number = course.pace, len(course.pieces)
    if course.expected is not None:
        return course.seen >= course.expected or _out_of_time(course)
    if number < MERGED:
        return number > 0 and _out_of_time(course)
    if not pace.until_stable or number >= pace.most_windows or _out_of_time(course):
        return True
    return stable(course.windows(), pace)


def _out_of_time(course: Course) -> bool:
    return time.monotonic_ns() - course.begin_ns >= course.pace.most_s * 1e9


def _look(probe: Probe | None) -> tuple[Snapshot | None, int]:
    if probe is None:
        return None, time.monotonic_ns()
    taken = probe()
    return taken, taken.time_ns


def _stopped(fleet: Fleet, course: Course, cause: BaseException, metrics: Metrics) -> LevelStopped:
    """Save what there is: the records that came with the failure, or those still with the workers."""
    try:
        course.add(cause.records if isinstance(cause, LoadFailed) else fleet.stop())
    except LoadFailed as late:
        course.add(late.records)
    except (RepoBuilderError, KeyboardInterrupt):
        pass  # nothing more is to be had
    last_ns = max((int(part.done_ns[-1]) for part in course.pending if len(part.done_ns)), default=0)
    if course.begin_ns and last_ns > course.since_ns:
        course.cut(last_ns, None)
    reason = cause.message if isinstance(cause, RepoBuilderError) else "interrupted"
    result = merging.result(course, metrics, stopped=reason)
    return LevelStopped(result, cause.cause if isinstance(cause, LoadFailed) else cause)


def _sleep_until(moment_ns: int) -> None:
    time.sleep(max(0, moment_ns - time.monotonic_ns()) / 1e9)
