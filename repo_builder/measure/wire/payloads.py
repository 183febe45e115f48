"""The prepared requests of a level: batches of samples, in the wire form, inline or in shared memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import Array, DType, TensorSpec, narrowed
from repo_builder.measure.wire.messages import Codec, Input
from repo_builder.measure.wire.model import ServedModel

_MOST = 16
_MOST_BYTES = 64 << 20


def check_samples(model: ServedModel, samples: Mapping[str, Array]) -> int:
    """Refuse samples that the model does not take; return how many there are.

    Args:
        model: As served.
        samples: ``(n, *shape)`` by input name.

    Raises:
        MeasureError: Names, types or shapes differ from the model's inputs.
    """
    wanted = {spec.name: spec for spec in model.inputs}
    if set(samples) != set(wanted):
        raise MeasureError(
            f"the model takes {', '.join(map(str, model.inputs))}; the samples hold {', '.join(samples) or 'nothing'}",
            where=model.name,
            hint="rename the recipe's inputs, or pass data with these names",
        )
    counts = set()
    for name, spec in wanted.items():
        array = samples[name]
        counts.add(len(array))
        if DType.of_numpy(_served(array, spec, model).dtype) is not spec.dtype or not spec.fits(tuple(array.shape[1:])):
            raise MeasureError(
                f"the model takes {spec}; the samples are {DType.of_numpy(array.dtype).value}{list(array.shape[1:])}",
                where=model.name,
            )
    if len(counts) != 1 or not min(counts):
        raise MeasureError(f"the inputs hold {sorted(counts)} samples", where=model.name)
    return counts.pop()


def as_request(model: ServedModel, batch: Mapping[str, Array]) -> dict[str, Array]:
    """Return a batch in the full shapes of a request; a model without batches gets its only sample as it is."""
    served = {spec.name: _served(batch[spec.name], spec, model) for spec in model.inputs}
    return {name: array if model.batch_axis else array[0] for name, array in served.items()}


def _served(array: Array, spec: TensorSpec, model: ServedModel) -> Array:
    """Return whole numbers in the whole type that the server takes, as a plan's int32 where the network says int64."""
    try:
        return narrowed(array, spec.dtype)
    except ValueError as error:
        raise MeasureError(f"{error}, the type of its input '{spec.name}'", where=model.name) from None


def batches(
    model: ServedModel, samples: Mapping[str, Array], batch_size: int, least: int = 1
) -> list[dict[str, Array]]:
    """Return a few batches of consecutive samples, in the full shapes of a request.

    Args:
        model: As served.
        samples: ``(n, *shape)`` by input name; used again from the start where there are too few.
        batch_size: Samples a batch.
        least: Number of batches at the least.
    """
    total = len(next(iter(samples.values())))
    size = sum(array[:1].nbytes for array in samples.values()) * batch_size
    number = max(least, min(_MOST, -(-total // batch_size), _MOST_BYTES // max(1, size)))
    picks = [np.arange(place * batch_size, (place + 1) * batch_size) % total for place in range(number)]
    return [as_request(model, {name: array[pick] for name, array in samples.items()}) for pick in picks]


def encode(wire: Codec, batch: Mapping[str, Array]) -> bytes:
    """Return a prepared request that carries its tensors."""
    return wire.encode([Input.of(name, array) for name, array in batch.items()])
