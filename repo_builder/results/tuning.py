"""What a search for the serving configuration tried, measured and chose."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from repo_builder.core import codec

Objective = Literal["throughput", "cost"]
SCHEMA = "repo-builder/tune"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is searched: the serving configuration of one model.

    Attributes:
        instances: Model instances (``instance_group.count``).
        max_batch_size: Largest batch that Triton forms; 0 where Triton does not batch the model.
        max_queue_delay_us: How long a request may wait for others, microseconds.
        preferred_batch_sizes: Batch sizes that the dynamic batcher tries to reach; empty leaves them out.
        threads: Threads inside an operator of ONNX Runtime, 0 for its own choice; None where the backend has no such
            setting.
        batching: Whether Triton puts requests together; a search always has it do so, and what stands there may not.
        build: Which build of the model, counted from 0; more than one only where several were given.
    """

    instances: int = 1
    max_batch_size: int = 0
    max_queue_delay_us: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    threads: int | None = None
    batching: bool = True
    build: int = 0

    def __str__(self) -> str:
        """Return it as in ``2 instances × batch ≤ 32 × delay 200 µs × 1 thread``."""
        parts = [f"{self.instances} instance{'s' if self.instances != 1 else ''}"]
        parts += [f"batch ≤ {self.max_batch_size}"] if self.max_batch_size else []
        delay = f"delay {self.max_queue_delay_us} µs" if self.batching else "no dynamic batching"
        parts += [delay] if self.max_batch_size > 1 else []
        parts += [f"preferred {', '.join(map(str, self.preferred_batch_sizes))}"] if self.preferred_batch_sizes else []
        parts += [f"{self.threads} thread{'s' if self.threads != 1 else ''}"] if self.threads is not None else []
        parts += [f"build {self.build + 1}"] if self.build else []
        return " × ".join(parts)

    def units(self, cores: int) -> int:
        """Return what is paid for: cores that the instances may keep busy, or instances where threads are unknown."""
        return self.instances * (1 if self.threads is None else self.threads or cores)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured value with its 95 % interval; the interval is the value itself where there is too little to tell."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class TrialLevel:
    """One load on one configuration.

    Attributes:
        concurrency: Requests in flight.
        batch_size: Samples a request.
        requests: Requests that were answered.
        whole: Whether nothing failed, was refused or came from a cache.
        infer_per_s: Samples answered a second.
        p50_us: Median latency, microseconds.
        p99_us: 99th percentile of it.
        mean_us: Mean latency.
        mean_batch: Mean batch that the server ran; None without its statistics.
        queue_us: Mean time in the server's queue a request.
        compute_us: Mean time of an execution with its inputs and outputs, a request.
        limit: The largest part of the latency, or ``client`` where the client's processes were at their end.
        advice: What follows from it.
        cpu_utilisation: Mean over all cores of the server's machine, 0 to 1, by Triton's metrics.
        server_cpu_us: CPU time of the server's processes an inference; None where they are not this user's.
        memory_bytes: Memory of the server's processes (proportional set size), or else the machine's in use.
        gpu_utilisation: Mean of the busiest GPU, 0 to 1.
        gpu_memory_bytes: Most of a GPU's memory that was in use.
        energy_j: Energy of all GPUs an inference, idle included; None without a counter.
        cpu_energy_j: Energy of the CPU packages an inference (RAPL), idle included; None where it cannot be read.
    """

    concurrency: int
    batch_size: int
    requests: int
    whole: bool
    infer_per_s: Estimate
    p50_us: Estimate
    p99_us: Estimate
    mean_us: float
    mean_batch: float | None = None
    queue_us: float | None = None
    compute_us: float | None = None
    limit: str = ""
    advice: str = ""
    cpu_utilisation: float | None = None
    server_cpu_us: float | None = None
    memory_bytes: float | None = None
    gpu_utilisation: float | None = None
    gpu_memory_bytes: float | None = None
    energy_j: float | None = None
    cpu_energy_j: float | None = None

    def within(self, max_p99_us: float | None) -> bool:
        """Whether it counts: nothing went wrong in it, and its p99 is under the limit."""
        return self.whole and (max_p99_us is None or self.p99_us.value <= max_p99_us)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One configuration that was loaded, and what was measured of it.

    Attributes:
        number: Its number in the storage.
        settings: The configuration.
        state: ``complete``, ``pruned`` where it was left before its best load was known, ``failed``, or ``running``.
        origin: Who proposed it: ``present``, ``queueing model`` or ``search``.
        levels: Every load, in the order of measuring.
        reason: Why it was pruned or failed.
        seconds: How long it took, loading included.
        where: The machine that measured it.
    """

    number: int
    settings: Settings
    state: Literal["complete", "pruned", "failed", "running"] = "complete"
    origin: str = "search"
    levels: tuple[TrialLevel, ...] = ()
    reason: str = ""
    seconds: float = 0.0
    where: str = ""

    def best(self, max_p99_us: float | None) -> TrialLevel | None:
        """Return the load with the highest throughput under the limit; None where no load keeps it."""
        held = [item for item in self.levels if item.within(max_p99_us)]
        return max(held, key=lambda item: item.infer_per_s.value, default=None)


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A configuration measured again, in turns with the others.

    Attributes:
        settings: The configuration.
        concurrency: Requests in flight.
        infer_per_s: Its throughput in every round.
        p99_us: Its p99 in every round.
        present: Whether it is the configuration that stood there at first.
        chosen: Whether it is the one that was chosen.
    """

    settings: Settings
    concurrency: int
    infer_per_s: tuple[float, ...]
    p99_us: tuple[float, ...]
    present: bool = False
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two configurations measured in turns: the second over the first, as a ratio of throughputs.

    Attributes:
        what: What is compared.
        ratio: Mean ratio of the rounds, with its interval.
        rounds: How many there were.
        kept: Whether the second was taken.
    """

    what: str
    ratio: Estimate
    rounds: int
    kept: bool


@dataclass(frozen=True, kw_only=True)
class SameOutputs:
    """The outputs of the chosen configuration held against those of the one that stood there at first.

    Attributes:
        samples: Samples sent, each by itself.
        bit_equal: Whether every bit of every output is the same.
        max_abs_diff: The largest difference; 0 where they are equal.
    """

    samples: int
    bit_equal: bool
    max_abs_diff: float


@dataclass(frozen=True, kw_only=True)
class QueueModel:
    """The coarse model of queueing that seeds the search (``measure.judge.queueing``); times in microseconds.

    Attributes:
        fixed_us: What every execution takes, whatever its batch.
        sample_us: What every sample adds to that.
        outside_us: What a request spends outside the model at concurrency 1.
        cpu_us: CPU time a sample costs beside the model: client, wire and server.
        cores: Cores of the machine; 0 where the model runs on a GPU and cores are not its limit.
        tail: p99 over the mean latency under load.
    """

    fixed_us: float
    sample_us: float
    outside_us: float
    cpu_us: float
    cores: int
    tail: float


@dataclass(frozen=True, kw_only=True)
class TuneRun:
    """A whole search.

    Attributes:
        model: The model's name.
        backend: Its backend.
        server: Where it ran.
        date: When it began, ISO 8601.
        objective: ``throughput``, or ``cost``: throughput over the cores (instances on a GPU) that are reserved for it.
        max_p99_ms: The limit of p99; None where there is none.
        batch_size: Samples a request.
        data: What was sent.
        budget_s: Time that was given, seconds.
        seconds: Time that this run took.
        storage: The database of the trials.
        study: Its name there.
        taken_over: Trials that earlier runs or other machines had measured.
        cores: Cores of the machine.
        space: What was searched: setting → its choices.
        space_size: Number of different configurations in it, the present one among them.
        builds: Paths of the builds.
        queue_model: The model that seeded the search; None before it was fitted.
        trials: All of them.
        present: The configuration that stood there at first.
        best: The chosen configuration; None where none was found.
        best_level: Its load, as measured in the search.
        finalists: The best ones, measured again in turns.
        comparisons: The chosen one against the present one, and preferred batch sizes against none.
        same_outputs: Whether the settings changed the answers.
        applied: Files that were written.
        environment: Versions, CPU and GPUs.
        notes: What a reader should know.
        stopped: Why it ended early; empty where it did not.
    """

    model: str
    backend: str
    server: str
    date: str
    objective: Objective
    max_p99_ms: float | None
    batch_size: int
    data: str
    budget_s: float
    seconds: float = 0.0
    storage: str = ""
    study: str = ""
    taken_over: int = 0
    cores: int = 1
    space: dict[str, list[int]] = field(default_factory=dict)
    space_size: int = 0
    builds: tuple[str, ...] = ()
    queue_model: QueueModel | None = None
    trials: tuple[Trial, ...] = ()
    present: Settings = field(default_factory=Settings)
    best: Settings | None = None
    best_level: TrialLevel | None = None
    finalists: tuple[Finalist, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    same_outputs: SameOutputs | None = None
    applied: tuple[str, ...] = ()
    environment: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stopped: str = ""

    @property
    def max_p99_us(self) -> float | None:
        """The limit in microseconds."""
        return None if self.max_p99_ms is None else self.max_p99_ms * 1000

    @property
    def levels(self) -> int:
        """How many loads were measured in all trials."""
        return sum(len(item.levels) for item in self.trials)


def worth(settings: Settings, infer_per_s: float, objective: Objective, cores: int) -> float:
    """Return a throughput as the objective counts it: as it is, or divided by what is reserved for it."""
    return infer_per_s if objective == "throughput" else infer_per_s / settings.units(cores)


def front(levels: Iterable[tuple[Trial, TrialLevel]]) -> list[tuple[Trial, TrialLevel]]:
    """Return the Pareto front, slowest first: what no other load beats in both, throughput and p99."""
    found: list[tuple[Trial, TrialLevel]] = []
    for trial, item in sorted(levels, key=lambda pair: (-pair[1].infer_per_s.value, pair[1].p99_us.value)):
        if item.whole and (not found or item.p99_us.value < found[-1][1].p99_us.value):
            found.append((trial, item))
    return found[::-1]


def to_json(run: TuneRun) -> dict[str, Any]:
    """Return a run as JSON values, with the schema's name and version first."""
    return {"schema": SCHEMA, "schema_version": VERSION, **codec.plain(run, nulls=True)}


def dumps(run: TuneRun) -> str:
    """Return a run as JSON text."""
    return json.dumps(to_json(run), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
