"""What a model asks of a load, and what is refused before the first request, by the name of the feature."""

from __future__ import annotations

from dataclasses import dataclass

from repo_builder.core.errors import MeasureError
from repo_builder.measure.wire.messages import Extra
from repo_builder.measure.wire.model import ServedModel
from repo_builder.measure.wire.transport import Endpoint
from repo_builder.results import Level

SEQUENCE_LENGTH = 20  # perf_analyzer's, too


@dataclass(frozen=True, kw_only=True)
class Asks:
    """What every request asks for beside its tensors.

    Attributes:
        sequence_length: Requests of a sequence; None for 20, or as the data has them.
        priority: Of the queue; 0 for the model's own.
        timeout_us: How long a request may wait in the queue, microseconds; 0 for the model's own limit.
    """

    sequence_length: int | None = None
    priority: int = 0
    timeout_us: int = 0

    @property
    def length(self) -> int:
        """Requests of a sequence."""
        return self.sequence_length or SEQUENCE_LENGTH

    def says(self, request_id: str, *, decoupled: bool = False) -> Extra:
        """Return what one request says."""
        return Extra(request_id=request_id, priority=self.priority, timeout_us=self.timeout_us, asks_for_last=decoupled)


def require(model: ServedModel, endpoint: Endpoint, asks: Asks) -> None:
    """Refuse what cannot be measured of a model over a protocol.

    Raises:
        MeasureError: Names the feature and what to do.
    """
    if model.decoupled and endpoint.protocol != "grpc-stream":
        raise MeasureError(
            f"the model '{model.name}' is decoupled: a request may have any number of responses",
            where=f"--protocol {endpoint.protocol}",
            hint="measure it with --protocol grpc-stream",
        )
    if asks.sequence_length is not None and not model.sequence:
        raise MeasureError(
            f"the model '{model.name}' is no sequence model", where="--sequence-length", hint="leave it out"
        )


def require_level(model: ServedModel, level: Level) -> None:
    """Refuse a load that a model does not take.

    Raises:
        MeasureError: Names the feature and what to do.
    """
    most = model.max_batch_size
    if most and level.batch_size > most:
        raise MeasureError(
            f"batch {level.batch_size} is more than the model's max_batch_size {most}", where="--batch-size"
        )
    if not model.batch_axis and level.batch_size > 1:
        raise MeasureError(f"the model '{model.name}' takes no batches", where="--batch-size", hint="leave it out")
    if model.sequence and level.batch_size > 1:
        raise MeasureError(
            f"the model '{model.name}' is a sequence model: Triton takes its requests with batch 1 only",
            where="--batch-size",
        )
    if level.shared_memory != "none" and (model.sequence or model.decoupled):
        kind = "a sequence model" if model.sequence else "decoupled"
        raise MeasureError(
            f"the model '{model.name}' is {kind}: outputs of its requests would lie over each other",
            where="--shared-memory",
            hint="use none",
        )
