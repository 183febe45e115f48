"""What a torch module says of itself: arguments of its forward, layers, sizes of the outer ones.

Where a .npz gives samples of every input it is run on two of them, which tells what it gives.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from repo_builder import models
from repo_builder.core import archive, calling
from repo_builder.core.errors import RecipeError, first_line
from repo_builder.core.recipe import ModelSpec
from repo_builder.core.tensors import Array, DType, TensorSpec
from repo_builder.flows.init.facts import Facts, Tensor
from repo_builder.quantize.rules import WEIGHTED, WEIGHTLESS, Layer

_Known = dict[str, tuple[DType, tuple[int, ...], Array]]  # array of a .npz → its type, its shape, two samples
_AXES = (0, 1)  # that samples may be on; recurrent networks of torch have them on the second unless told otherwise
_ONLY_INPUT = ("x", "X")  # what a .npz may call the array of an only input


def read(source: str, arguments: Mapping[str, Any], data: str | None) -> Facts:
    """Make the module and look at it; shapes of inputs come from a .npz where one is given.

    Raises:
        RecipeError: The function is not there, or takes other arguments.
        ModelError: It returns no module.
        DataError: The .npz is damaged.
    """
    unknown = TensorSpec(name="unknown", dtype=DType.FP32, shape=())
    spec = ModelSpec(source=source, arguments=dict(arguments), inputs=(unknown,), outputs=(unknown,))
    try:
        module = models.create(spec, seed=0)
    except RecipeError as error:
        hint = "give each as --argument KEY=VALUE" if error.where == "model.arguments" else error.hint
        raise RecipeError(error.message, where=error.where, hint=hint) from None
    leaves = [(name, item) for name, item in module.named_modules() if not list(item.children())]
    known = _arrays(data)
    inputs = _inputs(module, leaves, known)
    ran, axis, trouble = _tried(module, inputs, known)
    inputs = tuple(replace(item, batch_axis=axis) for item in inputs)
    outputs = ran or (_output(leaves),)
    undecided = [_doubt("input", item) for item in inputs] + [_doubt("output", item) for item in outputs]
    if not ran:
        why = f"forward does not run on the data ({trouble})" if trouble else "how many forward gives was not tried"
        undecided.append(f"outputs: {why}; list each, in forward's order, under its name")
    undecided.append("checkpoint: your weights, unless the function gives a module that has them")
    return Facts(
        source=source,
        arguments=dict(arguments),
        inputs=inputs,
        outputs=outputs,
        layers=_layers(leaves),
        batches=not axis,
        batch_reason="Triton puts requests together on the first axis alone"
        if axis
        else "samples of a torch module are on its first axis; build tries whether they may run together",
        found=(
            f"inputs: forward takes {', '.join(item.name for item in inputs)}",
            *((f"outputs: forward gives {', '.join(str(item.spec()) for item in ran)}",) if ran else ()),
            *((f"batch: two samples give together what each gives alone on axis {axis} (batch_axis)",) if axis else ()),
        ),
        undecided=tuple(item for item in undecided if item),
    )


def _layers(leaves: list[tuple[str, Any]]) -> tuple[Layer, ...]:
    known = WEIGHTED | WEIGHTLESS
    return tuple((name, type(item).__name__) for name, item in leaves if type(item).__name__ in known)


def _doubt(what: str, item: Tensor) -> str:
    if item.shape is None:
        return f"shape of {what} '{item.name}': its dimensions without the batch"
    return f"{what} '{item.name}': {list(item.shape)} is a guess, {item.note}" if item.note else ""


def _tried(module: Any, inputs: tuple[Tensor, ...], known: _Known) -> tuple[tuple[Tensor, ...], int, str]:  # noqa: ANN401
    """Return what a module gives on two samples and the axis that counts them, or nothing and why."""
    feeds = [_key(item.name, inputs, known) for item in inputs]
    if any(key is None for key in feeds):
        return (), 0, ""
    arrays = [
        known[key][2].astype(item.dtype.numpy) for key, item in zip(feeds, inputs, strict=True) if key is not None
    ]
    axis = next((item for item in _AXES if _apart(module, arrays, item)), 0)
    try:
        named = _given(module, arrays, axis)
    except Exception as error:  # whatever a user's forward raises
        return (), 0, first_line(error)
    found = tuple(
        Tensor(
            name=name,
            dtype=DType.of_numpy(item.dtype),
            shape=(*item.shape[:axis], *item.shape[axis + 1 :]),
            batch_axis=axis,
        )
        for name, item in named.items()
    )
    return found, axis, ""


def _given(module: Any, arrays: Sequence[Array], axis: int) -> dict[str, Array]:  # noqa: ANN401 - torch's
    """Return what a module gives on samples, which the arrays have on their first axis and it wants on another."""
    import torch

    with torch.inference_mode():
        result = module.eval()(*(torch.from_numpy(np.moveaxis(item, 0, axis).copy()) for item in arrays))
    values = [item.numpy() for item in calling.outputs_of(result)]
    names = list(result) if isinstance(result, Mapping) and len(result) == len(values) else []
    if not names:
        names = ["output"] if len(values) == 1 else [f"output_{place}" for place in range(len(values))]
    return dict(zip(names, values, strict=True))


def _apart(module: Any, arrays: Sequence[Array], axis: int) -> bool:  # noqa: ANN401 - torch's
    """Whether samples on an axis give the same together as each alone."""
    if any(item.ndim <= axis or len(item) < 2 for item in arrays):
        return False
    try:
        together = _given(module, arrays, axis)
        alone = [_given(module, [item[place : place + 1] for item in arrays], axis) for place in range(2)]
        pairs = [(value, np.concatenate([item[name] for item in alone], axis)) for name, value in together.items()]
    except Exception:
        return False
    return all(one.shape == other.shape and np.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in pairs)


def _key(name: str, inputs: Sequence[Any], known: _Known) -> str | None:
    """Return the array that holds an input's samples."""
    keys = (name, *_ONLY_INPUT) if len(inputs) == 1 else (name,)
    return next((item for item in keys if item in known), None)


