"""The options of ``repo-builder perf``."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class Number(click.FloatRange):
    """A finite number in a range; click's own lets ``nan`` and ``inf`` through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - as click has it
        """Return the number, or fail as click does."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number to measure with.", param, ctx)
        return number


RECIPE = "The model's recipe, with its samples and usual loads.  [default: that of the build in --work, or a built-in]"
_PATH = click.Path(path_type=Path)
_ABOVE_0 = Number(0, min_open=True)
_FROM_0 = Number(0)
_OPTIONS = (
    click.option(
        "--url",
        help="host:port, or http(s)://host:port/prefix, grpc(s)://... No proxy of the environment is used.  "
        "[default: localhost:8001 for gRPC, :8000 for HTTP]",
    ),
    click.option(
        "--protocol", type=click.Choice(["grpc", "http", "grpc-stream"]), default="grpc", show_default=True,
        help="How requests travel.",
    ),
    click.option(
        "--version", "--model-version", "version", default="", metavar="N",
        help="Version of the model to measure.  [default: the newest]",
    ),
    click.option("--metrics-url", help="host:port of Triton's metrics.  [default: the server's port 8002]"),
    click.option(
        "--timeout", "--timeout-s", "timeout_s", type=_ABOVE_0, default=10.0, show_default=True, metavar="SECONDS",
        help="Deadline of every call to the server.",
    ),
    click.option(
        "--header", "headers", multiple=True, metavar="NAME:VALUE",
        help="Header of every request and call; repeatable.",
    ),
    click.option("--tls", is_flag=True, help="Encrypt, as https:// and grpcs:// do, and check the certificate."),
    click.option("--ca-file", type=_PATH, help="Certificates (PEM) to trust, instead of the system's."),
    click.option("--cert-file", type=_PATH, help="The client's own certificate (PEM)."),
    click.option("--key-file", type=_PATH, help="Its key (PEM)."),
    click.option("--insecure", is_flag=True, help="With TLS: take any certificate."),
    # load
    click.option(
        "--concurrency", metavar="N[,N...]",
        help="Requests in flight at a time: 4, or 1,4,16, or 1:16:x2 (doubling).  [default: the recipe's]",
    ),
    click.option(
        "--batch-size", metavar="N[,N...]",
        help="Samples in a request.  [default: the recipe's]",
    ),
    click.option(
        "--request-rate", metavar="N[,N...]",
        help="Send so many requests a second instead, whether or not the server keeps up.",
    ),
    click.option("--poisson", is_flag=True, help="With --request-rate: arrivals at random."),
    click.option(
        "--trace", type=_PATH, metavar="FILE",
        help="Send at recorded times instead: a file with one time in seconds a line.",
    ),
    click.option(
        "--max-p99-ms", type=_ABOVE_0, metavar="MS",
        help="Search the highest throughput at which 99 % of the requests take less.",
    ),
    click.option(
        "--max-in-flight", type=click.IntRange(1), default=128, show_default=True,
        help="Requests that --request-rate and --trace may have in flight.",
    ),
    click.option(
        "--shape", "shape_sets", multiple=True, metavar="NAME:D,D",
        help="Shape, batch left out, of an input whose dimensions vary; repeatable.",
    ),
    click.option(
        "--shared-memory", type=click.Choice(["none", "system", "cuda"]), default="none", show_default=True,
        help="Whether tensors travel through memory that client and server share.",
    ),
    click.option(
        "--workers", type=click.IntRange(1), help="Processes that make the load.  [default: one for 4 cores, at most 4]"
    ),
    click.option(
        "--sequence-length", type=click.IntRange(1), metavar="N",
        help="Requests of a sequence, for models that keep a state between requests.  [default: 20]",
    ),
    click.option(
        "--priority", type=click.IntRange(0), default=0, metavar="N",
        help="Priority of every request in the server's queue; 1 is the highest.  [default: the model's]",
    ),
    click.option(
        "--request-timeout-us", type=click.IntRange(0), default=0,
        metavar="US", help="How long a request may wait in the server's queue, microseconds.  [default: the model's]",
    ),
    # how long
    click.option(
        "--window-ms", type=click.IntRange(1), default=1000, show_default=True, metavar="MS",
        help="A load is measured in windows of at least this time.",
    ),
    click.option(
        "--window-requests", type=click.IntRange(1), default=50, show_default=True, metavar="N",
        help="And of at least so many requests.",
    ),
    click.option(
        "--max-windows", type=click.IntRange(3), default=10, show_default=True, metavar="N",
        help="After so many windows a load that never agrees is reported as unstable.",
    ),
    click.option(
        "--stability-percent", type=_ABOVE_0, default=10.0, show_default=True,
        metavar="PERCENT", help="A load is measured until its last three windows are this near to their mean.",
    ),
    click.option(
        "--stability-percentile", type=click.Choice(["50", "90", "95", "99"]), default="50", show_default=True,
        help="Which latency must agree, beside the throughput: that of so many percent of the requests.",
    ),
    click.option("--duration", type=_ABOVE_0, metavar="SECONDS", help="Measure for so long instead of until stable."),
    click.option("--requests", type=click.IntRange(3), metavar="N", help="Measure so many instead of until stable."),
    # data
    click.option(
        "--data", "--dataset", "data", metavar="SOURCE",
        help="Samples instead of the recipe's: a .npz, a .csv, a folder, a built-in, module:function, or random.",
    ),
    click.option(
        "--input-data", type=_PATH, metavar="FILE",
        help="What requests hold: a .npz by input name, perf_analyzer's JSON, or of a pipeline a folder or a .txt; "
        "accuracy still takes --data.",
    ),
    click.option(
        "--string-length", type=click.IntRange(0, 1 << 20), default=16, show_default=True, metavar="N",
        help="Bytes of a made-up string."
    ),
    click.option("--data-dir", type=_PATH, help="Folder of the data set's files, instead of a download."),
    click.option(
        "--recipe", metavar="RECIPE",
        help=RECIPE,
    ),
    click.option("--work", type=_PATH, default=Path("build"), show_default=True, help="Folder of the builds."),
    click.option("--no-accuracy", is_flag=True, help="Leave accuracy out."),
    click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, metavar="N",
        help="Of made-up inputs and random arrivals.",
    ),
    # what comes out
    click.option("--explain", "explained", is_flag=True, help="Say where the time goes, and what would help."),
    click.option(
        "--baseline", type=_PATH, metavar="RUN.json",
        help="Compare with an earlier run, kept by --json FILE; exit code 1 where this one is worse.",
    ),
    click.option(
        "--accuracy-tolerance", type=_FROM_0, default=1.0, show_default=True, metavar="POINTS",
        help="Points of top-1 (1 is a hundredth) that may be lost against the baseline.",
    ),
    click.option(
        "--latency-tolerance", type=_FROM_0, default=10.0, show_default=True, metavar="PERCENT",
        help="How much latencies may rise against the baseline.",
    ),
    click.option(
        "--json", "json_to", is_flag=False, flag_value="-", metavar="[FILE]",
        help="Print the result as JSON; with a FILE, print tables and write the JSON there.",
    ),
    click.option("--csv", "csv_to", type=_PATH, metavar="FILE", help="Write the loads in perf_analyzer's columns."),
    click.option(
        "--report", "report_to", type=_PATH, metavar="FILE.html",
        help="Write one self-contained page with charts.",
    ),
    click.option("--raw", is_flag=True, help="Keep the latency of every request in the JSON."),
)  # fmt: skip


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add every option to a function."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
