"""Outputs of a served model for given samples, in the samples' order: what accuracy is made of."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import Array
from repo_builder.measure.load.sequences import FIRST, LAST
from repo_builder.measure.wire.messages import Codec, Extra, Response, codec
from repo_builder.measure.wire.model import ServedModel
from repo_builder.measure.wire.payloads import as_request, check_samples, encode
from repo_builder.measure.wire.transport import Endpoint, Transport, open_transport
from repo_builder.measure.wire.verify import Expected, verify

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
    if model.decoupled:
        raise MeasureError(f"the model '{model.name}' is decoupled: its responses are no outputs of single samples")
    total = check_samples(model, samples)
    size = (min(_BATCH, model.max_batch_size) or _BATCH) if model.batch_axis and not model.sequence else 1
    starts = range(0, total, size)
    found = infer_batches(
        endpoint,
        model,
        [as_request(model, {name: array[at : at + size] for name, array in samples.items()}) for at in starts],
        timeout_s=timeout_s,
    )
    join = np.concatenate if model.batch_axis else np.stack
    return {spec.name: join([item.outputs[spec.name] for item in found]) for spec in model.outputs}


def infer_batches(
    endpoint: Endpoint, model: ServedModel, batches: Sequence[Mapping[str, Array]], *, timeout_s: float
) -> list[Response]:
    """Send batches, each in the full shapes of a request, and return the responses in the same order.

    Raises:
        MeasureError: As ``infer_all``.
    """
    wire = codec(endpoint, model.name, model.version)
    transport = open_transport(endpoint, wire.path, slots=min(_SLOTS, len(batches)), timeout_s=timeout_s)
    try:
        return _Exchange(transport, wire, model, batches, timeout_s).run()
    finally:
        transport.close()


class _Exchange:
    """A few requests in flight until all batches are answered."""

    def __init__(
        self,
        transport: Transport,
        wire: Codec,
        model: ServedModel,
        batches: Sequence[Mapping[str, Array]],
        timeout_s: float,
    ) -> None:
        self._transport, self._wire, self._model, self._batches = transport, wire, model, batches
        self._timeout_s = timeout_s
        self._firsts = np.cumsum([0, *(self._count(item) for item in batches)])
        self._answers: dict[int, Response] = {}
        self._flying: dict[int, tuple[int, int]] = {}  # slot → batch, time sent
        self._upcoming = 0

    def run(self) -> list[Response]:
        for slot in range(self._transport.slots):
            self._send(slot)
        while self._flying:
            self._transport.wait(0.05, self._done)
            oldest = min((sent for _, sent in self._flying.values()), default=time.monotonic_ns())
            if time.monotonic_ns() - oldest > self._timeout_s * 1e9:
                raise MeasureError(
                    f"no response within {self._timeout_s:g} s",
                    where=self._model.name,
                    hint="the server hangs, or is slower than --timeout allows",
                )
        return [self._answers[place] for place in range(len(self._batches))]

    def _count(self, batch: Mapping[str, Array]) -> int:
        return len(next(iter(batch.values()))) if self._model.batch_axis else 1

    def _send(self, slot: int) -> None:
        if self._upcoming < len(self._batches):
            self._flying[slot] = self._upcoming, time.monotonic_ns()
            place = self._upcoming
            # a sequence of its own for each, where the model wants sequences
            number: int | str | None = secrets.randbelow(LAST - FIRST) + FIRST if self._model.sequence else None
            number = str(number) if self._model.text_ids else number
            extra = Extra(sequence=number, starts=True, ends=True, request_id=str(place))
            self._transport.send(slot, encode(self._wire, self._model, self._batches[place], extra))
            self._upcoming += 1

    def _done(self, slot: int, _: int, raw: bytes | None, error: str | None) -> None:
        place, _sent = self._flying.pop(slot)
        first, count = int(self._firsts[place]), self._count(self._batches[place])
        if raw is None:
            raise MeasureError(
                f"the server refuses samples {first} to {first + count - 1}: {error}", where=self._model.name
            )
        answer = self._wire.decode(raw)
        self._refuse_not_finite(answer, first, count)
        verify(answer, Expected.of(self._model, count), place)
        self._answers[place] = answer
        self._send(slot)

    def _refuse_not_finite(self, answer: Response, first: int, count: int) -> None:
        for name, values in answer.outputs.items():
            if values.dtype.kind != "f" or values.size % count:
                continue
            bad = ~np.isfinite(values.reshape(count, -1)).all(axis=1)
            if bad.any():
                raise MeasureError(
                    f"the output '{name}' of sample {first + int(np.flatnonzero(bad)[0])} is NaN or infinite",
                    where=self._model.name,
                    hint="look at that sample, and at fp16 layers whose values overflow",
                )
