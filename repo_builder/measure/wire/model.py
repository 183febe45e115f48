"""What the server says of a model: its tensors, whether it batches, what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repo_builder.core.errors import MeasureError, did_you_mean
from repo_builder.core.tensors import Array, DType, TensorSpec
from repo_builder.measure.wire.control import Control
from repo_builder.measure.wire.transport import ConnectionLost


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model as the server describes it.

    Attributes:
        name: Its name.
        version: The version that answers where none is asked for: the newest.
        backend: Backend or platform.
        inputs: Inputs, batch left out where there is one.
        outputs: Outputs, batch left out where there is one.
        max_batch_size: Largest batch; 0 where Triton does not batch the model.
        batch_axis: Whether tensors have a leading batch dimension.
        dynamic_batching: Whether requests are put together.
        preferred_batch_sizes: Batch sizes that the dynamic batcher tries to reach.
        max_queue_delay_us: How long a request may wait for others, microseconds.
        instances: Number of model instances.
        composing: Models that an ensemble is made of; empty for others.
        decoupled: Whether a request may have any number of responses.
    """

    name: str
    version: str
    backend: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    batch_axis: bool
    dynamic_batching: bool = False
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    instances: int = 1
    composing: tuple[str, ...] = ()
    decoupled: bool = False

    def full_shape(self, shape: Sequence[int], batch: int) -> tuple[int, ...]:
        """Return a tensor's shape in a request."""
        return (batch, *shape) if self.batch_axis else tuple(shape)


def describe(control: Control, name: str, version: str = "") -> ServedModel:
    """Ask the server for a model.

    Raises:
        MeasureError: It has no such model, or the model is not ready or of a kind that cannot be measured.
    """
    try:
        metadata, config = control.metadata(name, version), control.config(name, version)
    except ConnectionLost:
        raise
    except MeasureError as error:
        try:
            known = control.models()
        except MeasureError:  # not every server tells what it has
            raise error from None
        if name in known:
            raise MeasureError(
                f"the model '{name}' is not ready: {error.message}", hint="look at the server's log"
            ) from None
        raise MeasureError(f"the server has no model '{name}'", hint=did_you_mean(name, known)) from None
    max_batch_size = int(config.get("max_batch_size", 0))
    # A model that Triton does not batch may still have a batch dimension of its own: all tensors begin with -1.
    tensors = [*metadata.get("inputs", ()), *metadata.get("outputs", ())]
    own_axis = all(item.get("shape") and int(item["shape"][0]) == -1 for item in tensors)
    batch_axis = max_batch_size > 0 or own_axis
    batching = config.get("dynamic_batching")
    groups = config.get("instance_group", ())
    policy = config.get("model_transaction_policy", {})
    found = ServedModel(
        name=name,
        version=version or max((str(item) for item in metadata.get("versions", ("",))), key=_as_number, default=""),
        backend=str(config.get("backend") or config.get("platform") or metadata.get("platform", "")),
        inputs=tuple(_spec(item, batch_axis) for item in metadata.get("inputs", ())),
        outputs=tuple(_spec(item, batch_axis) for item in metadata.get("outputs", ())),
        max_batch_size=max_batch_size,
        batch_axis=batch_axis,
        dynamic_batching=batching is not None,
        preferred_batch_sizes=tuple(int(item) for item in (batching or {}).get("preferred_batch_size", ())),
        max_queue_delay_us=int((batching or {}).get("max_queue_delay_microseconds", 0)),
        instances=max(1, sum(int(item.get("count", 1)) * max(1, len(item.get("gpus", ()))) for item in groups)),
        composing=_composing(config),
        decoupled=bool(policy.get("decoupled", False)),
    )
    if found.decoupled:
        raise MeasureError(f"the model '{name}' is decoupled: its responses cannot be matched to requests")
    return found


def random_samples(model: ServedModel, count: int, shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, Array]:
    """Make up inputs, ``(count, *shape)`` each: floats uniform in [0, 1), integers 0 to 9, strings of digits.

    Args:
        model: Whose inputs.
        count: Number of samples.
        shapes: Shapes, batch left out, of inputs with dynamic dimensions.
        seed: Seed.

    Raises:
        MeasureError: A dynamic dimension has no size, or a shape does not fit.
    """
    generator = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for unknown in set(shapes) - {spec.name for spec in model.inputs}:
        hint = did_you_mean(unknown, (spec.name for spec in model.inputs))
        raise MeasureError(f"the model '{model.name}' has no input '{unknown}'", where="--shape", hint=hint)
    for spec in model.inputs:
        shape = tuple(shapes.get(spec.name, spec.shape))
        if -1 in shape:
            example = ",".join(str(size if size > 0 else 16) for size in shape)
            raise MeasureError(
                f"the input {spec} has dynamic dimensions", hint=f"give its shape, as in --shape {spec.name}:{example}"
            )
        if not spec.fits(shape):
            raise MeasureError(f"the shape {list(shape)} does not fit the input {spec}", where="--shape")
        made[spec.name] = _random(generator, spec.dtype, (count, *shape))
    return made


def _random(generator: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> Array:
    if dtype is DType.STRING:
        return generator.integers(0, 10, shape).astype(str).astype(object)
    if dtype is DType.BOOL:
        return generator.integers(0, 2, shape).astype(bool)
    if dtype.numpy.kind == "f":
        return generator.random(shape).astype(dtype.numpy)
    return generator.integers(0, 10, shape).astype(dtype.numpy)


def _spec(item: Mapping[str, Any], batch_axis: bool) -> TensorSpec:
    shape = tuple(int(size) for size in item.get("shape", ()))
    return TensorSpec(name=item["name"], dtype=DType.of(item["datatype"]), shape=shape[1:] if batch_axis else shape)


def _composing(config: Mapping[str, Any]) -> tuple[str, ...]:
    steps = config.get("ensemble_scheduling", {}).get("step", ())
    return tuple(dict.fromkeys(str(item["model_name"]) for item in steps))


def _as_number(version: str) -> int:
    return int(version) if version.isdigit() else -1
