"""All outputs of a served model for a set of samples, in the samples' order: what accuracy is made of."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from repo_builder.errors import MeasureError
from repo_builder.measure.messages import Response, codec
from repo_builder.measure.model import ServedModel
from repo_builder.measure.payloads import check_samples, inputs_of
from repo_builder.measure.transport import Endpoint, open_transport
from repo_builder.measure.verify import Expected, verify
from repo_builder.tensors import Array

_SLOTS = 4
_BATCH = 32


def infer_all(
    endpoint: Endpoint, model: ServedModel, samples: Mapping[str, Array], *, timeout_s: float
) -> dict[str, Array]:
    """Send every sample once, in batches that the model takes, and return the outputs.

    Args:
        endpoint: The server.
        model: As served.
        samples: ``(n, *shape)`` by input name.
        timeout_s: Deadline for each response.

    Returns:
        ``(n, *shape)`` by output name.

    Raises:
        MeasureError: The server fails or hangs, or a response is not what the model promises. An output that is not
            finite is named by its sample.
    """
    total = check_samples(model, samples)
    size = (min(_BATCH, model.max_batch_size) or _BATCH) if model.batch_axis else 1
    starts = list(range(0, total, size))
    answers: list[Response | None] = [None] * len(starts)
    wire = codec(endpoint, model.name, model.version)
    transport = open_transport(endpoint, wire.path, slots=min(_SLOTS, len(starts)), timeout_s=timeout_s)
    place_of: dict[int, tuple[int, int]] = {}
    upcoming = transport.slots

    def send(slot: int, place: int) -> None:
        batch = {name: array[starts[place] : starts[place] + size] for name, array in samples.items()}
        place_of[slot] = place, time.monotonic_ns()
        transport.send(slot, wire.encode(inputs_of(model, batch)))

    def done(slot: int, _: int, raw: bytes | None, error: str | None) -> None:
        nonlocal upcoming
        place, _sent = place_of.pop(slot)
        first = starts[place]
        if raw is None:
            raise MeasureError(f"the server refuses samples {first} to {first + size - 1}: {error}", where=model.name)
        answers[place] = wire.decode(raw)
        _check(answers[place], model, first, min(size, total - first))
        if upcoming < len(starts):
            send(slot, upcoming)
            upcoming += 1

    try:
        for slot in range(transport.slots):
            send(slot, slot)
        while place_of:
            transport.wait(0.05, done)
            oldest = min((sent for _, sent in place_of.values()), default=time.monotonic_ns())
            if time.monotonic_ns() - oldest > timeout_s * 1e9:
                raise MeasureError(f"no response within {timeout_s:g} s", where=str(endpoint), hint="the server hangs")
    finally:
        transport.close()
    found = [item for item in answers if item is not None]
    join = np.concatenate if model.batch_axis else np.stack
    return {spec.name: join([item.outputs[spec.name] for item in found]) for spec in model.outputs}


def _check(response: Response | None, model: ServedModel, first: int, count: int) -> None:
    """Refuse a wrong response; say which sample's output is not finite."""
    if response is None:
        return
    for name, values in response.outputs.items():
        if values.dtype.kind != "f":
            continue
        bad = ~np.isfinite(values.reshape(count if model.batch_axis else 1, -1)).all(axis=1)
        if bad.any():
            raise MeasureError(
                f"the output '{name}' of sample {first + int(np.flatnonzero(bad)[0])} is NaN or infinite",
                where=model.name,
                hint="look at that sample, and at fp16 layers whose values overflow",
            )
    verify(response, Expected.of(model, count), first)
