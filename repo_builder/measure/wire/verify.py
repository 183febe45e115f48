"""Whether a response is what was asked for: never a number of a wrong answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import Array, DType, TensorSpec
from repo_builder.measure.wire.messages import Response
from repo_builder.measure.wire.model import ServedModel


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What every response of a job must look like.

    Attributes:
        version: The version that must answer.
        outputs: Outputs, batch left out where there is one.
        batch: Leading dimension of every output; None where there is none.
        inline: Whether outputs come in the response, and not in shared memory.
        loose: Whether a response may hold any of the outputs in any number, as those of decoupled models do.
    """

    version: str
    outputs: tuple[TensorSpec, ...]
    batch: int | None
    inline: bool = True
    loose: bool = False

    @classmethod
    def of(cls, model: ServedModel, batch: int, *, inline: bool = True) -> Expected:
        """Return what a model's responses to requests of one batch size look like."""
        size = batch if model.batch_axis else None
        size = None if model.decoupled else size
        return cls(version=model.version, outputs=model.outputs, batch=size, inline=inline, loose=model.decoupled)


def verify(response: Response, expected: Expected, request: int) -> None:
    """Refuse a response of another version, of a wrong shape or type, or with values that are not finite.

    Args:
        response: As decoded.
        expected: What it must look like.
        request: Index of the request, for the message.

    Raises:
        MeasureError: It is wrong.
    """
    if response.version and expected.version and response.version != expected.version:
        raise MeasureError(
            f"the model was replaced while it was measured: version {response.version} answers instead of "
            f"{expected.version}",
            where=response.model,
            hint="measure again, or name a version with --version",
        )
    if response.request_id not in ("", str(request)):
        raise MeasureError(
            f"the response to request '{response.request_id}' came for '{request}'",
            where=response.model,
            hint="whatever answers mixes responses up",
        )
    for spec in expected.outputs:
        if expected.loose and spec.name not in response.outputs:
            continue
        if spec.name not in response.shapes:
            raise MeasureError(f"the response lacks the output '{spec.name}'", where=response.model)
        shape, dtype = response.shapes[spec.name], response.dtypes[spec.name]
        inner = shape[1:] if expected.batch is not None else shape
        right_batch = expected.batch is None or (bool(shape) and shape[0] == expected.batch)
        fits = expected.loose or (right_batch and spec.fits(inner))
        if not fits or dtype is not spec.dtype:
            wanted = [*([] if expected.batch is None else [expected.batch]), *spec.shape]
            raise MeasureError(
                f"the response holds {spec.name} {dtype.value}{list(shape)} instead of {spec.dtype.value}{wanted}",
                where=response.model,
                hint="the model does not keep what its configuration says",
            )
        values = response.outputs.get(spec.name)
        if values is None and expected.inline:
            raise MeasureError(f"the response lacks the values of the output '{spec.name}'", where=response.model)
        if values is not None and not _finite(values, dtype):
            raise MeasureError(
                f"the output {spec.name} of request {request} holds NaN or infinite values",
                where=response.model,
                hint="look at fp16 layers whose values overflow, or pass real inputs with --data",
            )


def _finite(values: Array, dtype: DType) -> bool:
    """Whether all values are finite; BF16's are their bits, whose exponent is all ones where they are not."""
    if dtype is DType.BF16:
        return bool(((values & 0x7F80) != 0x7F80).all())
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())
