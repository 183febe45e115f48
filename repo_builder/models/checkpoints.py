"""Checkpoints: tensors by name, read without running code, fitted strictly, written atomically."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from repo_builder.core import files
from repo_builder.core.errors import ModelError, did_you_mean, first_line

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and torch.compile
_COUNTER = "num_batches_tracked"  # unused in evaluation, and often missing
_SHOWN = 4


def load(module: nn.Module, path: Path, *, where: str) -> None:
    """Fill a module with a checkpoint's tensors, cast to the module's dtypes.

    Args:
        module: The network; untouched when the checkpoint does not fit.
        path: A .safetensors file, or what ``torch.save`` wrote of a state dict, bare or under ``state_dict``.
        where: Recipe key or option that named the file.

    Raises:
        ModelError: The file is missing or damaged, would run code, has other tensors than the module, or holds values
            that the module's tensors cannot: none (meta), complex, quantized or sparse ones, NaN, or ones beyond the
            range of their type.
    """
    found = _unwrapped(read(path, where=where), path, where)
    wanted = module.state_dict()
    for name in wanted:
        if name.endswith(_COUNTER):
            found.setdefault(name, wanted[name])
    _compare(found, wanted, path, where)
    module.load_state_dict({name: _cast(tensor, wanted[name], name, path, where) for name, tensor in found.items()})


# What a tensor may be that has no plain values → how it gets some.
_ODD: tuple[tuple[str, Callable[[torch.Tensor], bool], str], ...] = (
    ("is on the meta device: it has a shape and no values", lambda item: item.is_meta, "save the loaded model"),
    ("is sparse", lambda item: item.layout != torch.strided, "save it with .to_dense()"),
    ("is quantized", lambda item: item.is_quantized, "save the float model; precisions are for [quantize] to give"),
    ("is nested", lambda item: item.is_nested, "save plain tensors"),
)


def _cast(tensor: torch.Tensor, wanted: torch.Tensor, name: str, path: Path, where: str) -> torch.Tensor:
    """Return a checkpoint's tensor in the module's dtype, or refuse what would not be the same there."""
    said = f"the tensor '{name}' of {path}"
    for complaint, is_so, hint in _ODD:
        if is_so(tensor):
            raise ModelError(f"{said} {complaint}", where=where, hint=hint)
    if tensor.is_complex() and not wanted.is_complex():
        raise ModelError(f"{said} is complex, the model's is {wanted.dtype}", where=where)
    cast = tensor.to(wanted.dtype)
    if cast.dtype.is_floating_point and not torch.isfinite(cast).all():
        raise ModelError(f"{said} holds NaN or infinite values, or values beyond {cast.dtype}", where=where)
    if not cast.dtype.is_floating_point and not torch.equal(cast.to(tensor.dtype), tensor):
        raise ModelError(f"{said} holds values that are no {cast.dtype}", where=where)
    return cast


def read(path: Path, *, where: str) -> Any:  # noqa: ANN401 - checked by the caller
    """Return what a checkpoint file holds. Nothing in the file is executed.

    Raises:
        ModelError: The file is missing, damaged, or holds more than plain tensors and containers.
    """
    if not path.is_file():
        raise ModelError(f"there is no checkpoint file '{path}'", where=where)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a TorchScript archive is announced, then refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} holds more than plain tensors, and nothing in a checkpoint is executed",
            where=where,
            hint="save torch.save(model.state_dict(), ...) or a .safetensors file",
        ) from error
    except Exception as error:  # an archive, a pickle and tensors: each has exceptions of its own
        raise ModelError(f"{path} is no checkpoint, or is damaged ({first_line(error)[:200]})", where=where) from error


def facts(path: Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file; empty for a file without any."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(path, "pt") as stored:
            return dict(stored.metadata() or {})
    except (OSError, safetensors.SafetensorError):
        return {}


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file atomically; equal arguments give equal bytes.

    Raises:
        OutputError: The file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files.write_bytes(path, _canonical(safetensors.torch.save(plain, metadata=dict(metadata))))


def _canonical(stored: bytes) -> bytes:
    """Return the same .safetensors content with a sorted header: the library's own order changes from run to run."""
    size = int.from_bytes(stored[:8], "little")
    header = json.dumps(json.loads(stored[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format aligns what follows
    return len(header).to_bytes(8, "little") + header + stored[8 + size :]


def _unwrapped(value: Any, path: Path, where: str) -> dict[str, torch.Tensor]:  # noqa: ANN401 - checked here
    for key in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
    if (
        not isinstance(value, Mapping)
        or not value
        or not all(isinstance(item, torch.Tensor) for item in value.values())
    ):
        raise ModelError(
            f"{path} holds no state dict (tensors by name)",
            where=where,
            hint="save torch.save(model.state_dict(), ...) or a .safetensors file",
        )
    tensors = {str(name): tensor for name, tensor in value.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _compare(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], path: Path, where: str) -> None:
    """Refuse tensors that are missing, too many or of another shape, and say which."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    misshaped = [name for name in wanted if name in found and found[name].shape != wanted[name].shape]
    complaints = [
        f"{len(names)} {word} ({_listed(names)})"
        for word, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if misshaped:
        shapes = [f"{name} is {_shape(found[name])}, the model has {_shape(wanted[name])}" for name in misshaped]
        complaints.append(f"{len(misshaped)} of another shape ({_listed(shapes, '; ')})")
    if not complaints:
        return
    if misshaped:
        hint = _width_hint([(found[name], wanted[name]) for name in misshaped])
    elif missing and unexpected:
        hint = f"'{unexpected[0]}': {did_you_mean(unexpected[0], missing)}"
    else:
        hint = "check model.source and model.arguments"
    raise ModelError(f"the tensors of {path} do not fit the model: {', '.join(complaints)}", where=where, hint=hint)


def _width_hint(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> str:
    """Say by how much the checkpoint is wider, where all tensors that differ agree on it."""
    ratios = {found.shape[0] / wanted.shape[0] for found, wanted in pairs if found.ndim and wanted.ndim}
    if len(ratios) == 1 and ratios != {1.0}:
        return f"its layers are {ratios.pop():g} times as wide: check the width in model.arguments"
    return "check model.arguments (width, number of classes)"


def _listed(items: list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more


def _shape(tensor: torch.Tensor) -> str:
    return str(list(tensor.shape))