def _inputs(module: Any, leaves: list[tuple[str, Any]], known: _Known) -> tuple[Tensor, ...]:  # noqa: ANN401 - torch's
    """Return an input for each argument that forward must be given."""
    names = ["input"]
    with suppress(TypeError, ValueError):
        given = inspect.signature(module.forward).parameters.values()
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
        names = [item.name for item in given if item.kind in kinds and item.default is item.empty] or names
    found = []
    for name in names:
        key = _key(name, names, known)
        if key is not None:
            found.append(Tensor(name=name, dtype=_taken(known[key][0], leaves), shape=known[key][1]))
        else:
            found.append(_guess(name, leaves if len(names) == 1 else []))
    return tuple(found)


def _arrays(data: str | None) -> _Known:
    """Return type, shape without the samples' axis, and two samples of a .npz file's arrays."""
    if data is None or Path(data).suffix.lower() != ".npz" or not Path(data).is_file():
        return {}
    found = {}
    with archive.opened(Path(data)) as stored:
        for name in stored.names:
            array = stored.read(name)
            found[name] = (DType.of_numpy(array.dtype), tuple(array.shape[1:]), array[:2] if array.ndim else array)
    return found


def _taken(dtype: DType, leaves: list[tuple[str, Any]]) -> DType:
    """Return what a module takes of an array's type: numbers become fp32, unless they are looked up."""
    if leaves and type(leaves[0][1]).__name__ == "Embedding":
        return DType.INT64
    return DType.FP32 if dtype in (DType.FP64, DType.FP16, DType.UINT8) else dtype


def _guess(name: str, leaves: list[tuple[str, Any]]) -> Tensor:
    """Return an input by the module's first layer."""
    kind = type(leaves[0][1]).__name__ if leaves else ""
    if kind == "Linear":
        size = int(leaves[0][1].in_features)
        return Tensor(
            name=name, dtype=DType.FP32, shape=(size,), note=f"what the first layer, {leaves[0][0] or kind}, takes"
        )
    if kind == "Embedding":
        return Tensor(name=name, dtype=DType.INT64, shape=(-1,), note="as the first layer looks numbers up")
    return Tensor(name=name, dtype=DType.FP32, shape=None)


def _output(leaves: list[tuple[str, Any]]) -> Tensor:
    """Return an output by the module's last layer that has a weight."""
    last = next((item for item in reversed(leaves) if type(item[1]).__name__ in WEIGHTED), None)
    if last is None or type(last[1]).__name__ != "Linear":
        return Tensor(name="output", dtype=DType.FP32, shape=None)
    size = int(last[1].out_features)
    return Tensor(
        name="output", dtype=DType.FP32, shape=(size,), note=f"what the last layer, {last[0] or 'Linear'}, gives"
    )
