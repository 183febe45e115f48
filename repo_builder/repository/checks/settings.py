"""What a configuration says on its own: tensors, batching, instances, labels, warm-up."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from repo_builder.repository import protobuf
from repo_builder.repository.checks.findings import Finding, error, info, warning
from repo_builder.repository.checks.folder import ModelFolder

_COMPLETED = ("onnxruntime", "tensorrt", "tensorflow", "openvino")  # backends that fill in tensors from the model file


def check(folder: ModelFolder) -> Iterator[Finding]:
    """Check a configuration without looking at the model file."""
    where, config = folder.config_path, folder.config
    if config.name != folder.name:
        yield error(where, f"name is '{config.name}' and the folder '{folder.name}'", "make both the same")
    if not folder.ensemble and not re.fullmatch(r"[\w.:+@-]+", folder.name):
        report = error if config.backend == "python" else warning
        hint = "use letters, digits, '-', '_' and '.'"
        yield report(folder.name, "has a name that stops Triton's Python backend, which runs it through a shell", hint)
    if config.max_batch_size < 0:
        yield error(where, f"max_batch_size is {config.max_batch_size}", "0 turns batching off")
    yield from _tensors(folder)
    yield from _labels(folder)
    yield from _batching(folder)
    yield from _instances(folder)
    yield from _warmup(folder)
    if config.response_cache.enable and (
        config.HasField("sequence_batching") or config.model_transaction_policy.decoupled
    ):
        yield error(where, "the response cache serves neither sequences nor decoupled models", "leave one of them out")


def _tensors(folder: ModelFolder) -> Iterator[Finding]:
    config = folder.config
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for name, count in Counter(item.name for item in tensors).items():
            if count > 1:
                yield error(folder.config_path, f"{kind} '{name}' is there {count} times")
        if not tensors and config.backend not in _COMPLETED:
            report = info if config.backend == "python" else warning
            yield report(
                folder.config_path, f"names no {kind}", "only a backend that completes configurations takes that"
            )
        for place, tensor in enumerate(tensors):
            yield from _tensor(folder, f"{kind} '{tensor.name}'" if tensor.name else f"{kind} {place}", tensor)


def _tensor(folder: ModelFolder, what: str, tensor: Any) -> Iterator[Finding]:  # noqa: ANN401 - a message
    where, config = folder.config_path, folder.config
    if not tensor.name:
        yield error(where, f"{what} has no name")
    if protobuf.type_name(tensor.data_type) == "TYPE_INVALID":
        yield error(where, f"{what} has no data_type")
    if not tensor.dims:
        yield error(where, f"{what} has no dims", "one number is dims: [ 1 ]")
    shape = tensor.reshape.shape if tensor.HasField("reshape") else []
    for size in (*tensor.dims, *shape):
        if size < 1 and size != -1:
            yield error(where, f"{what} has a dimension of {size}", "a dimension is at least 1, or -1 where it varies")
    if tensor.HasField("reshape"):
        if not shape and not config.max_batch_size:
            yield error(where, f"{what} is reshaped to no dimensions, and the model does not batch", "use dims: [ 1 ]")
        elif not _same_elements(tensor.dims, shape):
            yield error(where, f"{what} has dims {list(tensor.dims)} and is reshaped to {list(shape)}, another size")
    if config.backend != "tensorrt" and (tensor.is_shape_tensor or tensor.is_non_linear_format_io):
        yield error(where, f"{what} is a kind of tensor that only the tensorrt backend has")
    if getattr(tensor, "format", 0) and len(tensor.dims) != 3:
        yield error(where, f"{what} has an image format and {len(tensor.dims)} dims", "image formats go with 3 dims")
    if getattr(tensor, "optional", False) and config.backend == "onnxruntime" and config.max_batch_size:
        yield error(where, f"{what} is optional, which the onnxruntime backend takes in models that do not batch only")


def _same_elements(dims: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether two shapes have as many elements between the dimensions that vary."""

    def parts(sizes: Sequence[int]) -> list[int]:
        found = [1]
        for size in sizes:
            if size == -1:
                found.append(1)
            else:
                found[-1] *= size
        return found

    return parts(dims) == parts(shape)


