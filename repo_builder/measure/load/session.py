"""A served model under measurement: one server, one model, one protocol, any number of levels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import Array
from repo_builder.measure.load import outputs, schedule, server_stats, windows
from repo_builder.measure.load.course import Pace
from repo_builder.measure.load.metrics import Sampler
from repo_builder.measure.load.server_stats import Snapshot
from repo_builder.measure.load.worker import Fleet, Job
from repo_builder.measure.wire import payloads
from repo_builder.measure.wire.control import open_control
from repo_builder.measure.wire.messages import codec
from repo_builder.measure.wire.model import describe
from repo_builder.measure.wire.shm import SharedRequests
from repo_builder.measure.wire.transport import Endpoint
from repo_builder.measure.wire.verify import Expected
from repo_builder.results import Level, LevelResult, ServerInfo

METRICS_PORT = 8002


class Session:
    """Everything that is open while a model is measured.

    Args:
        endpoint: The server.
        model: The model's name.
        version: Its version; empty for the newest.
        metrics_url: ``host:port`` of the metrics; None is the server's host and port 8002.
        timeout_s: Deadline of every call.
        workers: Processes that make the load.
        seed: Seed of random arrival times.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        *,
        version: str = "",
        metrics_url: str | None = None,
        timeout_s: float,
        workers: int = 1,
        seed: int = 0,
    ) -> None:
        self.endpoint = endpoint
        self._timeout_s = timeout_s
        self._seed = seed
        self._control = open_control(endpoint, timeout_s)
        try:
            about = self._control.server()
            self.server = ServerInfo(
                url=str(endpoint),
                protocol=endpoint.protocol,
                name=str(about.get("name", "")),
                version=str(about.get("version", "")),
            )
            self.model = describe(self._control, model, version)
            self._version = version
            self._statistics = self._has_statistics()
            self._sampler = _sampler(endpoint, metrics_url, timeout_s)
        except BaseException:
            self._control.close()
            raise
        self._fleet = Fleet(workers)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and close the connections."""
        self._fleet.close()
        self._sampler.close()
        self._control.close()

    def infer(self, samples: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for samples, ``(n, *shape)`` by name, in their order."""
        return outputs.infer_all(self.endpoint, self.model, samples, timeout_s=self._timeout_s)

    def rest(self, seconds: float) -> bool:
        """Measure the machine without load for a while where it has GPUs; return whether that was done."""
        if self._sampler.has_gpus:
            self._sampler.rest(seconds)
        return self._sampler.has_gpus

    def measure(self, level: Level, samples: Mapping[str, Array], pace: Pace) -> LevelResult:
        """Put the server under one load.

        Args:
            level: The load.
            samples: ``(n, *shape)`` by input name; batches are taken from it in turn.
            pace: How long.

        Raises:
            MeasureError: The level does not fit the model, or the server cannot be reached.
            LevelStopped: It ended early; holds what was measured.
        """
        self._check(level)
        payloads.check_samples(self.model, samples)
        if level.request_rate:
            pace = pace.for_rate(level.request_rate)
        arrivals = self._arrivals(level, pace)
        if level.mode == "trace" and arrivals is not None:
            pace = pace.for_trace(arrivals[-1] / 1e9)
        wire = codec(self.endpoint, self.model.name, self._version)
        if level.shared_memory == "none":
            batches = payloads.batches(self.model, samples, level.batch_size)
            return self._run(level, pace, tuple(payloads.encode(wire, item) for item in batches), arrivals)
        batches = payloads.batches(self.model, samples, level.batch_size, least=level.concurrency)
        inline = outputs.infer_batches(self.endpoint, self.model, batches, timeout_s=self._timeout_s)
        reference = [item.outputs for item in inline]
        with SharedRequests(self._control, wire, self.model, batches, reference, level.shared_memory) as shared:
            result = self._run(level, pace, shared.payloads, arrivals)
            shared.verify()
            return result

    def _run(self, level: Level, pace: Pace, requests: tuple[bytes, ...], arrivals: Array | None) -> LevelResult:
        job = Job(
            endpoint=self.endpoint,
            model=self.model.name,
            version=self._version,
            payloads=requests,
            expected=Expected.of(self.model, level.batch_size, inline=level.shared_memory == "none"),
            slots=level.concurrency,
            timeout_s=self._timeout_s,
        )
        self._fleet.prepare(job)
        return windows.measure(
            self._fleet,
            level,
            pace,
            arrivals_ns=arrivals,
            probe=self._probe if self._statistics else None,
            metrics=self._sampler.over,
        )

    def _check(self, level: Level) -> None:
        most = self.model.max_batch_size
        if most and level.batch_size > most:
            raise MeasureError(
                f"batch {level.batch_size} is more than the model's max_batch_size {most}", where="--batch-size"
            )
        if not self.model.batch_axis and level.batch_size > 1:
            raise MeasureError(
                f"the model '{self.model.name}' takes no batches", where="--batch-size", hint="leave it out"
            )

    def _arrivals(self, level: Level, pace: Pace) -> Array | None:
        if level.mode == "trace":
            return schedule.read_trace(Path(level.trace))
        if level.mode == "rate" and level.request_rate:
            return schedule.constant(level.request_rate, pace.longest_s)
        if level.mode == "poisson" and level.request_rate:
            return schedule.poisson(level.request_rate, pace.longest_s, self._seed)
        return None

    def _has_statistics(self) -> bool:
        try:
            self._probe()
        except MeasureError:
            return False
        return True

    def _probe(self) -> Snapshot:
        return server_stats.snapshot(self._control, self.model)


def _sampler(endpoint: Endpoint, url: str | None, timeout_s: float) -> Sampler:
    place = Endpoint.parse(url or f"{endpoint.host}:{METRICS_PORT}", "http", "--metrics-url")
    sampler = Sampler(place.host, place.port, timeout_s=min(2.0, timeout_s))
    if url and not sampler.available:
        raise MeasureError("no metrics are to be had there", where=f"--metrics-url {url}", hint="Triton's is port 8002")
    return sampler
