"""Whether an exported graph computes what the module does, at the sizes that were run and at others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from repo_builder.core import loading, onnx_files
from repo_builder.core.calling import outputs_of
from repo_builder.core.errors import ModelError
from repo_builder.core.tensors import Array, TensorSpec

if TYPE_CHECKING:
    from repo_builder.core.sessions import Session

_TOLERANCE = 1e-3  # of an output's largest value
_FLIPPED = 0.01  # share of whole numbers that rounding may change: indices of nearly equal values
Axes = Mapping[str, Mapping[int, str]]


def departs(
    module: nn.Module,
    model: onnx.ModelProto,
    given: Sequence[Tensor],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    axes: Axes,
) -> str:
    """Return how a graph differs from its module, as it would be said to a user; empty where it does not.

    The module is run on what was exported, on one sample, and with each dimension that varies one larger; sizes at
    which the module itself does not run are left out.

    Args:
        module: The network, in eval mode.
        model: Its graph.
        given: Inputs that were run when it was exported.
        inputs: Their specs.
        outputs: Specs of the outputs.
        axes: Tensor → axis that varies → its name.
    """
    names = [spec.name for spec in outputs]
    with loading.needs("onnxruntime", what="comparing an exported graph"):
        from repo_builder.core.sessions import Session
    with onnx_files.loadable(model) as source:
        session = Session(source if isinstance(source, bytes) else Path(source))
        for feed in _feeds(given, inputs, axes):
            try:
                with torch.no_grad():
                    expected = outputs_of(module(*feed), names)
            except Exception:  # noqa: S112 - a size that the network does not take tells nothing of the graph
                continue
            said = _differs(session, feed, inputs, dict(zip(names, expected, strict=True)))
            if said:
                shapes = ", ".join(f"{spec.name} {list(item.shape)}" for spec, item in zip(inputs, feed, strict=True))
                return f"its graph {said} at {shapes}"
    return ""


def _feeds(given: Sequence[Tensor], inputs: Sequence[TensorSpec], axes: Axes) -> Iterator[list[Tensor]]:
    """Yield the inputs as they were, one sample, and one larger in what varies, equal sizes together."""
    yield list(given)
    batch = [axes.get(spec.name, {}) for spec in inputs]
    if any("batch" in item.values() for item in batch):
        yield [_only_first(item, varying) for item, varying in zip(given, batch, strict=True)]
    sizes = {
        item.shape[axis]
        for item, varying in zip(given, batch, strict=True)
        for axis, name in varying.items()
        if name != "batch"
    }
    for size in sorted(sizes):
        yield [_one_more(item, varying, size) for item, varying in zip(given, batch, strict=True)]


def _only_first(value: Tensor, varying: Mapping[int, str]) -> Tensor:
    for axis, name in varying.items():
        if name == "batch":
            value = value.narrow(axis, 0, 1).contiguous()
    return value


def _one_more(value: Tensor, varying: Mapping[int, str], size: int) -> Tensor:
    for axis, name in varying.items():
        if name != "batch" and value.shape[axis] == size:
            places = torch.arange(size + 1) % max(1, size)
            value = value.index_select(axis, places)
    return value


def _differs(
    session: Session, feed: Sequence[Tensor], inputs: Sequence[TensorSpec], expected: Mapping[str, Tensor]
) -> str:
    """Return how a session's outputs differ from those expected; empty where they do not."""
    values = {spec.name: item.numpy() for spec, item in zip(inputs, feed, strict=True)}
    try:
        found = session.run(values)
    except ModelError as error:
        return f"does not run ({error.message})"
    for name, value in expected.items():
        wanted, got = value.numpy(), found[name]
        if wanted.shape != got.shape:
            return f"gives '{name}' the shape {list(got.shape)}, not {list(wanted.shape)},"
        if not _close(wanted, got):
            return f"gives other numbers for '{name}'"
    return ""


def _close(wanted: Array, got: Array) -> bool:
    if wanted.dtype.kind not in "fc":
        return wanted.size == 0 or float(np.mean(wanted != got)) <= _FLIPPED
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], got[~finite], equal_nan=True):
        return False
    largest = float(np.max(np.abs(wanted[finite]), initial=0.0))
    return bool(np.all(np.abs(wanted[finite] - got[finite]) <= _TOLERANCE * largest + 1e-6))