def _labels(folder: ModelFolder) -> Iterator[Finding]:
    for output in folder.config.output:
        if not output.label_filename:
            continue
        file, where = folder.path / output.label_filename, f"{folder.name}/{output.label_filename}"
        if not file.is_file():
            yield error(where, f"is missing, and output '{output.name}' names it")
            continue
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
        if not lines[-1]:
            lines.pop()
        if -1 not in output.dims and math.prod(output.dims) != len(lines):
            yield error(
                where,
                f"has {len(lines)} labels, and output '{output.name}' has {math.prod(output.dims)} elements",
                "one line an element",
            )
        elif not all(line.strip() for line in lines):
            yield warning(where, f"line {[bool(line.strip()) for line in lines].index(False) + 1} is empty")


def _batching(folder: ModelFolder) -> Iterator[Finding]:
    where, config = folder.config_path, folder.config
    largest = config.max_batch_size
    if config.HasField("dynamic_batching") and not largest:
        yield warning(where, "dynamic_batching has no effect while max_batch_size is 0")
    for preferred in (
        config.dynamic_batching.preferred_batch_size,
        config.sequence_batching.oldest.preferred_batch_size,
    ):
        for size in preferred:
            if not 1 <= size <= max(largest, 0):
                yield error(where, f"preferred_batch_size {size} is not between 1 and max_batch_size ({largest})")


def _instances(folder: ModelFolder) -> Iterator[Finding]:
    where, config = folder.config_path, folder.config
    for place, group in enumerate(config.instance_group):
        what = f"instance_group {group.name!r}" if group.name else f"instance_group {place}"
        kind = type(group).Kind.Name(group.kind)
        if kind in ("KIND_CPU", "KIND_MODEL") and group.gpus:
            yield error(where, f"{what} is {kind} and names GPUs")
        if config.backend == "tensorrt" and kind == "KIND_CPU":
            yield error(where, f"{what} is KIND_CPU, and a TensorRT plan runs on GPUs only", "use KIND_GPU")
        if group.profile and config.backend != "tensorrt":
            yield error(where, f"{what} names profiles, which TensorRT plans only have")
        for profile in group.profile:
            if not profile.isdigit():
                yield error(where, f"{what} names the profile '{profile}'", "profiles are numbers from 0 on")
        if group.count < 0:
            yield error(where, f"{what} has a count of {group.count}")
        if config.optimization.execution_accelerators.gpu_execution_accelerator and kind == "KIND_CPU":
            yield warning(where, f"{what} is KIND_CPU, so the GPU execution accelerators have no effect on it")


def _warmup(folder: ModelFolder) -> Iterator[Finding]:
    config = folder.config
    inputs = {item.name: item for item in config.input}
    controls = {item.name for item in config.sequence_batching.control_input}
    for sample in config.model_warmup:
        what = f"model_warmup '{sample.name}'"
        largest = max(config.max_batch_size, 1)
        if sample.batch_size == 0:
            yield warning(folder.config_path, f"{what} has a batch_size of 0, so it is skipped")
        elif sample.batch_size > largest:
            yield error(folder.config_path, f"{what} has a batch_size of {sample.batch_size}, above {largest}")
        for name in sorted(set(sample.inputs) - set(inputs) - controls):
            yield error(folder.config_path, f"{what} names '{name}', which is no input")
        for name, tensor in inputs.items():
            if name in sample.inputs:
                yield from _warmup_input(folder, f"{what}, input '{name}',", sample.inputs[name], tensor)
            elif not tensor.optional:
                yield error(folder.config_path, f"{what} has no data for input '{name}'")


def _warmup_input(folder: ModelFolder, what: str, sample: Any, tensor: Any) -> Iterator[Finding]:  # noqa: ANN401
    where = folder.config_path
    if sample.data_type != tensor.data_type:
        given, wanted = protobuf.type_name(sample.data_type), protobuf.type_name(tensor.data_type)
        yield error(where, f"{what} is {given}, and the input {wanted}")
    if -1 in sample.dims:
        yield error(where, f"{what} has a dimension of -1", "name a size")
    elif len(sample.dims) != len(tensor.dims) or any(
        size not in (-1, given) for size, given in zip(tensor.dims, sample.dims, strict=True)
    ):
        yield error(where, f"{what} has dims {list(sample.dims)}, and the input {list(tensor.dims)}")
    source = sample.WhichOneof("input_data_type")
    if source is None:
        yield error(where, f"{what} has no data", "add zero_data: true")
    elif source == "input_data_file" and not (folder.path / "warmup" / sample.input_data_file).is_file():
        yield error(f"{folder.name}/warmup/{sample.input_data_file}", "is missing, and model_warmup names it")
