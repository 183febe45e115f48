"""One load that a server was put under, and what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["concurrency", "rate", "poisson", "trace"]
SharedMemory = Literal["none", "system", "cuda"]


@dataclass(frozen=True, kw_only=True)
class LatencySummary:
    """A distribution of latencies, in microseconds; every percentile is a latency that was recorded.

    Attributes:
        samples: Number of latencies.
        mean_us: Their mean.
        std_us: Their standard deviation.
        p50_us: Median.
        p90_us: 90th percentile.
        p95_us: 95th percentile.
        p99_us: 99th percentile.
        p999_us: 99.9th percentile.
        max_us: The largest.
    """

    samples: int
    mean_us: float
    std_us: float
    p50_us: float
    p90_us: float
    p95_us: float
    p99_us: float
    p999_us: float
    max_us: float

    def percentile_us(self, percentile: float) -> float:
        """Return one of the percentiles above; 50, 90, 95, 99 or 99.9."""
        return float(getattr(self, f"p{percentile:g}_us".replace(".", "")))


@dataclass(frozen=True, kw_only=True)
class Level:
    """One load that the server was put under.

    Attributes:
        mode: ``concurrency`` closes the loop; ``rate`` and ``poisson`` send at a request rate, ``trace`` at recorded
            times, whether or not the server keeps up.
        concurrency: Requests in flight; in an open loop the most that there may be.
        request_rate: Requests a second that an open loop intends; None otherwise.
        batch_size: Samples a request.
        shapes: Shapes, batch left out, of inputs with dynamic dimensions.
        shared_memory: Where tensors travel.
        trace: The file of arrival times; empty unless mode is ``trace``.
    """

    mode: Mode = "concurrency"
    concurrency: int = 1
    request_rate: float | None = None
    batch_size: int = 1
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shared_memory: SharedMemory = "none"
    trace: str = ""

    def __str__(self) -> str:
        """Return the level as in ``concurrency 4 × batch 8``."""
        load = {
            "concurrency": f"concurrency {self.concurrency}",
            "rate": f"{self.request_rate:g} requests/s" if self.request_rate else "",
            "poisson": f"{self.request_rate:g} requests/s (Poisson)" if self.request_rate else "",
            "trace": f"trace {self.trace}",
        }[self.mode]
        return f"{load} × {self.of}"

    @property
    def of(self) -> str:
        """What a request is, as in ``batch 8 × ids[128]``."""
        return " × ".join((f"batch {self.batch_size}", *(f"{name}{list(size)}" for name, size in self.shapes.items())))


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window of a level.

    Attributes:
        seconds: Its length.
        requests: Requests that were answered in it.
        errors: Requests that failed in it.
        infer_per_s: Inferences answered a second: requests times the level's batch size.
        latency: Latencies of those requests; None where there were none.
        refused: Requests that the server's queue policy refused in it; they are none of the errors.
    """

    seconds: float
    requests: int
    errors: int
    infer_per_s: float
    latency: LatencySummary | None = None
    refused: int = 0


@dataclass(frozen=True, kw_only=True)
class ServerTime:
    """What the server's own statistics say of one model over the measured windows: means per request.

    Attributes:
        model: Name of the model; of an ensemble, or of a model that it is made of.
        requests: Requests that it counted.
        inferences: Samples that it counted.
        executions: Batches that it ran.
        total_us: Time in the server.
        queue_us: Time in the queue; of an ensemble, in the queues of the models that it is made of.
        compute_input_us: Time to gather the inputs.
        compute_infer_us: Time to run the model.
        compute_output_us: Time to hand the outputs out.
        cache_us: Time to look up and insert in the response cache.
        batch_sizes: Pairs of a batch size and how often it was executed.
        cache_hits: Requests that the response cache answered; the model ran for none of them.
    """

    model: str
    requests: int
    inferences: int
    executions: int
    total_us: float
    queue_us: float
    compute_input_us: float
    compute_infer_us: float
    compute_output_us: float
    cache_us: float
    batch_sizes: tuple[tuple[int, int], ...] = ()
    cache_hits: int = 0


