"""A served model under measurement: one server, one model, one protocol, any number of levels."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import Array
from repo_builder.measure.load import abilities, outputs, schedule, server_stats, windows
from repo_builder.measure.load.abilities import Asks
from repo_builder.measure.load.course import Pace
from repo_builder.measure.load.metrics import Sampler
from repo_builder.measure.load.sequences import PLACEHOLDER, Plan, Step, in_turn
from repo_builder.measure.load.server_stats import Snapshot
from repo_builder.measure.load.worker import Fleet, Job
from repo_builder.measure.wire import payloads
from repo_builder.measure.wire.control import open_control
from repo_builder.measure.wire.messages import Codec, codec
from repo_builder.measure.wire.model import ServedModel, describe
from repo_builder.measure.wire.payloads import Inputs
from repo_builder.measure.wire.shm import SharedRequests
from repo_builder.measure.wire.transport import ConnectionLost, Endpoint
from repo_builder.measure.wire.verify import Expected
from repo_builder.results import Level, LevelResult, ServerInfo

METRICS_PORT = 8002
Streams = Sequence[int]  # number of samples of each sequence


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
        asks: What every request asks for beside its tensors.
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
        asks: Asks | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._timeout_s = timeout_s
        self._seed = seed
        self._asks = asks or Asks()
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
            abilities.require(self.model, endpoint, self._asks)
            self.no_statistics = self._why_no_statistics()
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

    def describe_anew(self) -> None:
        """Ask the server for the model again, which was loaded with another configuration since."""
        self.model = describe(self._control, self.model.name, self._version)

    def infer(self, samples: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs for samples, ``(n, *shape)`` by name, in their order."""
        return outputs.infer_all(self.endpoint, self.model, samples, timeout_s=self._timeout_s)

    def rest(self, seconds: float) -> bool:
        """Measure the machine without load for a while where it has GPUs; return whether that was done."""
        if self._sampler.has_gpus:
            self._sampler.rest(seconds)
        return self._sampler.has_gpus

    def measure(self, level: Level, samples: Inputs, pace: Pace, streams: Streams = ()) -> LevelResult:
        """Put the server under one load.

        Args:
            level: The load.
            samples: ``(n, *shape)`` by input name; batches are taken from it in turn.
            pace: How long.
            streams: Of a sequence model: how many of the samples, one behind the other, make each sequence; empty
                makes sequences of the length that was asked for.

        Raises:
            MeasureError: The level does not fit the model, or the server cannot be reached.
            LevelStopped: It ended early; holds what was measured.
        """
        model = self._model_for(level, samples)
        abilities.require_level(model, level)
        total = payloads.check_samples(model, samples)
        if level.request_rate:
            pace = pace.for_rate(level.request_rate)
        arrivals = self._arrivals(level, pace)
        if level.mode == "trace" and arrivals is not None:
            pace = pace.for_trace(arrivals[-1] / 1e9)
        wire = codec(self.endpoint, model.name, self._version)
        if level.shared_memory == "none":
            batches = payloads.batches(model, samples, level.batch_size, exactly=total if streams else None)
            job = self._job(model, level, wire, batches, streams)
            return self._run(job, level, pace, arrivals)
        batches = payloads.batches(model, samples, level.batch_size, least=level.concurrency)
        inline = outputs.infer_batches(self.endpoint, model, batches, timeout_s=self._timeout_s)
        reference = [item.outputs for item in inline]
        extras = [self._asks.says(str(place)) for place in range(len(batches))]
        with SharedRequests(self._control, wire, model, batches, reference, level.shared_memory, extras) as shared:
            job = dataclasses.replace(self._job(model, level, wire, (), ()), payloads=shared.payloads)
            result = self._run(job, level, pace, arrivals)
            shared.verify()
            return result

    def _model_for(self, level: Level, samples: Inputs) -> ServedModel:
        """Return the model, its first dimension taken for one of samples where batches or the data's shapes say so."""
        model = self.model
        ranks = {item.name: len(item.shape) for item in model.inputs}
        one_less = all(np.ndim(array[0]) == ranks.get(name, -1) - 1 for name, array in samples.items() if len(array))
        return model.counting_samples() if level.batch_size > 1 or one_less else model

    def _job(
        self,
        model: ServedModel,
        level: Level,
        wire: Codec,
        batches: Sequence[Mapping[str, Array]],
        streams: Streams,
    ) -> Job:
        plan: Plan | None = None
        ready: tuple[bytes, ...] = ()
        if model.sequence and batches:
            plan = self._plan(model, wire, batches, streams)
        else:
            extras = (self._asks.says(str(place), decoupled=model.decoupled) for place in itertools.count())
            ready = tuple(
                payloads.encode(wire, model, item, extra) for item, extra in zip(batches, extras, strict=False)
            )
        return Job(
            endpoint=self.endpoint,
            model=model.name,
            version=self._version,
            payloads=ready,
            expected=Expected.of(model, level.batch_size, inline=level.shared_memory == "none"),
            slots=level.concurrency,
            timeout_s=self._timeout_s,
            plan=plan,
            decoupled=model.decoupled,
        )

    def _plan(self, model: ServedModel, wire: Codec, batches: Sequence[Mapping[str, Array]], streams: Streams) -> Plan:
        number: int | str = str(PLACEHOLDER) if model.text_ids else PLACEHOLDER

        def step(place: int, batch: Mapping[str, Array]) -> Step:
            extra = dataclasses.replace(self._asks.says(str(place), decoupled=model.decoupled), sequence=number)
            roles = {"first": (True, False), "middle": (False, False), "last": (False, True), "only": (True, True)}
            made = {
                name: payloads.encode(wire, model, batch, dataclasses.replace(extra, starts=starts, ends=ends))
                for name, (starts, ends) in roles.items()
            }
            return Step(**made)

        steps = tuple(step(place, batch) for place, batch in enumerate(batches))
        edges = [0, *itertools.accumulate(streams)]
        own = tuple(tuple(range(start, end)) for start, end in itertools.pairwise(edges))
        varint = self.endpoint.protocol != "http" and not model.text_ids
        return Plan(steps=steps, streams=own or in_turn(len(steps), self._asks.length), varint=varint)

    def _run(self, job: Job, level: Level, pace: Pace, arrivals: Array | None) -> LevelResult:
        self._fleet.prepare(job)
        return windows.measure(
            self._fleet,
            level,
            pace,
            arrivals_ns=arrivals,
            probe=None if self.no_statistics else self._probe,
            metrics=self._sampler.over,
        )

    def _arrivals(self, level: Level, pace: Pace) -> Array | None:
        if level.mode == "trace":
            return schedule.read_trace(Path(level.trace))
        if level.mode == "rate" and level.request_rate:
            return schedule.constant(level.request_rate, pace.longest_s)
        if level.mode == "poisson" and level.request_rate:
            return schedule.poisson(level.request_rate, pace.longest_s, self._seed)
        return None

    def _why_no_statistics(self) -> str:
        """Return why the server's statistics are not to be had; empty where they are."""
        try:
            self._probe()
        except ConnectionLost:
            raise
        except MeasureError as error:
            return error.message
        return ""

    def _probe(self) -> Snapshot:
        return server_stats.snapshot(self._control, self.model)


def _sampler(endpoint: Endpoint, url: str | None, timeout_s: float) -> Sampler:
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    place = Endpoint.parse(
        url or f"{host}:{METRICS_PORT}", "http", "--metrics-url", tls=None, headers=endpoint.headers if url else ()
    )
    if place.tls is not None and endpoint.tls is not None:
        place = dataclasses.replace(place, tls=endpoint.tls)
    sampler = Sampler(place, timeout_s=min(2.0, timeout_s))
    if url and not sampler.available:
        raise MeasureError("no metrics are to be had there", where=f"--metrics-url {url}", hint="Triton's is port 8002")
    return sampler
