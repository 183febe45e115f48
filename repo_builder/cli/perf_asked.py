"""What the options of ``repo-builder perf`` ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from repo_builder.flows.perf import PerfOptions
    from repo_builder.measure.load.course import Pace
    from repo_builder.measure.wire.tls import Tls
    from repo_builder.results import Level


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
        dataset=asked["data"],
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
