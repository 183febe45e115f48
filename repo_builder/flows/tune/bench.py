"""Levels of ``perf`` on configurations that are loaded one after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import Array
from repo_builder.flows.perf import accuracy, built
from repo_builder.flows.perf.options import Collected as PerfCollected
from repo_builder.flows.perf.options import PerfOptions
from repo_builder.flows.tune.hosts import Host
from repo_builder.flows.tune.meter import Meter
from repo_builder.flows.tune.options import TuneOptions
from repo_builder.measure.judge import estimates
from repo_builder.measure.judge.explain import Facts, explain
from repo_builder.measure.load import outputs
from repo_builder.measure.load.session import Session
from repo_builder.measure.load.windows import LevelStopped
from repo_builder.measure.wire import payloads
from repo_builder.measure.wire.made_up import random_samples
from repo_builder.measure.wire.messages import to_bytes
from repo_builder.results import LevelResult, ServerTime
from repo_builder.results.tuning import Estimate, Settings, TrialLevel

_COMPARED = 64  # requests
_MADE_UP = 16


class Bench:
    """The rig of a search: a server that takes configurations, and the client that loads it.

    Args:
        host: The server.
        options: What was asked for.
        build: What is at hand of the model's build: its recipe says what is sent.
        deadline: When the budget ends, ``time.monotonic``.
    """

    def __init__(self, host: Host, options: TuneOptions, build: built.Build, deadline: float) -> None:
        self.host, self._options, self._build = host, options, build
        self._deadline = deadline
        self._session: Session | None = None
        self._loaded = Settings()
        self.data = ""
        self._samples: payloads.Inputs | None = None
        self.spent_s: list[float] = []

    def left_s(self) -> float:
        """Return the seconds of the budget that are left."""
        return self._deadline - time.monotonic()

    def load(self, settings: Settings) -> None:
        """Load a configuration, and look at it as the server describes it.

        Raises:
            RepoBuilderError: The server refuses it, or is gone.
        """
        name = self.host.name(settings)
        self.host.load(settings)
        if self._session is not None and self._session.model.name != name:
            self._close()
        if self._session is None:
            self._session = self._opened(name)
        else:
            self._session.describe_anew()
        self._loaded = settings

    def level(self, concurrency: int) -> TrialLevel:
        """Measure the loaded configuration under a load.

        Raises:
            RepoBuilderError: The server failed in the middle of it, or every request did.
            KeyboardInterrupt: The user ended it.
        """
        session, started = self._open_session(), time.monotonic()
        level = replace(self._options.level, concurrency=concurrency)
        with Meter(self.host.group) as meter:
            try:
                result = session.measure(level, self._inputs(session), replace(self._options.pace, raw=True))
            except LevelStopped as early:
                raise early.cause from None
        if result.latency is None:
            said = next(iter(result.failures), "no request was answered")
            raise MeasureError(f"nothing was measured: {said}", where=str(self._loaded))
        self.spent_s.append(time.monotonic() - started)
        return self._read(session, result, meter)

    def revive(self) -> None:
        """Make the server fit for another trial after one failed."""
        self._close()
        self.host.revive()

    def answers(self) -> list[dict[str, Array]]:
        """Return the outputs for some samples, each sent by itself, one after the other."""
        session = self._open_session()
        batches = payloads.batches(
            session.model, self._inputs(session), self._options.level.batch_size, least=_COMPARED
        )
        found = []
        for batch in batches:
            answer = outputs.infer_batches(session.endpoint, session.model, [batch], timeout_s=self._options.timeout_s)
            found.append(dict(answer[0].outputs))
        return found

    def close(self) -> None:
        """End the client, then leave the server."""
        self._close()
        self.host.close()

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _open_session(self) -> Session:
        if self._session is None:
            raise MeasureError("no configuration is loaded", where=self._options.model)
        return self._session

    def _opened(self, name: str) -> Session:
        options = self._options
        session = Session(
            self.host.endpoint,
            name,
            metrics_url=self.host.metrics_url,
            timeout_s=options.timeout_s,
            workers=options.workers or min(4, max(1, (os.cpu_count() or 1) // 4)),
            seed=options.seed,
        )
        if session.model.decoupled:
            session.close()
            raise MeasureError("is decoupled, and its responses are no throughput", where=name)
        return session

    def _inputs(self, session: Session) -> payloads.Inputs:
        """Return what requests are made of: the recipe's held-out samples, or made-up ones."""
        if self._samples is None:
            options = self._options
            asked = PerfOptions(
                model=options.model, endpoint=self.host.endpoint, recipe=options.recipe, work=options.work,
                dataset=options.dataset, data_dir=options.data_dir, seed=options.seed,
            )  # fmt: skip
            found = None if options.level.shapes else accuracy.held_out(asked, self._build, session, PerfCollected())
            if found is not None:
                self.data, self._samples = f"{found[0].name}: its held-out samples", found[1].inputs
            else:
                count = _MADE_UP * options.level.batch_size
                self.data = "made-up inputs"
                self._samples = random_samples(session.model, count, options.level.shapes, options.seed)
        return self._samples

    def _read(self, session: Session, result: LevelResult, meter: Meter) -> TrialLevel:
        latency = result.latency
        if latency is None:  # `level` has seen to it
            raise MeasureError("nothing was measured")
        merged = result.windows[len(result.windows) - result.merged :]
        inside = result.server[0] if result.server else None
        sent = self._inputs(session)
        size = sum(len(to_bytes(array[0])) for array in sent.values()) * result.level.batch_size
        facts = Facts(model=session.model, engine_us=None, request_bytes=size, protocol=session.endpoint.protocol)
        told = explain(result, facts)
        limited = bool(result.client and result.client.limited)
        hardware = result.hardware
        gpus = hardware.gpus if hardware else ()
        rate = meter.cpu_rate(result.seconds)
        energy = [item.energy_j_per_inference for item in gpus if item.energy_j_per_inference is not None]
        return TrialLevel(
            concurrency=result.level.concurrency,
            batch_size=result.level.batch_size,
            requests=result.requests,
            whole=result.whole,
            infer_per_s=estimates.throughput(result.infer_per_s, [item.infer_per_s for item in merged]),
            p50_us=_quantile(result, 50.0, latency.p50_us),
            p99_us=_quantile(result, 99.0, latency.p99_us),
            mean_us=latency.mean_us,
            **_inside(inside),
            limit="client" if limited else told.largest if told else "",
            advice="the client was at its end: more --workers, or another machine for it"
            if limited
            else told.suggestion
            if told
            else "",
            cpu_utilisation=hardware.cpu_utilisation if hardware else None,
            server_cpu_us=rate / result.infer_per_s * 1e6 if rate is not None and result.infer_per_s else None,
            cpu_energy_j=meter.energy_j(result.seconds, result.infer_per_s),
            memory_bytes=meter.memory_bytes or (hardware.memory_used_bytes if hardware else None),
            gpu_utilisation=max((item.utilisation for item in gpus if item.utilisation is not None), default=None),
            gpu_memory_bytes=max(
                (item.memory_used_bytes for item in gpus if item.memory_used_bytes is not None), default=None
            ),
            energy_j=sum(energy) if energy else None,
        )