@dataclass(frozen=True, kw_only=True)
class ClientCost:
    """What the client itself cost, and whether it was the limit.

    Attributes:
        workers: Processes that made the load.
        cpu_us_per_request: CPU time of these processes a request.
        cpu_share: Share of their cores that they used, 0 to 1; near 1 the client is the limit.
        lag_p50_us: Median time from when a request was due to when it was sent.
        lag_p99_us: 99th percentile of it.
        limited: Whether the client was the limit.
    """

    workers: int
    cpu_us_per_request: float
    cpu_share: float
    lag_p50_us: float
    lag_p99_us: float
    limited: bool


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU over the measured windows, from Triton's metrics.

    Attributes:
        name: Its UUID.
        utilisation: Mean utilisation, 0 to 1; None where not published.
        memory_used_bytes: Largest memory in use; None where not published.
        power_w: Mean power, from the energy counter where there is one; None where not published.
        idle_power_w: Mean power before the load; None where it was not measured.
        energy_j_per_inference: Energy counter difference over inferences, idle included; None without a counter.
    """

    name: str
    utilisation: float | None = None
    memory_used_bytes: float | None = None
    power_w: float | None = None
    idle_power_w: float | None = None
    energy_j_per_inference: float | None = None


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What Triton's metrics say of the machine over the measured windows.

    Attributes:
        cpu_utilisation: Mean over all cores, 0 to 1; None where not published.
        memory_used_bytes: Largest memory in use; None where not published.
        gpus: One entry a GPU.
    """

    cpu_utilisation: float | None = None
    memory_used_bytes: float | None = None
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of a request's time.

    Attributes:
        name: ``engine`` and ``backend``, or ``compute`` where the engine alone was not measured; ``queue``,
            ``input and output``, ``cache``, ``unexplained`` (what the server's statistics leave open), ``client`` (its
            CPU time), ``network`` (what is left).
        us: Its mean, microseconds.
        share: Its share of the whole, 0 to 1.
    """

    name: str
    us: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Where the mean latency of a level goes.

    Attributes:
        mean_latency_us: The mean latency.
        terms: Its parts.
        largest: Name of the largest.
        suggestion: What follows from that, with the figure it follows from.
        engine_batch: Batch size at which the engine alone was measured: the mean that was executed.
    """

    mean_latency_us: float
    terms: tuple[Term, ...]
    largest: str
    suggestion: str
    engine_batch: int


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """Responses of a decoupled model, which answers a request with any number of them.

    Attributes:
        first_response: From when a request was sent to its first response; None where no request had any.
        gap: Between two responses to one request; None where no request had two.
        responses_per_request: Their mean number.
    """

    first_response: LatencySummary | None = None
    gap: LatencySummary | None = None
    responses_per_request: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LevelResult:
    """What was measured at one level; figures are of the merged windows.

    Attributes:
        level: The load.
        stable: Whether the last three windows agree; None where the load does not claim to be steady (a trace).
        windows: Every window, in order.
        merged: How many of the last windows the figures are of.
        seconds: Length of these together.
        requests: Requests answered in them.
        errors: Requests that failed in them.
        failures: What the server said of failed requests → how often, over the whole level.
        requests_per_s: Requests answered a second.
        infer_per_s: Inferences answered a second: requests times the level's batch size.
        latency: From when a request was sent.
        latency_from_due: From when it was due, in open loops: what a user would have waited.
        latency_sample_us: Up to 2,000 of the latencies, evenly thinned, in the order of completion.
        server: The model in the server, then the models that it is made of; empty where there are no statistics.
        network_and_client_us: Mean latency that the server does not account for; None without statistics.
        client: What the client cost.
        hardware: Metrics of the machine; None where the metrics port does not answer.
        explanation: Where the time goes; None where it was not asked for.
        notes: What a reader should know of this level.
        stopped: Why the level ended early; empty where it did not.
        raw_latencies_us: Every latency of the merged windows, in the order of completion; only where asked for.
        refused: Requests in the merged windows that the server's queue policy refused; they are none of the errors.
        reconnects: Connections that ended politely over the whole level and were made anew.
        streaming: Responses of a decoupled model; None of others.
    """

    level: Level
    stable: bool | None = None
    windows: tuple[Window, ...]
    merged: int
    seconds: float
    requests: int
    errors: int
    failures: dict[str, int] = field(default_factory=dict)
    requests_per_s: float
    infer_per_s: float
    latency: LatencySummary | None = None
    latency_from_due: LatencySummary | None = None
    latency_sample_us: tuple[float, ...] = ()
    server: tuple[ServerTime, ...] = ()
    network_and_client_us: float | None = None
    client: ClientCost | None = None
    hardware: Hardware | None = None
    explanation: Explanation | None = None
    notes: tuple[str, ...] = ()
    stopped: str = ""
    raw_latencies_us: tuple[float, ...] = ()
    refused: int = 0
    reconnects: int = 0
    streaming: Streaming | None = None

    @property
    def whole(self) -> bool:
        """Whether the figures are of the model: nothing failed, was refused or came from a cache."""
        hits = self.server[0].cache_hits if self.server else 0
        return bool(self.requests) and not (self.errors or self.refused or self.stopped or hits)

    @property
    def sound(self) -> bool:
        """Whether they are of a steady state, too; a trace claims none."""
        return self.whole and self.stable is not False
