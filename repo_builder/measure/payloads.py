"""The prepared requests of a level: batches of samples, in the wire form, inline or in shared memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from repo_builder.errors import MeasureError
from repo_builder.measure.messages import Codec, Input
from repo_builder.measure.model import ServedModel
from repo_builder.tensors import Array, DType

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
        if DType.of_numpy(array.dtype) is not spec.dtype or not spec.fits(tuple(array.shape[1:])):
            raise MeasureError(
                f"the model takes {spec}; the samples are {DType.of_numpy(array.dtype).value}{list(array.shape[1:])}",
                where=model.name,
            )
    if len(counts) != 1 or not min(counts):
        raise MeasureError(f"the inputs hold {sorted(counts)} samples", where=model.name)
    return counts.pop()


def batches(samples: Mapping[str, Array], batch_size: int, most: int = _MOST) -> list[dict[str, Array]]:
    """Return a few batches, each of ``batch_size`` consecutive samples; samples are used again where too few.

    Args:
        samples: ``(n, *shape)`` by input name.
        batch_size: Samples a batch.
        most: Number of batches at the most.
    """
    total = len(next(iter(samples.values())))
    size = sum(array[:1].nbytes for array in samples.values()) * batch_size
    number = max(1, min(most, -(-total // batch_size), _MOST_BYTES // max(1, size)))
    picks = [np.arange(place * batch_size, (place + 1) * batch_size) % total for place in range(number)]
    return [{name: array[pick] for name, array in samples.items()} for pick in picks]


def inputs_of(model: ServedModel, batch: Mapping[str, Array]) -> list[Input]:
    """Return a batch as the inputs of one request; a model without batches gets its only sample as it is."""
    return [Input.of(spec.name, batch[spec.name] if model.batch_axis else batch[spec.name][0]) for spec in model.inputs]


def inline(wire: Codec, model: ServedModel, samples: Mapping[str, Array], batch_size: int) -> tuple[bytes, ...]:
    """Return prepared requests that carry their tensors."""
    return tuple(wire.encode(inputs_of(model, item)) for item in batches(samples, batch_size))
