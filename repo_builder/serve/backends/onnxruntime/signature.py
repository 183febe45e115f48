"""A model's inputs and outputs: as the ONNX file declares them, against what config.pbtxt says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import onnxruntime as ort

from repo_builder.core.errors import ServeError
from repo_builder.serve.backends.onnxruntime.settings import Config

# ONNX Runtime's element types → config.pbtxt's
_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(double)": "TYPE_FP64",
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
    "tensor(string)": "TYPE_STRING",
    **{f"tensor({kind}{bits})": f"TYPE_{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
_DEFAULT_MAX_BATCH_SIZE = 4  # the native backend's


class Declared(NamedTuple):
    """A tensor of the ONNX file.

    Attributes:
        name: Its name.
        data_type: Its type in config.pbtxt.
        dims: Its whole shape; -1 stands for a size that varies.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]


def declared(tensors: Sequence[ort.NodeArg]) -> list[Declared]:
    """Return a session's inputs or outputs.

    Raises:
        ServeError: One is no tensor, or of a type that Triton does not have.
    """
    for item in tensors:
        if item.type not in _TYPES:
            raise ServeError(f"the tensor '{item.name}' is a {item.type}, which Triton cannot carry")
    return [Declared(item.name, _TYPES[item.type], tuple(map(_size, item.shape))) for item in tensors]


def check(configured: Sequence[Config], model: Sequence[Declared], *, batched: bool, side: str) -> None:
    """Compare the inputs or outputs of config.pbtxt with the model's; of outputs, some may be left out.

    Raises:
        ServeError: They differ.
    """
    left = {item.name: item for item in model}
    for item in configured:
        name = item["name"]
        if name not in left:
            there = ", ".join(sorted(entry.name for entry in model))
            raise ServeError(f"the model has no {side} '{name}' (it has {there})")
        _check_one(item, left.pop(name), batched=batched, side=side)
    if side == "input" and left:
        raise ServeError(f"config.pbtxt leaves out the input {', '.join(sorted(left))} of the model")


def complete(config: dict[str, Any], inputs: Sequence[Declared], outputs: Sequence[Declared]) -> None:
    """Fill in max_batch_size, dynamic batching and absent inputs or outputs, as the native backend does.

    Raises:
        ServeError: The configuration asks for batches that the model cannot take.
    """
    if all(item.dims[:1] == (-1,) for item in (*inputs, *outputs)):
        config["max_batch_size"] = config["max_batch_size"] or _DEFAULT_MAX_BATCH_SIZE
        if config["max_batch_size"] > 1 and "sequence_batching" not in config:
            config.setdefault("dynamic_batching", {})
    elif config["max_batch_size"]:
        raise ServeError(
            f"max_batch_size is {config['max_batch_size']}, but the first dimension of the model's tensors is fixed",
            hint="set max_batch_size: 0",
        )
    batched = config["max_batch_size"] > 0
    config["input"] = config["input"] or [_entry(item, batched=batched) for item in inputs]
    config["output"] = config["output"] or [_entry(item, batched=batched) for item in outputs]


def _check_one(item: Config, model: Declared, *, batched: bool, side: str) -> None:
    what = f"{side} '{model.name}'"
    if item["data_type"] != model.data_type:
        raise ServeError(f"the {what} is {item['data_type']} in config.pbtxt and {model.data_type} in the model")
    if item.get("allow_ragged_batch"):
        raise ServeError(f"the {what} allows ragged batches, which the embedded server cannot form")
    if batched and model.dims[:1] != (-1,):
        raise ServeError(f"the {what} has the fixed shape {list(model.dims)}", hint="set max_batch_size: 0")
    dims = [int(size) for size in (item["reshape"].get("shape", []) if item.get("reshape") else item["dims"])]
    whole = [-1, *dims] if batched else dims
    same_rank = len(whole) == len(model.dims)
    if not same_rank or any(there not in (-1, said) for said, there in zip(whole, model.dims, strict=True)):
        raise ServeError(f"the {what} has the shape {whole} in config.pbtxt and {list(model.dims)} in the model")


def _entry(item: Declared, *, batched: bool) -> dict[str, Any]:
    dims = list(item.dims[1:] if batched else item.dims)
    entry = {"name": item.name, "data_type": item.data_type, "dims": dims or [1]}
    return {**entry, "reshape": {"shape": []}} if batched and not dims else entry


def _size(size: object) -> int:
    return size if isinstance(size, int) and size >= 0 else -1
