"""The prepared requests of a level: batches of samples, in the wire form, inline or in shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import Array, DType, narrowed
from repo_builder.measure.wire.messages import NOTHING, Codec, Extra, Input
from repo_builder.measure.wire.model import ServedModel

# ``(n, *shape)`` by input name; a list where samples have different shapes
Inputs = Mapping[str, "Array | list[Array]"]
_MOST = 16
_MOST_BYTES = 64 << 20


def check_samples(model: ServedModel, samples: Inputs) -> int:
    """Refuse samples that the model does not take; return how many there are.

    Args:
        model: As served.
        samples: ``(n, *shape)`` by input name.

    Raises:
        MeasureError: Names, types or shapes differ from the model's inputs.
    """
    wanted = {spec.name: spec for spec in model.inputs}
    if not set(wanted) - model.optional <= set(samples) <= set(wanted):
        raise MeasureError(
            f"the model takes {', '.join(map(str, model.inputs))}; the samples hold {', '.join(samples) or 'nothing'}",
            where=model.name,
            hint="rename the recipe's inputs, or pass data with these names",
        )
    counts = set()
    for name, array in samples.items():
        spec = wanted[name]
        counts.add(len(array))
        shapes = (
            {(one.dtype, one.shape) for one in array} if isinstance(array, list) else {(array.dtype, array.shape[1:])}
        )
        for kind, shape in shapes:
            if not holds(kind, spec.dtype) or not spec.fits(shape):
                raise MeasureError(
                    f"the model takes {spec}; the samples are {DType.of_numpy(kind).value}{list(shape)}",
                    where=model.name,
                )
    if len(counts) != 1 or not min(counts):
        raise MeasureError(f"the inputs hold {sorted(counts)} samples", where=model.name)
    return counts.pop()


def holds(kind: np.dtype[Any], dtype: DType) -> bool:
    """Whether an array's elements can be sent as a type.

    BF16's bits travel as uint16, and int64 as the int32 that a plan of TensorRT 8 takes, as far as they fit.
    """
    found = DType.of_numpy(kind)
    return found is dtype or (found, dtype) in ((DType.UINT16, DType.BF16), (DType.INT64, DType.INT32))


def as_request(model: ServedModel, batch: Mapping[str, Array]) -> dict[str, Array]:
    """Return a batch in the full shapes of a request; a model without batches gets its only sample as it is."""
    types = {spec.name: spec.dtype for spec in model.inputs}
    found = {}
    for name, array in batch.items():
        try:
            sent = array if types[name] is DType.BF16 else narrowed(array, types[name])
        except ValueError as error:
            raise MeasureError(f"{error}, the type of its input '{name}'", where=model.name) from None
        found[name] = sent if model.batch_axis else sent[0]
    return found


def batches(
    model: ServedModel,
    samples: Inputs,
    batch_size: int,
    least: int = 1,
    exactly: int | None = None,
) -> list[dict[str, Array]]:
    """Return a few batches of consecutive samples, in the full shapes of a request.

    Args:
        model: As served.
        samples: ``(n, *shape)`` by input name; used again from the start where there are too few.
        batch_size: Samples a batch.
        least: Number of batches at the least.
        exactly: Number of batches; None takes as many as there are samples for, up to 16 or 64 MiB.
    """
    total = len(next(iter(samples.values())))
    size = sum(np.asarray(array[0]).nbytes for array in samples.values()) * batch_size
    number = exactly or max(least, min(_MOST, -(-total // batch_size), _MOST_BYTES // max(1, size)))
    picks = [np.arange(place * batch_size, (place + 1) * batch_size) % total for place in range(number)]
    return [as_request(model, {name: _taken(name, array, pick) for name, array in samples.items()}) for pick in picks]


def _taken(name: str, array: Array | list[Array], pick: Array) -> Array:
    if not isinstance(array, list):
        return array[pick]
    chosen = [array[place] for place in pick]
    if len({item.shape for item in chosen}) > 1:
        message = f"the samples of '{name}' have different shapes, which are no batch"
        raise MeasureError(message, where="--batch-size", hint="send them one by one, with --batch-size 1")
    return np.stack(chosen)


def encode(wire: Codec, model: ServedModel, batch: Mapping[str, Array], extra: Extra = NOTHING) -> bytes:
    """Return a prepared request that carries its tensors."""
    inputs = [Input.of(spec.name, batch[spec.name], spec.dtype) for spec in model.inputs if spec.name in batch]
    return wire.encode(inputs, extra=extra)
