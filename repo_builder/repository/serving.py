"""The serving settings inside a config.pbtxt: read, and changed without touching anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from repo_builder.core.errors import RepositoryError
from repo_builder.repository import protobuf
from repo_builder.results.tuning import Settings

_THREADS = "intra_op_thread_count"
_FILLED_IN = ("batch_input", "batch_output")  # empty lists that the server lists and the loader does not need

# A ModelConfig; protobuf messages have no type here.
Message = Any


def of_text(text: str, where: str) -> Message:
    """Parse a config.pbtxt.

    Raises:
        RepositoryError: It is none.
    """
    return protobuf.parse(text, where)


def of_json(config: Mapping[str, Any], where: str) -> Message:
    """Return the ModelConfig that a server describes as JSON values.

    Raises:
        RepositoryError: It is none.
    """
    values = {key: item for key, item in config.items() if not (key in _FILLED_IN and not item)}
    try:
        return json_format.ParseDict(values, model_config_pb2.ModelConfig(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise RepositoryError(f"is not a model configuration: {error}", where=where) from None


def to_json(config: Message) -> dict[str, Any]:
    """Return a ModelConfig as the JSON values that Triton takes when a model is loaded."""
    found: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return found


def settings_of(config: Message, build: int = 0) -> Settings:
    """Return the settings that a ModelConfig has."""
    batching = config.dynamic_batching
    preferred = tuple(batching.preferred_batch_size)
    most = config.max_batch_size
    threads = None
    if _is_onnxruntime(config) and not on_gpu(config):
        given = config.parameters[_THREADS].string_value if _THREADS in config.parameters else ""
        threads = int(given) if given.isdecimal() else 0
    return Settings(
        instances=max(1, sum(item.count or 1 for item in config.instance_group)),
        max_batch_size=most,
        max_queue_delay_us=batching.max_queue_delay_microseconds if most > 1 else 0,
        # Triton's own completion of a batcher without any
        preferred_batch_sizes=() if preferred == (most,) else preferred,
        threads=threads,
        batching=most < 2 or config.HasField("dynamic_batching"),
        build=build,
    )


def changed(config: Message, settings: Settings, *, name: str | None = None) -> Message:
    """Return a ModelConfig with other settings; warm-up of batches that are too large now is left out.

    Args:
        config: It stays as it is.
        settings: What it shall say.
        name: Another name of the model; None leaves it.
    """
    made = model_config_pb2.ModelConfig()
    made.CopyFrom(config)
    if name is not None:
        made.name = name
    group = made.instance_group[0] if made.instance_group else made.instance_group.add()
    group.count = settings.instances
    made.max_batch_size = settings.max_batch_size
    if settings.max_batch_size > 1 and settings.batching:
        del made.dynamic_batching.preferred_batch_size[:]
        made.dynamic_batching.preferred_batch_size.extend(settings.preferred_batch_sizes)
        made.dynamic_batching.max_queue_delay_microseconds = settings.max_queue_delay_us
    else:
        made.ClearField("dynamic_batching")
    if settings.threads is not None:
        if settings.threads:
            made.parameters[_THREADS].string_value = str(settings.threads)
        elif _THREADS in made.parameters:
            del made.parameters[_THREADS]
    fitting = [item for item in made.model_warmup if item.batch_size <= max(1, settings.max_batch_size)]
    del made.model_warmup[:]
    made.model_warmup.extend(fitting)
    return made


def rendered(config: Message, before: str, note: str) -> str:
    """Return a ModelConfig as text, below the comments that stood at the top of the file before and a new one.

    Raises:
        RepositoryError: The text does not mean what it says.
    """
    comments = []
    for line in before.splitlines():
        if not line.startswith("#"):
            break
        if line != f"# {note}":
            comments.append(line)
    text = "\n".join([*comments, f"# {note}", text_format.MessageToString(config)])
    different = protobuf.difference(protobuf.parse(text, where=config.name), config)
    if different:
        raise RepositoryError(f"config.pbtxt would not say what was asked: {different}", where=config.name)
    return text


def why_not(config: Message) -> str:
    """Return why a model's settings cannot be searched; empty where they can."""
    if config.HasField("ensemble_scheduling"):
        steps = ", ".join(dict.fromkeys(item.model_name for item in config.ensemble_scheduling.step))
        return f"is an ensemble, and the settings are those of its steps: tune {steps}"
    if config.HasField("sequence_batching"):
        return "is a sequence model, whose batcher has other settings"
    if len(config.instance_group) > 1:
        return "has several instance groups, and one is searched"
    return ""


def _is_onnxruntime(config: Message) -> bool:
    return "onnxruntime" in (config.backend, config.platform.partition("_")[0])


def on_gpu(config: Message) -> bool:
    """Whether the model runs on a GPU, as far as its configuration says."""
    kind = model_config_pb2.ModelInstanceGroup.Kind
    return any(item.kind == kind.Value("KIND_GPU") for item in config.instance_group)
