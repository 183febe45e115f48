"""Where a request's time goes, and what follows from the largest part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from repo_builder.measure.wire.model import ServedModel
from repo_builder.results import Explanation, LevelResult, ServerTime, Term

_LARGE_REQUEST = 100_000
_UNEXPLAINED = 0.01  # of the mean latency; what is less is the server's own bookkeeping
# parts of an ensemble's time that are of the models inside it
_SPENT: dict[str, Callable[[ServerTime], float]] = {
    "compute": lambda item: item.compute_infer_us,
    "queue": lambda item: item.queue_us,
    "input and output": lambda item: item.compute_input_us + item.compute_output_us,
}
_LESS_COPYING = {
    "none": "try --shared-memory system (cuda on a GPU)",
    "system": "more samples a request; on a GPU, try --shared-memory cuda",
    "cuda": "more samples a request",
}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a level beside its result.

    Attributes:
        model: As served.
        engine_us: Time of the engine alone, in process, for the mean batch size executed; None where unknown.
        request_bytes: Size of a request with its tensors.
        protocol: As in ``grpc``.
    """

    model: ServedModel
    engine_us: float | None
    request_bytes: int
    protocol: str


def explain(result: LevelResult, facts: Facts) -> Explanation | None:
    """Split a level's mean latency into its parts and name the largest.

    Args:
        result: The level, with the server's statistics.
        facts: What else is known.

    Returns:
        The parts, which add up to the mean latency; None without statistics or requests.
    """
    if not result.server or not result.server[0].requests or result.latency is None:
        return None
    inside = result.server[0]
    terms = _terms(result, inside, facts.engine_us)
    largest = max(terms, key=lambda item: item.us)
    return Explanation(
        mean_latency_us=result.latency.mean_us,
        terms=terms,
        largest=largest.name,
        suggestion=_suggestion(largest.name, result, facts),
        engine_batch=mean_batch(inside),
    )


def mean_batch(inside: ServerTime) -> int:
    """Return the mean batch size that the server ran, rounded, at least 1."""
    ran = max(0, inside.inferences - inside.cache_hits)
    return max(1, round(ran / max(1, inside.executions)))


def _suggestion(largest: str, result: LevelResult, facts: Facts) -> str:
    """Return what follows from the largest part; of an ensemble, for the model inside that it is largest of."""
    inside = facts.model.inside()
    spent = _SPENT.get(largest)
    steps = [item for item in result.server[1:] if item.model in facts.model.leaves]
    if spent is None or not steps:
        return _ADVICE[largest](result, facts)
    step = max(steps, key=lambda item: spent(item) * item.requests)
    own = replace(facts, model=inside[step.model], engine_us=None)
    return f"most of it in '{step.model}': {_ADVICE[largest](replace(result, server=(step,)), own)}"


def _terms(result: LevelResult, inside: ServerTime, engine_us: float | None) -> tuple[Term, ...]:
    compute = inside.compute_infer_us
    parts: dict[str, float] = {}
    if engine_us is None:
        parts["compute"] = compute
    else:
        parts["engine"] = min(engine_us, compute)
        parts["backend"] = max(0.0, compute - engine_us)
    parts["queue"] = inside.queue_us
    parts["input and output"] = inside.compute_input_us + inside.compute_output_us
    if inside.cache_us:
        parts["cache"] = inside.cache_us
    mean = result.latency.mean_us if result.latency else 0.0
    found, within = sum(parts.values()), min(inside.total_us, mean)
    if found > within > 0:  # steps of an ensemble that ran side by side, or rounding
        parts = {name: us * within / found for name, us in parts.items()}
    elif within - found > _UNEXPLAINED * mean:
        parts["unexplained"] = within - found
    rest = max(0.0, mean - sum(parts.values()))
    parts["client"] = min(rest, result.client.cpu_us_per_request if result.client else 0.0)
    parts["network"] = rest - parts["client"]
    whole = sum(parts.values()) or 1.0
    return tuple(Term(name=name, us=us, share=us / whole) for name, us in parts.items())


