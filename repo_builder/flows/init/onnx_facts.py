"""What an .onnx file says of itself: tensors, which axis counts samples, layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from repo_builder.core import batchable, onnx_files, signatures
from repo_builder.core.errors import ModelError, QuantizeError, RepositoryError
from repo_builder.core.signatures import OnnxSignature, OnnxTensor
from repo_builder.flows.init.facts import Facts, Tensor
from repo_builder.quantize import prepare
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.rules import Layer

_NONE = -1  # as an axis: none counts samples


@dataclass(frozen=True, kw_only=True)
class _Axes:
    """Which axis of each tensor counts samples, and what follows.

    Attributes:
        of: Tensor → its axis.
        batches: Whether requests may be put together.
        reason: Why, or why not, half a sentence.
        doubt: What is left to decide about it; empty for nothing.
    """

    of: dict[str, int]
    batches: bool
    reason: str
    doubt: str = ""


def read(path: Path) -> Facts:
    """Read an .onnx file.

    Raises:
        ModelError: It is no ONNX model, or has a tensor of a type that Triton does not have.
    """
    try:
        signature = signatures.read(path)
    except RepositoryError as error:
        raise ModelError(error.message, where=error.where, hint=error.hint) from None
    axes = _axes(path, signature)
    inputs, outputs = (
        tuple(_tensor(item, axes.of[item.name], path) for item in tensors)
        for tensors in (signature.inputs, signature.outputs)
    )
    if not inputs:
        raise ModelError("has no inputs: a recipe measures a model on samples", where=str(path))
    layers, no_rules = _layers(path)
    unknown = [item.name for item in (*inputs, *outputs) if item.shape is None]
    undecided = [axes.doubt] if axes.doubt else []
    undecided += [f"shape of '{name}': the file does not say its dimensions" for name in unknown]
    undecided += [f"layers: no rule was written, {no_rules}"] if no_rules else []
    return Facts(
        source=path.as_posix(),
        arguments={},
        inputs=inputs,
        outputs=outputs,
        layers=layers,
        no_rules=no_rules,
        batches=axes.batches,
        batch_reason=axes.reason,
        found=(f"batch: {axes.reason}",),
        undecided=tuple(undecided),
    )


def _layers(path: Path) -> tuple[tuple[Layer, ...], str]:
    """Return the layers that rules would see, and why there are none."""
    model = onnx_files.load(path)
    try:
        return tuple(find_layers(prepare.prepare(model))), ""
    except QuantizeError as error:
        return (), error.message


def _tensor(item: OnnxTensor, axis: int, path: Path) -> Tensor:
    if item.dtype is None:
        raise ModelError(f"'{item.name}' is {item.type}, a type that Triton does not have", where=str(path))
    if item.shape is None:
        return Tensor(name=item.name, dtype=item.dtype, shape=None, batch_axis=axis)
    kept = [place for place in range(len(item.shape)) if place != axis]
    named = [item.symbols[place] if place < len(item.symbols) else "" for place in kept]
    varying = ", ".join(name for name, place in zip(named, kept, strict=True) if item.shape[place] == -1 and name)
    return Tensor(
        name=item.name,
        dtype=item.dtype,
        shape=tuple(item.shape[place] for place in kept),
        batch_axis=axis,
        note=f"-1 varies: {varying}" if varying else "",
    )


def _axes(path: Path, signature: OnnxSignature) -> _Axes:
    """Find the axis that counts samples: by trying, by a size that all share, or by the name of a dimension."""
    tensors = signature.tensors
    if not signature.why_no_batch:
        return _tried(path, tensors)
    if named := _batch_in(_shared(tensors)):  # behind a fixed length, as of [10, batch, 8]
        return _by_name(named, tensors, signature.why_no_batch)
    sizes = {item.shape[0] if item.shape else None for item in signature.inputs}
    size = sizes.pop() if len(sizes) == 1 else None
    if size is not None and size > 0:
        axes = {item.name: 0 if item.shape and item.shape[0] == size else _NONE for item in tensors}
        shared = _NONE not in axes.values()
        if size == 1 or shared:
            reason = f"the model is fixed to a batch of {size}"
            doubt = (
                "" if size == 1 else f"batch: the first dimension of every tensor is {size}, taken for {size} samples"
            )
            return _Axes(of=axes, batches=False, reason=reason, doubt=doubt)
    symbol = _counting(signature)
    if symbol and size != 0:
        return _by_name(symbol, tensors, signature.why_no_batch)
    if any(item.shape is None for item in tensors) and all(item.shape is None or item.shape for item in tensors):
        doubt = "batch: taken to be the first axis of every tensor, as the file does not say all dimensions"
        return _Axes(of={item.name: 0 for item in tensors}, batches=False, reason=signature.why_no_batch, doubt=doubt)
    doubt = "batch: no axis seems to count samples (batch_axis = -1): one sample is the whole of every tensor"
    return _Axes(of={item.name: _NONE for item in tensors}, batches=False, reason=signature.why_no_batch, doubt=doubt)


def _by_name(symbol: str, tensors: tuple[OnnxTensor, ...], reason: str) -> _Axes:
    axes = {item.name: item.symbols.index(symbol) if symbol in item.symbols else _NONE for item in tensors}
    doubt = f"batch: the dimension '{symbol}' was taken for the one that counts samples (batch_axis)"
    return _Axes(of=axes, batches=False, reason=reason, doubt=doubt)


def _counting(signature: OnnxSignature) -> str:
    """Return the name of the dimension that seems to count samples: the first input's first, or one that all have."""
    first = next((item.symbols[0] for item in signature.inputs if item.symbols and item.symbols[0]), "")
    return first or next(iter(_shared(signature.tensors)), "")


def _shared(tensors: tuple[OnnxTensor, ...]) -> tuple[str, ...]:
    """Return the names of dimensions that every tensor has, in the first one's order."""
    return tuple(name for name in tensors[0].symbols if name and all(name in item.symbols for item in tensors))


def _batch_in(names: tuple[str, ...]) -> str:
    return next((name for name in names if "batch" in name.lower()), "")


def _tried(path: Path, tensors: tuple[OnnxTensor, ...]) -> _Axes:
    """Decide where the first dimension of every tensor varies: it may be a batch, or a length."""
    verdict = batchable.batches(path)
    first = {item.name: 0 for item in tensors}
    if verdict.batches:
        return _Axes(of=first, batches=True, reason=verdict.reason)
    if not verdict.tried:
        doubt = "batch: the first axis was taken for the one that counts samples, untried"
        return _Axes(of=first, batches=True, reason=verdict.reason, doubt=doubt)
    symbols = {item.symbols[0] for item in tensors if item.symbols}
    named = _batch_in(_shared(tensors))
    if named and symbols != {named}:  # as of [sequence, batch, 8]
        return _by_name(named, tensors, verdict.reason)
    if len(symbols) == 1:
        doubt = "batch: samples depend on each other, so each is run by itself; batch_axis = -1 if the axis is a length"
        return _Axes(of=first, batches=False, reason=verdict.reason, doubt=doubt)
    doubt = "batch: the first dimensions have different names, so that one sample is the whole of every tensor"
    return _Axes(of={item.name: _NONE for item in tensors}, batches=False, reason=verdict.reason, doubt=doubt)
