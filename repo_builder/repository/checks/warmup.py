"""Warm-up samples: whether Triton can make a request of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from repo_builder.repository import protobuf
from repo_builder.repository.checks import data
from repo_builder.repository.checks.findings import Finding, error, warning
from repo_builder.repository.checks.folder import ModelFolder

_FOLDER = "warmup"


def check(folder: ModelFolder) -> Iterator[Finding]:
    """Check every sample of ``model_warmup``."""
    config = folder.config
    inputs = {item.name: item for item in config.input}
    controls = {item.name for item in config.sequence_batching.control_input}
    for sample in config.model_warmup:
        what = f"model_warmup '{sample.name}'"
        largest = max(config.max_batch_size, 1)
        if sample.batch_size == 0:
            yield warning(folder.config_path, f"{what} has a batch_size of 0, so it is skipped")
            continue
        if sample.batch_size > largest:
            yield error(folder.config_path, f"{what} has a batch_size of {sample.batch_size}, above {largest}")
        for name in sorted(set(sample.inputs) - set(inputs) - controls):
            yield error(folder.config_path, f"{what} names '{name}', which is no input")
        for name, tensor in inputs.items():
            if name in sample.inputs:
                yield from _input(folder, f"{what}, input '{name}',", sample.inputs[name], tensor)
            elif not tensor.optional:
                yield error(folder.config_path, f"{what} has no data for input '{name}'")


def _input(folder: ModelFolder, what: str, sample: Any, tensor: Any) -> Iterator[Finding]:  # noqa: ANN401 - messages
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
    elif source == "input_data_file":
        yield from data.file(folder, f"{_FOLDER}/{sample.input_data_file}", sample, used_by=what.removesuffix(","))
