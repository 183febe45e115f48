"""Batches: the dynamic batcher's queue, and tensors that Triton makes of a batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from repo_builder.core.errors import did_you_mean
from repo_builder.repository import protobuf
from repo_builder.repository.checks.findings import Finding, error, warning
from repo_builder.repository.checks.folder import ModelFolder

_BATCH_INPUT_TYPES = ("TYPE_INT32", "TYPE_FP32")


def check(folder: ModelFolder) -> Iterator[Finding]:
    """Check how requests are put together."""
    where, config = folder.config_path, folder.config
    if config.max_batch_size < 0:
        yield error(where, f"max_batch_size is {config.max_batch_size}", "0 turns batching off")
    if config.HasField("dynamic_batching"):
        if not config.max_batch_size:
            yield warning(where, "dynamic_batching has no effect while max_batch_size is 0")
        yield from preferred(folder, "dynamic_batching", config.dynamic_batching.preferred_batch_size)
        yield from _priorities(where, config.dynamic_batching)
        yield from _order(where, config.dynamic_batching)
    inputs = [item.name for item in config.input]
    for place, item in enumerate(config.batch_input):
        yield from _sources(where, f"batch_input {place}", item, inputs)
        if protobuf.type_name(item.data_type) not in _BATCH_INPUT_TYPES:
            given = protobuf.type_name(item.data_type)
            yield error(where, f"batch_input {place} is {given}", f"use {' or '.join(_BATCH_INPUT_TYPES)}")
    outputs = [item.name for item in config.output]
    for place, item in enumerate(config.batch_output):
        what = f"batch_output {place}"
        yield from _sources(where, what, item, inputs)
        for name, count in Counter(item.target_name).items():
            if name not in outputs:
                yield error(where, f"{what} has the target '{name}', which is no output", did_you_mean(name, outputs))
            elif count > 1:
                yield error(where, f"{what} names the target '{name}' {count} times")


def preferred(folder: ModelFolder, what: str, sizes: Sequence[int]) -> Iterator[Finding]:
    """Check the batch sizes that a batcher is to reach."""
    largest = folder.config.max_batch_size
    for size in sizes:
        if not 1 <= size <= max(largest, 0):
            message = f"{what} has a preferred_batch_size {size} not between 1 and max_batch_size ({largest})"
            yield error(folder.config_path, message)


def _priorities(where: str, batcher: Any) -> Iterator[Finding]:  # noqa: ANN401 - a ModelDynamicBatching
    levels = batcher.priority_levels
    if not levels:
        if batcher.default_priority_level or batcher.priority_queue_policy:
            yield warning(where, "dynamic_batching has no priority_levels, so nothing about priorities has an effect")
        return
    if not 1 <= batcher.default_priority_level <= levels:
        given = batcher.default_priority_level
        yield error(where, f"default_priority_level is {given}, and there are the levels 1 to {levels}")
    for level in batcher.priority_queue_policy:
        if not 1 <= level <= levels:
            yield error(where, f"priority_queue_policy is for level {level}, and there are the levels 1 to {levels}")


def _order(where: str, batcher: Any) -> Iterator[Finding]:  # noqa: ANN401 - see above
    if not batcher.preserve_ordering:
        return
    if batcher.priority_levels > 1:
        yield error(where, "preserve_ordering and several priority_levels exclude each other", "leave one of them out")
    for policy in (batcher.default_queue_policy, *batcher.priority_queue_policy.values()):
        delays = policy.timeout_action == type(policy).TimeoutAction.Value("DELAY")
        if delays and policy.default_timeout_microseconds:
            yield error(
                where, "preserve_ordering and timeout_action DELAY exclude each other", "reject what is late instead"
            )


def _sources(where: str, what: str, item: Any, inputs: Sequence[str]) -> Iterator[Finding]:  # noqa: ANN401
    if len(item.source_input) != 1:
        yield error(where, f"{what} has {len(item.source_input)} source inputs", "name one input in source_input")
    for name in item.source_input:
        if name not in inputs:
            yield error(where, f"{what} has the source '{name}', which is no input", did_you_mean(name, inputs))
