"""Sequences: the controls that Triton fills, the states that it keeps, and how it schedules them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from repo_builder.repository import protobuf
from repo_builder.repository.checks import batching, data
from repo_builder.repository.checks.findings import Finding, error
from repo_builder.repository.checks.folder import ModelFolder

_VALUES = ("int32_false_true", "fp32_false_true", "bool_false_true")
_BOOLEAN = ("CONTROL_SEQUENCE_START", "CONTROL_SEQUENCE_END", "CONTROL_SEQUENCE_READY")
_CORRID = "CONTROL_SEQUENCE_CORRID"
_CORRID_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")
_FOLDER = "initial_state"


def check(folder: ModelFolder) -> Iterator[Finding]:
    """Check the sequence batcher of a model that has one."""
    if not folder.config.HasField("sequence_batching"):
        return
    where, batcher = folder.config_path, folder.config.sequence_batching
    if folder.config.response_cache.enable:
        yield error(where, "the response cache does not serve sequences", "leave one of them out")
    yield from _controls(where, batcher)
    if batcher.HasField("oldest"):
        yield from batching.preferred(folder, "sequence_batching", batcher.oldest.preferred_batch_size)
    if batcher.HasField("direct") and not 0 <= batcher.direct.minimum_slot_utilization <= 1:
        given = batcher.direct.minimum_slot_utilization
        yield error(where, f"minimum_slot_utilization is {given:g}", "it is a share, from 0 to 1")
    for state in batcher.state:
        yield from _state(folder, state)


def _controls(where: str, batcher: Any) -> Iterator[Finding]:  # noqa: ANN401 - a ModelSequenceBatching
    for name, count in Counter(item.name for item in batcher.control_input).items():
        if not name:
            yield error(where, "a control_input has no name")
        elif count > 1:
            yield error(
                where, f"control_input '{name}' is there {count} times", "give each control a tensor of its own"
            )
    found = [(item.name, control) for item in batcher.control_input for control in item.control]
    kinds = Counter(type(control).Kind.Name(control.kind) for _, control in found)
    for kind, count in kinds.items():
        if count > 1:
            yield error(where, f"{kind} goes to {count} tensors", "one of them is enough for Triton")
    for name, control in found:
        yield from _control(where, f"control_input '{name}'", control)


def _control(where: str, what: str, control: Any) -> Iterator[Finding]:  # noqa: ANN401 - a Control
    kind = type(control).Kind.Name(control.kind)
    given = [field for field in _VALUES if len(getattr(control, field))]
    if kind == _CORRID:
        if given:
            yield error(where, f"{what} has {given[0]}, and {kind} carries the sequence's id", "remove it")
        if protobuf.type_name(control.data_type) not in _CORRID_TYPES:
            named = protobuf.type_name(control.data_type)
            yield error(where, f"{what} has the data_type {named}", f"an id is one of {', '.join(_CORRID_TYPES)}")
    elif kind in _BOOLEAN:
        if len(given) != 1:
            said = "no values" if not given else " and ".join(given)
            yield error(where, f"{what} has {said}", f"give false and true in one of {', '.join(_VALUES)}")
        elif len(getattr(control, given[0])) != 2:
            count = len(getattr(control, given[0]))
            yield error(where, f"{what} has {count} values in {given[0]}", "give two, for false and true")


def _state(folder: ModelFolder, state: Any) -> Iterator[Finding]:  # noqa: ANN401 - a State
    where, what = folder.config_path, f"state '{state.input_name}'"
    if len(state.initial_state) > 1:
        yield error(where, f"{what} has {len(state.initial_state)} initial states", "leave one")
        return
    for initial in state.initial_state:
        if initial.data_type != state.data_type:
            one, other = protobuf.type_name(initial.data_type), protobuf.type_name(state.data_type)
            yield error(where, f"the initial state of {what} is {one}, and the state {other}")
        if not initial.name:
            yield error(where, f"the initial state of {what} has no name")
        if -1 in initial.dims:
            yield error(where, f"the initial state of {what} has a dimension of -1", "name a size")
        elif len(initial.dims) != len(state.dims) or any(
            size not in (-1, given) for size, given in zip(state.dims, initial.dims, strict=True)
        ):
            yield error(where, f"the initial state of {what} has dims {list(initial.dims)}, and it {list(state.dims)}")
        source = initial.WhichOneof("state_data")
        if source is None:
            yield error(where, f"the initial state of {what} has no data", "add zero_data: true")
        elif source == "data_file":
            yield from data.file(folder, f"{_FOLDER}/{initial.data_file}", initial, used_by=what)
