"""A coarse model of a batching server's queue, fitted to two measured loads: where a search had better begin.

Operational laws of closed systems, after Denning & Buzen, "The Operational Analysis of Queueing Network Models", ACM
Computing Surveys 10 (1978), and Lazowska, Zahorjan, Graham & Sevcik, "Quantitative System Performance" (1984), ch. 5:

    execution of k samples     S(k) = (fixed + sample · k) · (1 - f + f / threads)          affine in k; Amdahl, f = 0.7
    throughput, samples/s      X = min(n / (outside + delay + S(k)),  m · k / S(k),  cores / (cpu + C(k) / k))
    latency                    R = n / X                                        Little, Operations Research 9 (1961)
    p99                        tail · R

with n samples in flight, m instances, and C(k) the CPU time of an execution. Of the n, X · outside are not at the
model; the rest shares itself among the m batches that run and the one that forms: k = (n - X · outside) / (m + 1),
at least a request's and at most max_batch_size, and a delay adds the X · delay samples that come meanwhile. k and X are
found by iterating.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repo_builder.results.tuning import QueueModel, Settings, TrialLevel

_PARALLEL = 0.7  # f: the share of an execution that more threads make faster; two levels cannot tell it
_THREAD_COST = 0.1  # CPU time that each further thread adds
_ROUNDS = 40
_LEAST_US = 0.1


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says of one load: samples a second, mean latency and p99 in microseconds, mean batch."""

    infer_per_s: float
    mean_us: float
    p99_us: float
    mean_batch: float


def fit(light: TrialLevel, heavy: TrialLevel, settings: Settings, *, cores: int) -> QueueModel:
    """Fit the model to two loads on one configuration.

    Args:
        light: Concurrency 1.
        heavy: A concurrency at which requests wait for each other.
        settings: The configuration of both.
        cores: Cores of the machine; 0 where the model runs on a GPU.
    """
    faster = _faster(settings.threads)
    near, far = light.mean_batch or light.batch_size, heavy.mean_batch or heavy.batch_size
    one, many = ((item.compute_us or item.mean_us / 2) / faster for item in (light, heavy))
    # Where both ran the same batch, half of an execution is taken for fixed: the search finds out.
    sample = (many - one) / (far - near) if far > near * 1.2 else one / near / 2
    sample = min(max(sample, one / near * 0.02), one / near)
    waits = light.queue_us or 0.0
    rate = max(heavy.infer_per_s.value, 1e-9)
    spent = (heavy.cpu_utilisation or 1.0) * cores * 1e6 / rate
    return QueueModel(
        fixed_us=max(0.0, one - sample * near),
        sample_us=max(sample, _LEAST_US / 10),
        outside_us=max(_LEAST_US, light.mean_us - waits - one * faster),
        cpu_us=max(0.05 * spent, spent - many / far),
        cores=cores,
        tail=max(1.0, heavy.p99_us.value / max(heavy.mean_us, _LEAST_US)),
    )


def predict(model: QueueModel, settings: Settings, concurrency: int, batch_size: int = 1) -> Prediction:
    """Return what a configuration does under a load.

    Args:
        model: As fitted.
        settings: The configuration.
        concurrency: Requests in flight.
        batch_size: Samples a request.
    """
    flying = concurrency * batch_size
    most = max(batch_size, settings.max_batch_size or batch_size)
    batch, rate = float(batch_size), 0.0  # rate in samples a microsecond
    for _ in range(_ROUNDS):
        waits = settings.max_queue_delay_us if batch < most * 0.99 and most > batch_size else 0
        rate = 0.5 * rate + 0.5 * _rate(model, settings, flying, batch, waits)
        there = (flying - rate * model.outside_us) / (settings.instances + 1) + rate * waits
        batch = 0.5 * batch + 0.5 * min(most, max(batch_size, there))
    waits = settings.max_queue_delay_us if batch < most * 0.99 and most > batch_size else 0
    rate = _rate(model, settings, flying, batch, waits)
    mean_us = flying / rate
    return Prediction(infer_per_s=rate * 1e6, mean_us=mean_us, p99_us=mean_us * model.tail, mean_batch=batch)


def best_concurrency(
    model: QueueModel, settings: Settings, ladder: Sequence[int], batch_size: int, max_p99_us: float | None
) -> tuple[int, Prediction]:
    """Return the concurrency of a ladder with the highest throughput under the limit, the smallest where it cannot be.

    Of those within 2 % of the highest the smallest is taken: more in flight would only wait.
    """
    all_of = [(line, predict(model, settings, line, batch_size)) for line in ladder]
    held = [item for item in all_of if max_p99_us is None or item[1].p99_us <= max_p99_us] or all_of[:1]
    most = max(item[1].infer_per_s for item in held)
    return next(item for item in held if item[1].infer_per_s >= most * 0.98)


def _rate(model: QueueModel, settings: Settings, flying: int, batch: float, waits_us: float) -> float:
    """Return the least of the three bounds, in samples a microsecond."""
    alone = model.fixed_us + model.sample_us * batch
    takes = max(_LEAST_US / 10, alone * _faster(settings.threads))
    bounds = [flying / (model.outside_us + waits_us + takes), settings.instances * batch / takes]
    if model.cores:
        threads = settings.threads if settings.threads is not None else 1
        work = alone * (1 + _THREAD_COST * (max(1, threads) - 1))
        bounds.append(model.cores / (model.cpu_us + work / batch))
    return min(bounds)


def _faster(threads: int | None) -> float:
    return 1 - _PARALLEL + _PARALLEL / max(1, threads or 1)
