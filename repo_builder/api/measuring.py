"""A served model measured, and what that gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from repo_builder.api import loads
from repo_builder.api.places import WORK, path, servers, whole
from repo_builder.core import files
from repo_builder.core.errors import MeasureError, RepoBuilderError
from repo_builder.flows.perf import Asks, Collected, PerfOptions, Tolerances
from repo_builder.flows.perf import perf as run
from repo_builder.measure.wire.made_up import STRING_LENGTH
from repo_builder.measure.wire.tls import Tls
from repo_builder.measure.wire.transport import Endpoint, is_header
from repo_builder.report import page
from repo_builder.results import AccuracyResult, LevelResult, PerfRun, Regression, SharedMemory, schema
from repo_builder.serve import Server

Protocol = Literal["grpc", "http", "grpc-stream"]


@dataclass(frozen=True, kw_only=True)
class PerfResult:
    """A measurement of a served model.

    Attributes:
        run: All that was measured.
        error: What ended the measurement early or makes it a bad one; None where it is good.
    """

    run: PerfRun
    error: RepoBuilderError | None = None

    @property
    def accuracy(self) -> AccuracyResult | None:
        """Accuracy through the server; None where it was not measured, for which ``run.accuracy_skipped`` says why."""
        return self.run.accuracy

    @property
    def levels(self) -> tuple[LevelResult, ...]:
        """Latency and throughput, one entry a load, in the order of measuring."""
        return self.run.levels

    @property
    def worse(self) -> tuple[Regression, ...]:
        """What got worse than the baseline; empty without one."""
        return self.run.comparison.worse if self.run.comparison else ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, as ``perf --json`` prints them (docs/perf-schema.md)."""
        return schema.to_json(self.run)

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, which ``perf(baseline=...)`` and ``perf --baseline`` read.

        Raises:
            OutputError: It cannot be written.
        """
        files.write_text(Path(path), schema.dumps(self.run))
        return Path(path)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page.

        Raises:
            OutputError: It cannot be written.
        """
        files.write_text(Path(path), page.render(self.run))
        return Path(path)


