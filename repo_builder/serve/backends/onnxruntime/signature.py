"""A model's inputs and outputs: as the ONNX file declares them, against what config.pbtxt says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import onnxruntime as ort

from repo_builder.core import shapes
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
# a control's values for false and true → its type
_CONTROLS = {"fp32_false_true": "TYPE_FP32", "int32_false_true": "TYPE_INT32", "bool_false_true": "TYPE_BOOL"}
_DEFAULT_MAX_BATCH_SIZE = 4  # the native backend's
_ELSEWHERE = "serve it with native backends: --runtime container, or --backend-directory"


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
        ServeError: One is no tensor, or of a type that Triton or Python does not have.
    """
    for item in tensors:
        if item.type == "tensor(bfloat16)":
            reason = (
                f"the tensor '{item.name}' is BF16, of which Python has no arrays: the embedded server cannot carry it"
            )
            raise ServeError(reason, hint=_ELSEWHERE)
        if item.type not in _TYPES:
            raise ServeError(f"the tensor '{item.name}' is a {item.type}, which Triton cannot carry")
    return [Declared(item.name, _TYPES[item.type], shapes.stated(item.shape)) for item in tensors]


def fed(config: Config) -> list[Config]:
    """Return all that reaches the model's inputs, in the form of ``input``: inputs, sequence controls and states."""
    sequences = config.get("sequence_batching") or {}
    controls = [
        {"name": item["name"], "data_type": _control_type(item), "dims": [1]}
        for item in sequences.get("control_input") or ()
    ]
    states = [{**item, "name": item["input_name"]} for item in sequences.get("state") or ()]
    return [*config["input"], *controls, *states]


def given_back(config: Config) -> list[Config]:
    """Return all that is taken of the model's outputs, in the form of ``output``: outputs and states."""
    states = (config.get("sequence_batching") or {}).get("state") or ()
    return [*config["output"], *({**item, "name": item["output_name"]} for item in states)]


def check(
    configured: Sequence[Config],
    model: Sequence[Declared],
    *,
    batched: bool,
    side: str,
    optional: Sequence[Declared] = (),
) -> None:
    """Compare the inputs or outputs of config.pbtxt with the model's; of outputs, some may be left out.

    Args:
        configured: What config.pbtxt says.
        model: The model's.
        batched: Whether config.pbtxt leaves out a first dimension, which counts samples.
        side: ``input`` or ``output``.
        optional: Inputs of the model that have a value of their own where none is given.

    Raises:
        ServeError: They differ.
    """
    left = {item.name: item for item in (*model, *optional)}
    for item in configured:
        name = item["name"]
        if name not in left:
            there = ", ".join(sorted(entry.name for entry in (*model, *optional)))
            raise ServeError(f"the model has no {side} '{name}' (it has {there})")
        # a value of the model's own is one for all samples
        _check_one(item, left.pop(name), batched=batched, side=side)
    missing = sorted(set(left) - {item.name for item in optional})
    if side == "input" and missing:
        raise ServeError(f"config.pbtxt leaves out the input {', '.join(missing)} of the model")


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
    sequences = {item["name"] for item in fed({**config, "input": []})}
    states = {item["name"] for item in given_back({**config, "output": []})}
    config["input"] = config["input"] or [
        _entry(item, batched=batched) for item in inputs if item.name not in sequences
    ]
    config["output"] = config["output"] or [
        _entry(item, batched=batched) for item in outputs if item.name not in states
    ]


def is_scalar(item: Config, model: Declared) -> bool:
    """Whether a tensor has no dimensions in the model and is one of a single element for clients, as Triton has it."""
    return not model.dims and model_dims(item) == [1]


def model_dims(item: Config) -> list[int]:
    """Return the dims with which a tensor of config.pbtxt reaches the model."""
    return [int(size) for size in (item["reshape"].get("shape", []) if item.get("reshape") else item["dims"])]


def _check_one(item: Config, model: Declared, *, batched: bool, side: str) -> None:
    what = f"{side} '{model.name}'"
    if item["data_type"] != model.data_type:
        raise ServeError(f"the {what} is {item['data_type']} in config.pbtxt and {model.data_type} in the model")
    if item.get("allow_ragged_batch"):
        reason = f"the {what} allows ragged batches, which the embedded server cannot form"
        raise ServeError(reason, hint=_ELSEWHERE)
    if batched and model.dims[:1] != (-1,):
        raise ServeError(f"the {what} has the fixed shape {list(model.dims)}", hint="set max_batch_size: 0")
    if not batched and is_scalar(item, model):
        return
    dims = model_dims(item)
    whole = [-1, *dims] if batched else dims
    if not model.dims or shapes.unlike(dims, model.dims, batched=batched, exact=False):
        raise ServeError(f"the {what} has the shape {whole} in config.pbtxt and {list(model.dims)} in the model")


def _control_type(item: Config) -> str:
    """Return the type of a sequence control."""
    for control in item.get("control") or ():
        for key, data_type in _CONTROLS.items():
            if control.get(key):
                return data_type
        if control.get("data_type") not in (None, "TYPE_INVALID"):
            return str(control["data_type"])
    return "TYPE_INVALID"


def _entry(item: Declared, *, batched: bool) -> dict[str, Any]:
    dims = list(item.dims[1:] if batched else item.dims)
    entry = {"name": item.name, "data_type": item.data_type, "dims": [size or -1 for size in dims] or [1]}
    return {**entry, "reshape": {"shape": []}} if batched and not dims else entry
