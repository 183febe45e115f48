"""What the server says of a model: its tensors, whether it batches, what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from repo_builder.core.errors import MeasureError, did_you_mean
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.measure.wire.control import Control
from repo_builder.measure.wire.transport import ConnectionLost
from repo_builder.results import BuildIdentity


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
        parts: Models that an ensemble is made of, each with its own; empty for others.
        decoupled: Whether a request may have any number of responses.
        optional: Names of the inputs that a request may leave out.
        sequence: Whether requests belong to sequences.
        text_ids: Whether sequences are known by texts, and not by numbers.
        native: Whether the backend is a library of its own, and not one written in Python.
        own_axis: Whether Triton does not batch the model and yet the first dimension of every tensor varies, which may
            or may not mean that it counts samples.
        response_cache: Whether the server may answer from its response cache.
        identity: Which build it is, as its configuration says; None where it says none.
        config: The whole configuration as JSON values.
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
    parts: tuple[ServedModel, ...] = ()
    decoupled: bool = False
    optional: frozenset[str] = frozenset()
    sequence: bool = False
    text_ids: bool = False
    native: bool = False
    own_axis: bool = False
    response_cache: bool = False
    identity: BuildIdentity | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def composing(self) -> tuple[str, ...]:
        """Names of the models inside an ensemble, at any depth, each once."""
        return tuple(self.inside())

    @property
    def leaves(self) -> tuple[str, ...]:
        """Names of those of them that are no ensembles themselves."""
        return tuple(name for name, item in self.inside().items() if not item.parts)

    def inside(self) -> dict[str, ServedModel]:
        """Return the models inside an ensemble by name, those of a step before those of the next."""
        found: dict[str, ServedModel] = {}
        for part in self.parts:
            found |= {part.name: part} | part.inside()
        return found

    def counting_samples(self) -> ServedModel:
        """Return the model with the first dimension of its own taken as that of a batch."""
        if not self.own_axis or self.batch_axis:
            return self
        inputs, outputs = (
            [replace(item, shape=item.shape[1:]) for item in side] for side in (self.inputs, self.outputs)
        )
        return replace(self, inputs=tuple(inputs), outputs=tuple(outputs), batch_axis=True)

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
    try:
        return _described(control, name, version, metadata, config, seen=(name,))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"what answers says nothing of the model '{name}' that can be read ({error!r})"
        raise MeasureError(message, hint="is it a Triton server, or a proxy that fails?") from error


def _described(
    control: Control,
    name: str,
    version: str,
    metadata: Mapping[str, Any],
    config: Mapping[str, Any],
    seen: tuple[str, ...],
) -> ServedModel:
    max_batch_size = int(config.get("max_batch_size", 0))
    tensors = [*metadata.get("inputs", ()), *metadata.get("outputs", ())]
    first_varies = all(item.get("shape") and int(item["shape"][0]) == -1 for item in tensors)
    batching = config.get("dynamic_batching")
    groups = config.get("instance_group", ())
    parts = _parts(control, config, seen)
    sequences = config.get("sequence_batching")
    return ServedModel(
        name=name,
        version=version or max((str(item) for item in metadata.get("versions", ("",))), key=_as_number, default=""),
        backend=str(config.get("backend") or config.get("platform") or metadata.get("platform", "")),
        inputs=tuple(_spec(name, item, max_batch_size > 0) for item in metadata.get("inputs", ())),
        outputs=tuple(_spec(name, item, max_batch_size > 0) for item in metadata.get("outputs", ())),
        max_batch_size=max_batch_size,
        batch_axis=max_batch_size > 0,
        own_axis=not max_batch_size and first_varies,
        dynamic_batching=batching is not None,
        preferred_batch_sizes=tuple(int(item) for item in (batching or {}).get("preferred_batch_size", ())),
        max_queue_delay_us=int((batching or {}).get("max_queue_delay_microseconds", 0)),
        instances=max(1, sum(int(item.get("count", 1)) * max(1, len(item.get("gpus", ()))) for item in groups)),
        parts=parts,
        decoupled=bool((config.get("model_transaction_policy") or {}).get("decoupled", False))
        or any(item.decoupled for item in parts),
        optional=frozenset(str(item["name"]) for item in config.get("input", ()) if item.get("optional")),
        sequence=sequences is not None or any(item.sequence for item in parts),
        text_ids=_text_ids(sequences or {}) or any(item.text_ids for item in parts),
        native=str(config.get("runtime", "")).startswith("lib"),
        response_cache=bool((config.get("response_cache") or {}).get("enable", False)),
        identity=_identity(config),
        config=config,
    )


def _parts(control: Control, config: Mapping[str, Any], seen: tuple[str, ...]) -> tuple[ServedModel, ...]:
    """Describe the models of an ensemble's steps, each once, and of those that are ensembles again."""
    steps = (config.get("ensemble_scheduling") or {}).get("step", ())
    found = []
    for name in dict.fromkeys(str(item["model_name"]) for item in steps):
        if name not in seen:
            described = control.metadata(name), control.config(name)
            found.append(_described(control, name, "", *described, seen=(*seen, name)))
    return tuple(found)


def _text_ids(sequences: Mapping[str, Any]) -> bool:
    """Whether a model takes its sequences' ids as texts."""
    controls = (item for control in sequences.get("control_input", ()) for item in control.get("control", ()))
    return any(
        item.get("kind") == "CONTROL_SEQUENCE_CORRID" and item.get("data_type") == "TYPE_STRING" for item in controls
    )


def _identity(config: Mapping[str, Any]) -> BuildIdentity | None:
    """Return what ``build`` wrote among the parameters."""
    given = {key: str(value.get("string_value", "")) for key, value in (config.get("parameters") or {}).items()}
    names = ("engine_sha256", "build_key", "recipe")
    values = {name: given.get(f"repo_builder_{name}", "") for name in names}
    return BuildIdentity(**values) if values["engine_sha256"] else None


def _spec(model: str, item: Mapping[str, Any], batch_axis: bool) -> TensorSpec:
    shape = tuple(int(size) for size in item.get("shape", ()))
    try:
        dtype = DType.of(item["datatype"])
    except KeyError:
        raise MeasureError(
            f"the model '{model}' has a tensor '{item['name']}' of a type that is not known here ({item['datatype']})"
        ) from None
    return TensorSpec(name=item["name"], dtype=dtype, shape=shape[1:] if batch_axis else shape)


def _as_number(version: str) -> int:
    return int(version) if version.isdigit() else -1
