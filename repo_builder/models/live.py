"""A network that a program holds already, instead of one that a recipe's function makes."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

from repo_builder.core.errors import ModelError, first_line
from repo_builder.core.tensors import Array


def borrowed(module: Any) -> nn.Module:  # noqa: ANN401 - what a caller gave is not known to be a module
    """Return a copy in eval mode on the CPU; the caller's own stays as it is.

    Raises:
        ModelError: It is no ``nn.Module``, or cannot be copied.
    """
    if not isinstance(module, nn.Module):
        hint = "give a torch.nn.Module, or leave model out and name the network in the recipe"
        raise ModelError(f"a {type(module).__name__} is no torch.nn.Module", where="model", hint=hint)
    try:
        return copy.deepcopy(module).cpu().eval()
    except Exception as error:  # whatever the module's own parts raise
        hint = "give the recipe a function that makes it ([model] source) and a checkpoint"
        raise ModelError(f"cannot be copied ({first_line(error)})", where=type(module).__name__, hint=hint) from error


def fingerprint(module: nn.Module, outputs: Mapping[str, Array]) -> str:
    """Return the sha256, in hex, of a network: its parts, their code, its weights, and what it gives.

    Args:
        module: The network.
        outputs: Its outputs on some samples, which also tell of what no weight and no code of its classes shows.
    """
    digest = hashlib.sha256(repr(module).encode())
    for name, value in module.state_dict(keep_vars=False).items():
        if isinstance(value, torch.Tensor):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    for kind in sorted({type(item) for item in module.modules()}, key=lambda item: item.__qualname__):
        for code in _codes(kind):
            digest.update(code.co_code)
            digest.update(
                repr((code.co_names, [item for item in code.co_consts if not isinstance(item, CodeType)])).encode()
            )
    for name, values in sorted(outputs.items()):
        digest.update(f"{name} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _codes(kind: type) -> Iterator[CodeType]:
    """Yield the code of a class's own methods, and of functions in them; torch's version tells of torch's."""
    if kind.__module__.partition(".")[0] == "torch":
        return
    waiting = [item.__code__ for _, item in sorted(vars(kind).items()) if isinstance(item, FunctionType)]
    while waiting:
        code = waiting.pop()
        yield code
        waiting.extend(item for item in code.co_consts if isinstance(item, CodeType))
