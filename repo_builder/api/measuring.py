"""A served model measured, and what that gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from repo_builder.api import loads
from repo_builder.api.places import WORK, path
from repo_builder.core import files
from repo_builder.core.errors import MeasureError, RepoBuilderError
from repo_builder.flows.perf import Collected, PerfOptions, Tolerances
from repo_builder.flows.perf import perf as run
from repo_builder.measure.wire.transport import Endpoint
from repo_builder.report import page
from repo_builder.results import AccuracyResult, LevelResult, PerfRun, Regression, SharedMemory, schema
from repo_builder.serve import Server


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
    protocol: Literal["grpc", "http", "grpc-stream"] = "grpc",
    concurrency: int | Sequence[int] | None = None,
    batch_size: int | Sequence[int] | None = None,
    request_rate: float | Sequence[float] | None = None,
    poisson: bool = False,
    max_p99_ms: float | None = None,
    shapes: dict[str, tuple[int, ...]] | None = None,
    shared_memory: SharedMemory = "none",
    duration_s: float | None = None,
    requests: int | None = None,
    recipe: str | None = None,
    work: str | Path = WORK,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    accuracy: bool = True,
    explain: bool = False,
    baseline: PerfResult | str | Path | None = None,
    accuracy_tolerance: float = 1.0,
    latency_tolerance: float = 10.0,
    timeout_s: float = 10.0,
    seed: int = 0,
    on_error: Literal["raise", "return"] = "raise",
) -> PerfResult:
    """Measure a served model, as ``repo-builder perf`` does: accuracy first, then latency and throughput.

    Args:
        model: The model's name in the server.
        server: What ``serve`` returned, instead of ``url``.
        url: As ``--url``; None is this machine and Triton's usual port.
        protocol: How requests travel.
        concurrency: Requests in flight, one number or several; None takes the recipe's.
        batch_size: Samples a request, likewise.
        request_rate: Requests a second instead, whether or not the server keeps up.
        poisson: Whether these arrive at random.
        max_p99_ms: Search the highest throughput whose p99 is under this instead.
        shapes: Shapes, batch left out, of inputs with dynamic dimensions.
        shared_memory: Where tensors travel.
        duration_s: Measure each level for so long, seconds, instead of until it is stable.
        requests: Measure so many instead.
        recipe: Where data and defaults come from; None takes the build's recipe, or a built-in of that name.
        work: Folder of the build's artifacts.
        dataset: Data instead of the recipe's; ``random`` makes inputs up.
        data_dir: Folder of the data set's files.
        accuracy: Whether accuracy is measured.
        explain: Whether to say where the time goes.
        baseline: An earlier result, or the file that it was saved to; what got worse is in ``PerfResult.worse``.
        accuracy_tolerance: Points of top-1 that may be lost against the baseline.
        latency_tolerance: Percent that latencies may rise.
        timeout_s: Deadline of every call, seconds.
        seed: Seed of made-up inputs and random arrival times.
        on_error: Whether an error is raised, or returned in ``PerfResult.error`` with what was measured before it; one
            before anything is known of the model is always raised.

    Raises:
        MeasureError: Arguments contradict each other, requests failed, or nothing was answered.
        RepoBuilderError: What ended the run early.
    """
    metrics_url = None
    if server is not None:
        if url is not None:
            raise MeasureError("server and url are two servers", where="perf", hint="give one of them")
        url = server.http_url if protocol == "http" else server.grpc_url
        metrics_url = server.metrics_url.removeprefix("http://").partition("/")[0]
    levels = loads.levels(concurrency, batch_size, request_rate, poisson, max_p99_ms, shapes, shared_memory)
    options = PerfOptions(
        model=model,
        endpoint=Endpoint.parse(url, protocol, "url"),
        metrics_url=metrics_url,
        recipe=recipe,
        work=Path(work),
        dataset=dataset,
        data_dir=path(data_dir),
        levels=levels,
        max_p99_ms=max_p99_ms,
        pace=loads.pace(duration_s, requests),
        with_accuracy=accuracy,
        with_explanation=explain,
        reference=_reference(baseline),
        tolerances=Tolerances(accuracy=accuracy_tolerance / 100, latency=latency_tolerance / 100),
        timeout_s=timeout_s,
        seed=seed,
    )
    collected = Collected()
    failed: RepoBuilderError | None = None
    try:
        run(options, collected)
    except RepoBuilderError as error:
        if on_error == "raise" or collected.run is None:
            raise
        failed = error
    if collected.run is None:
        raise MeasureError("nothing was measured", where=model)
    return PerfResult(run=collected.run, error=failed)


def _reference(baseline: PerfResult | str | Path | None) -> PerfRun | None:
    if baseline is None:
        return None
    return baseline.run if isinstance(baseline, PerfResult) else schema.read(Path(baseline))