def perf(
    model: str,
    *,
    server: Server | None = None,
    url: str | None = None,
    protocol: Protocol = "grpc",
    version: int | str = "",
    metrics_url: str | None = None,
    timeout_s: float = 10.0,
    headers: Mapping[str, str] | None = None,
    tls: bool = False,
    ca_file: str | Path | None = None,
    cert_file: str | Path | None = None,
    key_file: str | Path | None = None,
    insecure: bool = False,
    concurrency: int | Sequence[int] | None = None,
    batch_size: int | Sequence[int] | None = None,
    request_rate: float | Sequence[float] | None = None,
    poisson: bool = False,
    trace: str | Path | None = None,
    max_p99_ms: float | None = None,
    max_in_flight: int = 128,
    shapes: dict[str, tuple[int, ...]] | None = None,
    shared_memory: SharedMemory = "none",
    workers: int | None = None,
    sequence_length: int | None = None,
    priority: int = 0,
    request_timeout_us: int = 0,
    window_ms: float = 1000,
    window_requests: int = 50,
    max_windows: int = 10,
    stability_percent: float = 10.0,
    stability_percentile: Literal[50, 90, 95, 99] = 50,
    duration_s: float | None = None,
    requests: int | None = None,
    recipe: str | None = None,
    work: str | Path = WORK,
    data: str | None = None,
    input_data: str | Path | None = None,
    string_length: int = STRING_LENGTH,
    data_dir: str | Path | None = None,
    accuracy: bool = True,
    seed: int = 0,
    explain: bool = False,
    raw: bool = False,
    baseline: PerfResult | str | Path | None = None,
    accuracy_tolerance: float = 1.0,
    latency_tolerance: float = 10.0,
    on_error: Literal["raise", "return"] = "raise",
) -> PerfResult:
    """Measure a served model, as ``repo-builder perf`` does: accuracy first, then latency and throughput.

    Args:
        model: The model's name in the server.
        server: What ``serve`` returned, instead of ``url``.
        url: As ``--url``; None is this machine and Triton's usual port.
        protocol: How requests travel.
        version: Version of the model; empty for the newest.
        metrics_url: ``host:port`` of Triton's metrics; None is the server's port 8002.
        timeout_s: Deadline of every call, seconds.
        headers: Headers of every request and call.
        tls: Whether to encrypt, as ``https://`` and ``grpcs://`` do.
        ca_file: Certificates (PEM) to trust instead of the system's.
        cert_file: The client's own certificate (PEM).
        key_file: Its key (PEM).
        insecure: Whether any certificate is taken.
        concurrency: Requests in flight, one number or several; None takes the recipe's.
        batch_size: Samples a request, likewise.
        request_rate: Requests a second instead, whether or not the server keeps up.
        poisson: Whether these arrive at random.
        trace: File of times to send at instead, one in seconds a line.
        max_p99_ms: Search the highest throughput whose p99 is under this instead.
        max_in_flight: Requests that ``request_rate`` and ``trace`` may have in flight.
        shapes: Shapes, batch left out, of inputs with dynamic dimensions.
        shared_memory: Where tensors travel.
        workers: Processes that make the load; None takes one for four cores, at most 4.
        sequence_length: Requests of a sequence; None is 20, or as the data has them.
        priority: Of every request; 0 is the model's.
        request_timeout_us: How long a request may wait in the server's queue; 0 is the model's.
        window_ms: Least time of a window.
        window_requests: Least requests of a window.
        max_windows: Windows after which a level is unstable.
        stability_percent: How far the last three windows may differ from their mean.
        stability_percentile: The latency percentile that must be stable.
        duration_s: Measure each level for so long, seconds, instead of until it is stable.
        requests: Measure so many instead.
        recipe: Where data and defaults come from; None takes the build's recipe, or a built-in of that name.
        work: Folder of the build's artifacts.
        data: Data instead of the recipe's; ``random`` makes inputs up.
        input_data: Inputs of the load: .npz by input name, or perf_analyzer's JSON.
        string_length: Length of made-up strings, bytes.
        data_dir: Folder of the data set's files.
        accuracy: Whether accuracy is measured.
        seed: Seed of made-up inputs and random arrival times.
        explain: Whether to say where the time goes.
        raw: Whether every latency is kept, in ``PerfResult.levels``.
        baseline: An earlier result, or the file that it was saved to; what got worse is in ``PerfResult.worse``.
        accuracy_tolerance: Points of top-1 that may be lost against the baseline.
        latency_tolerance: Percent that latencies may rise.
        on_error: Whether an error is raised, or returned in ``PerfResult.error`` with what was measured before it; one
            before anything is known of the model is always raised.

    Raises:
        MeasureError: Arguments contradict each other, requests failed, or nothing was answered.
        RepoBuilderError: What ended the run early.
    """
    url, metrics_url = servers(server, url, metrics_url, protocol)
    encrypted = _tls(tls, ca_file, cert_file, key_file, insecure)
    options = PerfOptions(
        model=model,
        endpoint=Endpoint.parse(url, protocol, "url", tls=encrypted, headers=_headers(headers or {})),
        version=str(version),
        metrics_url=metrics_url,
        recipe=recipe,
        work=Path(work),
        dataset=data,
        data_dir=path(data_dir),
        input_data=path(input_data),
        string_length=whole(string_length, "string_length"),
        asks=Asks(
            sequence_length=sequence_length
            if sequence_length is None
            else whole(sequence_length, "sequence_length", 1),
            priority=whole(priority, "priority"),
            timeout_us=whole(request_timeout_us, "request_timeout_us"),
        ),
        levels=loads.levels(
            concurrency, batch_size, request_rate, poisson, max_p99_ms, shapes, shared_memory, trace, max_in_flight
        ),
        max_p99_ms=max_p99_ms,
        pace=loads.pace(
            duration_s,
            requests,
            window_ms=window_ms,
            window_requests=window_requests,
            max_windows=max_windows,
            stability_percent=stability_percent,
            stability_percentile=stability_percentile,
            raw=raw,
        ),
        with_accuracy=accuracy,
        with_explanation=explain,
        reference=_reference(baseline),
        tolerances=Tolerances(
            accuracy=_tolerance(accuracy_tolerance, "accuracy_tolerance"),
            latency=_tolerance(latency_tolerance, "latency_tolerance"),
        ),
        timeout_s=timeout_s,
        workers=workers if workers is None else whole(workers, "workers", 1),
        seed=whole(seed, "seed"),
    )
    return _measured(options, on_error)


def _measured(options: PerfOptions, on_error: Literal["raise", "return"]) -> PerfResult:
    collected = Collected()
    failed: RepoBuilderError | None = None
    try:
        run(options, collected)
    except RepoBuilderError as error:
        if on_error == "raise" or collected.run is None:
            raise
        failed = error
    if collected.run is None:
        raise MeasureError("nothing was measured", where=options.model)
    return PerfResult(run=collected.run, error=failed)


def _tls(
    tls: bool,
    ca_file: str | Path | None,
    cert_file: str | Path | None,
    key_file: str | Path | None,
    insecure: bool,
) -> Tls | None:
    """Return how to encrypt; None where nothing asks for it."""
    if key_file is not None and cert_file is None:
        raise MeasureError("key_file needs cert_file", where="perf", hint="give both")
    if not (tls or insecure or ca_file or cert_file):
        return None
    made = Tls(ca_file=path(ca_file), cert_file=path(cert_file), key_file=path(key_file), insecure=insecure)
    made.context()  # what is wrong with the files is said before anybody connects
    return made


def _headers(given: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    bad = next((name for name, value in given.items() if not is_header(name, value)), None)
    if bad is not None:
        raise MeasureError(f"'{bad}' is no header", where="headers", hint='as in {"Authorization": "Bearer ..."}')
    return tuple(given.items())


def _tolerance(percent: float, name: str) -> float:
    if not 0 <= percent < math.inf:
        raise MeasureError(f"{percent!r} is not a number from 0", where=name)
    return percent / 100


def _reference(baseline: PerfResult | str | Path | None) -> PerfRun | None:
    if baseline is None:
        return None
    return baseline.run if isinstance(baseline, PerfResult) else schema.read(Path(baseline))
