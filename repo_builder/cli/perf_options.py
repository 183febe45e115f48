"""The options of ``repo-builder perf``, and what they ask for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from repo_builder.flows.perf import PerfOptions
    from repo_builder.measure.load.course import Pace
    from repo_builder.measure.wire.tls import Tls
    from repo_builder.results import Level


class _Number(click.FloatRange):
    """A finite number in a range; click's own lets ``nan`` and ``inf`` through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:  # noqa: ANN401 - as click has it
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no number to measure with.", param, ctx)
        return number


_PATH = click.Path(path_type=Path)
_ABOVE_0 = _Number(0, min_open=True)
_FROM_0 = _Number(0)
_OPTIONS = (
    click.option(
        "--url",
        help="host:port, or http(s)://host:port/prefix, grpc(s)://... No proxy of the environment is used. "
        "[default: localhost:8001 for gRPC, :8000 for HTTP]",
    ),
    click.option(
        "--protocol", type=click.Choice(["grpc", "http", "grpc-stream"]), default="grpc", show_default=True,
        help="How requests travel.",
    ),
    click.option("--model-version", "version", default="", help="Version of the model. [default: the newest]"),
    click.option("--metrics-url", help="host:port of Triton's metrics. [default: the server's port 8002]"),
    click.option("--timeout-s", type=_ABOVE_0, default=10.0, show_default=True, help="Deadline of every call."),
    click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="Header of every request and call."),
    click.option("--tls", is_flag=True, help="Encrypt, as https:// and grpcs:// do, and check the certificate."),
    click.option("--ca-file", type=_PATH, help="Certificates (PEM) to trust, instead of the system's."),
    click.option("--cert-file", type=_PATH, help="The client's own certificate (PEM)."),
    click.option("--key-file", type=_PATH, help="Its key (PEM)."),
    click.option("--insecure", is_flag=True, help="With TLS: take any certificate."),
    # load
    click.option("--concurrency", help="Requests in flight: 4, or 1,4,16, or 1:16:x2. [default: the recipe's]"),
    click.option("--batch-size", help="Samples a request, written alike. [default: the recipe's]"),
    click.option("--request-rate", help="Requests a second instead, whether or not the server keeps up."),
    click.option("--poisson", is_flag=True, help="With --request-rate: arrivals at random."),
    click.option("--trace", type=_PATH, help="Send at recorded times instead: one time in seconds a line."),
    click.option("--max-p99-ms", type=_ABOVE_0, help="Search the highest throughput whose p99 is under this."),
    click.option(
        "--max-in-flight", type=click.IntRange(1), default=128, show_default=True,
        help="Requests that --request-rate and --trace may have in flight.",
    ),
    click.option("--shape", "shape_sets", multiple=True, metavar="NAME:D,D", help="Shape of a dynamic input."),
    click.option(
        "--shared-memory", type=click.Choice(["none", "system", "cuda"]), default="none", show_default=True,
        help="Where tensors travel.",
    ),
    click.option(
        "--workers", type=click.IntRange(1), help="Processes that make the load. [default: one for 4 cores, at most 4]"
    ),
    click.option("--sequence-length", type=click.IntRange(1), help="Requests a sequence. [default: 20]"),
    click.option("--priority", type=click.IntRange(0), default=0, help="Of every request. [default: the model's]"),
    click.option(
        "--request-timeout-us", type=click.IntRange(0), default=0,
        help="How long a request may wait in the server's queue. [default: the model's]",
    ),
    # how long
    click.option("--window-ms", type=click.IntRange(1), default=1000, show_default=True, help="Least time a window."),
    click.option("--window-requests", type=click.IntRange(1), default=50, show_default=True, help="Least requests."),
    click.option("--max-windows", type=click.IntRange(3), default=10, show_default=True, help="Then it is unstable."),
    click.option(
        "--stability-percent", type=_ABOVE_0, default=10.0, show_default=True,
        help="How far the last three windows may differ from their mean.",
    ),
    click.option(
        "--stability-percentile", type=click.Choice(["50", "90", "95", "99"]), default="50", show_default=True,
        help="The latency percentile that must be stable.",
    ),
    click.option("--duration", type=_ABOVE_0, metavar="SECONDS", help="Measure for so long instead of until stable."),
    click.option("--requests", type=click.IntRange(3), metavar="N", help="Measure so many instead of until stable."),
    # data
    click.option("--dataset", help="Data instead of the recipe's: .npz, .csv, a folder, module:function, or random."),
    click.option(
        "--input-data", type=_PATH,
        help="Inputs of the load: .npz by input name, perf_analyzer's JSON, or of a pipeline: a folder or a .txt.",
    ),
    click.option(
        "--string-length", type=click.IntRange(0, 1 << 20), default=16, show_default=True, help="Of made-up strings."
    ),
    click.option("--data-dir", type=_PATH, help="Folder of the data set, instead of a download."),
    click.option("--recipe", help="Where data and defaults come from. [default: the build's recipe, or a built-in]"),
    click.option("--work", type=_PATH, default=Path("build"), show_default=True, help="Folder of artifacts."),
    click.option("--no-accuracy", is_flag=True, help="Latency only."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of random inputs and arrivals."),
    # what comes out
    click.option("--explain", "explained", is_flag=True, help="Say where the time goes, and what would help."),
    click.option("--baseline", type=_PATH, metavar="RUN.json", help="Compare with an earlier run; exit 1 if worse."),
    click.option("--accuracy-tolerance", type=_FROM_0, default=1.0, show_default=True, help="Points of top-1 to lose."),
    click.option("--latency-tolerance", type=_FROM_0, default=10.0, show_default=True, help="Percent to rise."),
    click.option(
        "--json", "json_to", is_flag=False, flag_value="-", metavar="[FILE]",
        help="JSON on stdout instead of tables, or beside them in a FILE.",
    ),
    click.option("--csv", "csv_to", type=_PATH, metavar="FILE", help="Levels in perf_analyzer's columns."),
    click.option("--report", "report_to", type=_PATH, metavar="FILE.html", help="One self-contained page."),
    click.option("--raw", is_flag=True, help="Keep every latency in the JSON."),
)  # fmt: skip


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add every option to a function."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def options(
    model: str,
    *,
    url: str | None,
    protocol: str,
    explained: bool,
    baseline: Path | None,
    **asked: Any,  # noqa: ANN401 - the rest of click's values
) -> PerfOptions:
    """Return what was asked for.

    Raises:
        click.UsageError: Options contradict each other.
        MeasureError: A number, a URL or a file cannot be understood.
    """
    from repo_builder.flows.perf import Asks, PerfOptions, Tolerances
    from repo_builder.measure.wire.transport import Endpoint
    from repo_builder.results import schema

    return PerfOptions(
        model=model,
        endpoint=Endpoint.parse(
            url,
            protocol,  # type: ignore[arg-type]
            tls=_tls(**asked),
            headers=tuple(_header(item) for item in asked["headers"]),
        ),
        version=asked["version"],
        metrics_url=asked["metrics_url"],
        recipe=asked["recipe"],
        work=asked["work"],
        dataset=asked["dataset"],
        data_dir=asked["data_dir"],
        input_data=asked["input_data"],
        string_length=asked["string_length"],
        asks=Asks(
            sequence_length=asked["sequence_length"],
            priority=asked["priority"],
            timeout_us=asked["request_timeout_us"],
        ),
        levels=_levels(**asked),
        max_p99_ms=asked["max_p99_ms"],
        pace=_pace(**asked),
        with_accuracy=not asked["no_accuracy"],
        with_explanation=explained,
        reference=schema.read(baseline) if baseline else None,
        tolerances=Tolerances(accuracy=asked["accuracy_tolerance"] / 100, latency=asked["latency_tolerance"] / 100),
        timeout_s=asked["timeout_s"],
        workers=asked["workers"],
        seed=asked["seed"],
    )