def _inside(inside: ServerTime | None) -> Mapping[str, float]:
    if inside is None or not inside.executions:
        return {}
    return {
        "mean_batch": inside.inferences / inside.executions,
        "queue_us": inside.queue_us,
        "compute_us": inside.compute_input_us + inside.compute_infer_us + inside.compute_output_us,
    }


def _quantile(result: LevelResult, percent: float, value: float) -> Estimate:
    """Return a percentile with its interval; the value is that of the level."""
    if not result.raw_latencies_us:
        return Estimate(value=value, low=value, high=value)
    return replace(estimates.quantile(result.raw_latencies_us, percent), value=value)


def difference(before: list[dict[str, Array]], after: list[dict[str, Array]]) -> tuple[bool, float]:
    """Return whether outputs are the same to the bit, and their largest difference; infinite for other shapes."""
    equal, largest = True, 0.0
    for one, other in zip(before, after, strict=True):
        for name, values in one.items():
            there = other.get(name)
            if there is None or there.shape != values.shape or there.dtype != values.dtype:
                return False, float("inf")
            if there.tobytes() != values.tobytes() if values.dtype.kind != "O" else (there != values).any():
                equal = False
                if values.dtype.kind in "fiu":
                    apart = np.abs(values.astype(np.float64) - there.astype(np.float64))
                    largest = max(largest, float(apart.max()))
                else:
                    largest = float("inf")
    return equal, largest
