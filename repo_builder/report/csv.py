"""The levels as CSV, in the column names of NVIDIA's perf_analyzer, so that scripts made for its files read ours.

What it counts as time in the client's own send and receive is not told apart here: those columns are 0, and all that
the server does not account for stands under ``Network+Server Send/Recv``. Columns of our own come last.
"""

from __future__ import annotations

import csv
import io

from repo_builder.results import LevelResult, PerfRun

_SHARED = (
    "Inferences/Second",
    "Client Send",
    "Network+Server Send/Recv",
    "Server Queue",
    "Server Compute Input",
    "Server Compute Infer",
    "Server Compute Output",
    "Client Recv",
    "p50 latency",
    "p90 latency",
    "p95 latency",
    "p99 latency",
    "Avg latency",
)
_OWN = ("Batch Size", "Shared Memory", "p99.9 latency", "Max latency", "Requests", "Errors", "Stable")


def render(run: PerfRun) -> str:
    """Return the CSV text; latencies in whole microseconds, as perf_analyzer writes them.

    A level without a single answered request has empty cells.
    """
    levels = run.levels
    closed = all(item.level.mode == "concurrency" for item in levels)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["Concurrency" if closed else "Request Rate", *_SHARED, *_OWN])
    for item in levels:
        load = item.level.concurrency if closed else _number(item.level.request_rate or item.requests_per_s)
        writer.writerow([load, *_row(item)])
    return out.getvalue()


def _row(item: LevelResult) -> list[str]:
    server = item.server[0] if item.server else None
    inside = (
        [server.queue_us, server.compute_input_us, server.compute_infer_us, server.compute_output_us]
        if server
        else [None] * 4
    )
    latency = item.latency
    percentiles = (
        [latency.p50_us, latency.p90_us, latency.p95_us, latency.p99_us, latency.mean_us] if latency else [None] * 5
    )
    return [
        _number(item.infer_per_s),
        *(_whole(value) for value in (0.0, item.network_and_client_us, *inside, 0.0, *percentiles)),
        str(item.level.batch_size),
        item.level.shared_memory,
        _whole(latency.p999_us if latency else None),
        _whole(latency.max_us if latency else None),
        str(item.requests),
        str(item.errors),
        "" if item.stable is None else str(item.stable).lower(),
    ]


def _whole(value: float | None) -> str:
    return "" if value is None else str(round(value))


def _number(value: float) -> str:
    return f"{value:.6g}"