def _header(text: str) -> tuple[str, str]:
    """Read ``Name: value``.

    Raises:
        click.UsageError: It is of another form, or holds what no header may.
    """
    from repo_builder.measure.wire.transport import is_header

    name, colon, value = text.partition(":")
    if not colon or not text.isprintable() or not is_header(name.strip(), value.strip()):
        raise click.UsageError(f"'{text}' is no header: write --header 'Authorization: Bearer ...'")
    return name.strip(), value.strip()


def _tls(
    *,
    tls: bool,
    ca_file: Path | None,
    cert_file: Path | None,
    key_file: Path | None,
    insecure: bool,
    **_: Any,  # noqa: ANN401
) -> Tls | None:
    """Return how to encrypt; None where nothing asks for it."""
    from repo_builder.measure.wire.tls import Tls

    if key_file is not None and cert_file is None:
        raise click.UsageError("--key-file needs --cert-file")
    if not (tls or insecure or ca_file or cert_file):
        return None
    made = Tls(ca_file=ca_file, cert_file=cert_file, key_file=key_file, insecure=insecure)
    made.context()  # what is wrong with the files is said before anybody connects
    return made


def _levels(
    *,
    concurrency: str | None,
    batch_size: str | None,
    request_rate: str | None,
    poisson: bool,
    trace: Path | None,
    shape_sets: tuple[str, ...],
    shared_memory: Any,  # noqa: ANN401 - checked by click
    max_in_flight: int,
    max_p99_ms: float | None,
    **_: Any,  # noqa: ANN401 - the rest of them
) -> tuple[Level, ...]:
    """Return the levels asked for; none where all is left to the recipe."""
    from repo_builder.measure.load import grid

    loads = [
        name
        for name, given in (
            ("--concurrency", concurrency),
            ("--request-rate", request_rate),
            ("--trace", trace),
            ("--max-p99-ms", max_p99_ms),
        )
        if given is not None
    ]
    if len(loads) > 1:
        raise click.UsageError(f"{' and '.join(loads)} are different loads: give one of them")
    if poisson and not request_rate:
        raise click.UsageError("--poisson needs --request-rate")
    if not loads and batch_size is None and not shape_sets and shared_memory == "none":
        return ()
    return grid.levels(
        concurrency=grid.whole_numbers(concurrency or "1", "--concurrency"),
        rates=grid.numbers(request_rate, "--request-rate") if request_rate else (),
        poisson=poisson,
        trace=str(trace or ""),
        batch_sizes=grid.whole_numbers(batch_size or "1", "--batch-size"),
        shape_sets=[grid.shapes(item) for item in shape_sets],
        shared_memory=shared_memory,
        most_in_flight=max_in_flight,
    )


def _pace(
    *,
    window_ms: int,
    window_requests: int,
    max_windows: int,
    stability_percent: float,
    stability_percentile: str,
    duration: float | None,
    requests: int | None,
    trace: Path | None,
    raw: bool,
    **_: Any,  # noqa: ANN401 - the rest of them
) -> Pace:
    from repo_builder.measure.load.course import Pace

    if duration is not None and requests is not None:
        raise click.UsageError("--duration and --requests are different ends: give one of them")
    pace = Pace(
        warmup_s=window_ms / 2000,
        window_s=window_ms / 1000,
        window_requests=window_requests,
        most_windows=max_windows,
        most_s=max(Pace.most_s, 2 * max_windows * window_ms / 1000),
        tolerance=stability_percent / 100,
        percentile=float(stability_percentile),
        raw=raw,
    )
    if duration is not None:
        return pace.for_seconds(duration)
    return pace.for_requests(requests) if requests is not None else pace
