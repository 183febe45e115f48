"""Triton's ModelConfig protobuf: parse its text, build it from a spec, tell two apart. Slow to import: a leaf."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from repo_builder.core.errors import RepositoryError, did_you_mean, first_line
from repo_builder.core.releases import NEWER_FIELDS
from repo_builder.core.tensors import TensorSpec
from repo_builder.repository.spec import LABELS, EnsembleSpec, ModelConfigSpec

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def quote(text: str) -> str:
    """Return a string literal of the protobuf text format."""
    escaped = (_ESCAPES.get(c) or (f"\\{ord(c):03o}" if ord(c) < 32 or ord(c) == 127 else c) for c in text)
    return '"' + "".join(escaped) + '"'


def parse(text: str, where: str) -> Any:  # noqa: ANN401 - protobuf messages have no type here
    """Parse the text of a config.pbtxt into a ModelConfig.

    Raises:
        RepositoryError: It is not one; the line and column are named.
    """
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        reason = " ".join(str(error).removeprefix(f"{line}:{column} : ").removesuffix(".").split())
        raise RepositoryError(
            f"is not a model configuration: {reason}",
            where=f"{where}:{line}:{column}" if line else where,
            hint=_other_field(reason),
        ) from None
    except (ValueError, TypeError, RecursionError) as error:  # numbers beyond a field, and messages inside messages
        raise RepositoryError(f"is not a model configuration: {first_line(error)[:200]}", where=where) from None


def _other_field(reason: str) -> str | None:
    """Return a did-you-mean for a parser's message about a field that there is not."""
    found = re.fullmatch(r'Message type "(.+)" has no field named "(.+)"', reason)
    if found is None:
        return None
    since = NEWER_FIELDS.get((found[1].rpartition(".")[2], found[2]))
    if since is not None:  # the protobuf here is that of the installed tritonclient
        return f"Triton reads it from {since} on: pip install --upgrade tritonclient, to have it checked"
    message = model_config_pb2.DESCRIPTOR.pool.FindMessageTypeByName(found[1])
    return did_you_mean(found[2], message.fields_by_name)


def build(spec: ModelConfigSpec) -> Any:  # noqa: ANN401 - see parse
    """Build the ModelConfig that a spec means, without any text in between."""
    config = model_config_pb2.ModelConfig(
        name=spec.name, backend=spec.backend, platform=spec.platform, max_batch_size=spec.max_batch_size
    )
    for tensor in spec.inputs:
        fill(config.input.add(), tensor, batched=bool(spec.max_batch_size))
    for tensor in spec.outputs:
        output = config.output.add()
        fill(output, tensor, batched=bool(spec.max_batch_size))
        if tensor.name == spec.labels:
            output.label_filename = LABELS
    config.version_policy.latest.num_versions = spec.keep_versions
    kind = model_config_pb2.ModelInstanceGroup.Kind.Value(f"KIND_{spec.instance_kind.upper()}")
    config.instance_group.add(count=spec.instance_count, kind=kind, profile=spec.profiles)
    if spec.dynamic_batching:
        config.dynamic_batching.preferred_batch_size.extend(spec.preferred_batch_sizes)
        config.dynamic_batching.max_queue_delay_microseconds = spec.max_queue_delay_us
    for accelerator in spec.accelerators:
        config.optimization.execution_accelerators.gpu_execution_accelerator.add(
            name=accelerator.name, parameters=accelerator.parameters
        )
    for key, value in spec.parameters.items():
        config.parameters[key].string_value = value
    for size in spec.warmup_batch_sizes:
        sample = config.model_warmup.add(name=f"batch {size}", batch_size=size)
        for tensor in spec.inputs:
            entry = sample.inputs[tensor.name]
            entry.data_type = model_config_pb2.DataType.Value(tensor.dtype.config)
            entry.dims.extend(spec.warmup_shape(tensor))
            if tensor.name in spec.warmup_files:
                entry.input_data_file = spec.warmup_files[tensor.name]
            else:
                entry.zero_data = True
    if spec.response_cache:
        config.response_cache.enable = True
    return config


def build_ensemble(spec: EnsembleSpec) -> Any:  # noqa: ANN401 - see parse
    """Build the ModelConfig that an ensemble's spec means, without any text in between."""
    config = model_config_pb2.ModelConfig(name=spec.name, platform="ensemble", max_batch_size=spec.max_batch_size)
    for tensor in spec.inputs:
        fill(config.input.add(), tensor, batched=False)
    for tensor in spec.outputs:
        output = config.output.add()
        fill(output, tensor, batched=False)
        if tensor.name == spec.labels:
            output.label_filename = LABELS
    for step in spec.steps:
        config.ensemble_scheduling.step.add(
            model_name=step.model, model_version=-1, input_map=step.takes, output_map=step.gives
        )
    for key, value in spec.parameters.items():
        config.parameters[key].string_value = value
    return config


def fill(entry: Any, tensor: TensorSpec, *, batched: bool) -> None:  # noqa: ANN401 - ModelInput or ModelOutput
    """Write a tensor into a ModelInput or ModelOutput; one number a sample is dims [1], reshaped where models batch."""
    entry.name = tensor.name
    entry.data_type = model_config_pb2.DataType.Value(tensor.dtype.config)
    entry.dims.extend(tensor.shape or (1,))
    if not tensor.shape and batched:
        entry.reshape.SetInParent()


def data_type(name: str) -> int:
    """Return the number of a data type of config.pbtxt, as in ``TYPE_FP32``."""
    return int(model_config_pb2.DataType.Value(name))


def type_name(data_type: int) -> str:
    """Return a data type's name in config.pbtxt, as in ``TYPE_FP32``."""
    return str(model_config_pb2.DataType.Name(data_type))


def difference(found: Any, wanted: Any) -> str:  # noqa: ANN401 - see parse
    """Name the first field in which two ModelConfigs differ; empty where they are equal."""
    for field in wanted.DESCRIPTOR.fields:
        one, other = getattr(found, field.name), getattr(wanted, field.name)
        if one != other:
            return f"{field.name} is '{_short(one)}' instead of '{_short(other)}'"
    return "" if found == wanted else "a field is set that was not asked for"


def _short(value: Any) -> str:  # noqa: ANN401 - a field's value
    text = " ".join(str(value).split())
    return text if len(text) <= 200 else text[:197] + "..."
