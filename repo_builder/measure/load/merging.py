"""What the windows of a level add up to."""

from __future__ import annotations

from collections.abc import Callable

from repo_builder.measure.judge import statistics
from repo_builder.measure.load import server_stats
from repo_builder.measure.load.course import MERGED, Course, stable
from repo_builder.measure.load.records import Records
from repo_builder.results import ClientCost, Hardware, Level, LevelResult, ServerTime, Streaming

_SAMPLE = 2000
_LIMIT = 0.9
_LATE_NS = 100_000_000
_PARTIAL = (
    "the server whose statistics are read counted {} of {} requests: several servers seem to stand behind this "
    "address, and their statistics are left out"
)

# (start ns, end ns, inferences) → the machine's metrics between these moments
Metrics = Callable[[int, int, int], "Hardware | None"]


def result(course: Course, metrics: Metrics, stopped: str = "") -> LevelResult:
    """Merge the last three windows; of a trace, which claims no steady state, all of them.

    Args:
        course: The windows.
        metrics: Gives the machine's metrics between two moments.
        stopped: Why the level ended early; empty where it did not.
    """
    level, windows = course.level, course.windows()
    number = len(windows) if level.mode == "trace" else min(MERGED, len(windows))
    merged = course.pieces[len(windows) - number :]
    records = Records.join([item.records for item in merged])
    latencies = records.done_ns - records.sent_ns
    latencies_us = latencies / 1000
    seconds = sum(item.seconds for item in windows[len(windows) - number :])
    requests = len(latencies)
    latency = statistics.summarise(latencies)
    server, notes = _server(course, number, 0 if len(records.responses) else requests, records.ended)
    inside_us = server[0].total_us if server and server[0].requests else None
    client = _client(records, course.workers) if requests else None
    # Who has caught up by the end keeps up; a trace ends before its last window does.
    late_ns = records.lag_open_ns if level.mode == "trace" or not merged else merged[-1].records.lag_open_ns
    return LevelResult(
        level=level,
        stable=None if level.mode == "trace" else not stopped and stable(windows, course.pace),
        windows=windows,
        merged=number,
        seconds=seconds,
        requests=requests,
        errors=len(records.failed_ns),
        failures=course.failures,
        requests_per_s=requests / seconds if seconds else 0.0,
        infer_per_s=requests * level.batch_size / seconds if seconds else 0.0,
        latency=latency,
        latency_from_due=None
        if level.mode == "concurrency"
        else statistics.summarise(records.done_ns - records.due_ns),
        latency_sample_us=tuple(round(float(item), 1) for item in latencies_us[:: max(1, -(-requests // _SAMPLE))]),
        server=server,
        network_and_client_us=max(0.0, latency.mean_us - inside_us) if latency and inside_us is not None else None,
        client=client,
        hardware=metrics(merged[0].start_ns, merged[-1].end_ns, requests * level.batch_size) if merged else None,
        notes=(*notes, *_notes(level, records, late_ns, server, client), *_reconnects(course)),
        stopped=stopped,
        raw_latencies_us=tuple(latencies_us.tolist()) if course.pace.raw else (),
        refused=len(records.refused_ns),
        reconnects=course.reconnects,
        streaming=_streaming(records),
    )


def _server(course: Course, number: int, answered: int, ended: int) -> tuple[tuple[ServerTime, ...], list[str]]:
    """Difference the counters over the last windows; where they are of other requests than ours, say so instead."""
    before = course.pieces[-number - 1].end if len(course.pieces) > number else course.begin
    after = course.pieces[-1].end if course.pieces else None
    if before is None or after is None:
        return (), []
    found = server_stats.between(before, after)
    if server_stats.missed(before, after, answered, course.level.concurrency):
        return (), [_PARTIAL.format(found[0].requests, answered)]
    if found[0].requests > ended * 1.05 + server_stats.unsure(before, after, ended, course.level.concurrency):
        theirs = found[0].requests
        return found, [f"others used the model meanwhile: the server counted {theirs} requests, ours {ended}"]
    return found, []


def _client(records: Records, workers: int) -> ClientCost:
    lag = statistics.summarise(records.sent_ns - records.due_ns)
    requests = max(1, records.ended)
    share = records.cpu_ns / max(1, records.wall_ns)
    return ClientCost(
        workers=workers,
        cpu_us_per_request=records.cpu_ns / requests / 1000,
        cpu_share=share,
        lag_p50_us=lag.p50_us if lag else 0.0,
        lag_p99_us=lag.p99_us if lag else 0.0,
        limited=share > _LIMIT,
    )


def _notes(
    level: Level, records: Records, late_ns: int, server: tuple[ServerTime, ...], client: ClientCost | None
) -> list[str]:
    """Say what makes the figures mean something else than they seem to; ``late_ns`` is the schedule's lag."""
    notes = []
    if client and client.limited:
        notes.append(
            f"the client was the limit: it used {client.cpu_share:.0%} of {client.workers} cores; add --workers"
        )
    if level.mode != "concurrency" and late_ns > _LATE_NS and client and not client.limited:
        notes.append(
            f"the server does not keep up with this load: requests went out up to {late_ns / 1e6:.0f} ms "
            "late, and latency from the intended time grows for as long as it is measured"
        )
    ours = records.ended
    if records.refused_ns.size:
        share = len(records.refused_ns) / ours
        said = next((text for text in records.failures if text), "no reason given")
        notes.append(f"the server's queue policy refused {share:.1%} of the requests ({said})")
    if server and server[0].cache_hits:
        notes.append(
            f"the response cache answered {server[0].cache_hits:,} of {server[0].requests:,} requests: latency and "
            "throughput are the cache's and not the model's; send more different inputs, or switch response_cache off"
        )
    return notes


def _reconnects(course: Course) -> list[str]:
    number = course.reconnects
    return [f"{number:,} connections ended politely and were made anew, within the latencies"] if number else []


def _streaming(records: Records) -> Streaming | None:
    """Return how the responses of a decoupled model came; None of other models."""
    if not len(records.responses):
        return None
    some = records.first_ns > 0
    return Streaming(
        first_response=statistics.summarise((records.first_ns - records.sent_ns)[some]),
        gap=statistics.summarise(records.gaps_ns),
        responses_per_request=float(records.responses.mean()),
    )