def _on_queue(result: LevelResult, facts: Facts) -> str:
    inside, model = result.server[0], facts.model
    flying = result.level.batch_size * result.level.concurrency
    ran = inside.inferences / max(1, inside.executions)
    waits = f"requests wait {inside.queue_us:.0f} µs for {inside.compute_infer_us:.0f} µs of compute"
    if flying == result.level.batch_size:
        if model.max_queue_delay_us:
            return (
                f"{waits} though nothing else is in flight: lower repository.max_queue_delay_us "
                f"(now {model.max_queue_delay_us} µs), which waits for company"
            )
        return f"{waits} though nothing else is in flight: that is the scheduler's own time"
    if model.max_batch_size > result.level.batch_size and not model.dynamic_batching:
        return f"{waits}, and run in batches of {ran:.1f}: turn on dynamic batching (dynamic_batching in config.pbtxt)"
    if 2 * model.max_queue_delay_us > inside.queue_us and ran < 1.5 * result.level.batch_size:
        return (
            f"{waits}, and run in batches of {ran:.1f} all the same: lower repository.max_queue_delay_us "
            f"(now {model.max_queue_delay_us} µs)"
        )
    if model.dynamic_batching and ran < 0.6 * min(model.max_batch_size, flying):
        return (
            f"{waits}, and run in batches of {ran:.1f} while {flying} samples are in flight: a larger preferred batch "
            f"(repository.preferred_batch_sizes), or a longer max_queue_delay_us (now {model.max_queue_delay_us} µs)"
        )
    busy = _busy(result)
    if busy is not None and busy[1] < 0.7:
        return (
            f"{waits} while the {busy[0]} is {busy[1]:.0%} busy: another instance "
            f"(repository.instance_count = {model.instances + 1})"
        )
    return f"{waits}: the server is saturated; less than {result.level.concurrency} in flight costs no throughput"


def _on_engine(result: LevelResult, facts: Facts) -> str:
    inside = result.server[0]
    ran = inside.inferences / max(1, inside.executions)
    each = f"{inside.compute_infer_us:.0f} µs for batches of {ran:.1f}, {inside.compute_infer_us / ran:.0f} µs a sample"
    if facts.model.max_batch_size > 2 * ran:
        return f"running the model takes {each}: larger batches (it takes {facts.model.max_batch_size}), or more int8"
    return f"running the model takes {each}, and batches are full: more int8 layers, or a smaller model"


def _on_backend(result: LevelResult, facts: Facts) -> str:
    inside, engine_us = result.server[0], facts.engine_us or 0.0
    native = "" if facts.model.native else "the native backend (repo-builder serve --runtime container), or "
    return (
        f"the backend '{facts.model.backend}' takes {inside.compute_infer_us:.0f} µs where the engine alone takes "
        f"{engine_us:.0f} µs: {native}more samples a request"
    )


def _on_unexplained(result: LevelResult, facts: Facts) -> str:
    what = "between the steps of the ensemble" if facts.model.parts else "in the server"
    return f"time goes by {what} that is in none of the server's statistics"


def _on_copies(result: LevelResult, facts: Facts) -> str:
    inside = result.server[0]
    spent = inside.compute_input_us + inside.compute_output_us
    return (
        f"the server spends {spent:.0f} µs copying {facts.request_bytes / 1000:.1f} kB a request in and results out: "
        f"{_LESS_COPYING[result.level.shared_memory]}"
    )


def _on_cache(result: LevelResult, facts: Facts) -> str:
    return f"the response cache takes {result.server[0].cache_us:.0f} µs a request: repository.response_cache = false"


def _on_network(result: LevelResult, facts: Facts) -> str:
    size = f"{facts.request_bytes / 1000:.1f} kB"
    spent = result.network_and_client_us or 0.0
    if result.level.shared_memory != "none":
        return f"{spent:.0f} µs go by outside the model though tensors lie in shared memory: more samples a request"
    if facts.request_bytes > _LARGE_REQUEST:
        return f"{spent:.0f} µs go by outside the model while {size} a request travel: try --shared-memory system"
    other = "" if facts.protocol == "http" else ", or --protocol http, which costs the server less for small ones"
    return f"{spent:.0f} µs go by outside the model for requests of only {size}: more samples a request{other}"


def _on_client(result: LevelResult, facts: Facts) -> str:
    cost = result.client.cpu_us_per_request if result.client else 0.0
    return f"the client itself uses {cost:.0f} µs of CPU a request: more samples a request, or another machine for it"


def _busy(result: LevelResult) -> tuple[str, float] | None:
    """Return what does the work and how busy it is."""
    if result.hardware is None:
        return None
    used = [item.utilisation for item in result.hardware.gpus if item.utilisation is not None]
    if used:
        return "GPU", max(used)
    share = result.hardware.cpu_utilisation
    return None if share is None else ("CPU", share)


_ADVICE: dict[str, Callable[[LevelResult, Facts], str]] = {
    "engine": _on_engine,
    "compute": _on_engine,
    "backend": _on_backend,
    "queue": _on_queue,
    "input and output": _on_copies,
    "cache": _on_cache,
    "unexplained": _on_unexplained,
    "network": _on_network,
    "client": _on_client,
}
