"""A configuration for any ONNX file: what the file says, what options ask for, and what Triton takes of both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from repo_builder.core import batchable, shapes, signatures
from repo_builder.core.errors import RepositoryError, did_you_mean
from repo_builder.core.recipe import RepositorySpec
from repo_builder.core.signatures import OnnxSignature, OnnxTensor
from repo_builder.core.tensors import TensorSpec
from repo_builder.repository import onnx_parameters
from repo_builder.repository.spec import BACKENDS, ModelConfigSpec


def from_onnx(
    path: Path,
    *,
    name: str | None = None,
    backend: str = "onnxruntime",
    max_batch_size: int | None = None,
    dims: Mapping[str, tuple[int, ...]] | None = None,
    dynamic_batching: bool = True,
    preferred_batch_sizes: tuple[int, ...] = (),
    max_queue_delay_us: int | None = None,
    instance_count: int = 1,
    instance_kind: Literal["cpu", "gpu"] = "cpu",
    warmup_batch_sizes: tuple[int, ...] = (),
    warmup_shapes: Mapping[str, tuple[int, ...]] | None = None,
    response_cache: bool = False,
    parameters: Mapping[str, str] | None = None,
) -> ModelConfigSpec:
    """Return a configuration for an ONNX file.

    The model batches where the first dimension of every input and output varies, which is the rule of Triton's
    onnxruntime backend, and where samples give the same together as alone (``core/batchable.py``).

    Args:
        path: The file.
        name: The model's name; None takes the file's.
        backend: Triton's backend.
        max_batch_size: Largest batch; None decides, 0 turns batching off.
        dims: Tensor name → dimensions, as they stand in config.pbtxt, in place of the file's.
        dynamic_batching: Whether requests may be put together, where the model batches.
        preferred_batch_sizes: Batch sizes that the dynamic batcher tries to reach.
        max_queue_delay_us: How long a request may wait for others, microseconds; None takes the usual.
        instance_count: Model instances.
        instance_kind: ``cpu`` or ``gpu``.
        warmup_batch_sizes: Batch sizes run before the model is ready.
        warmup_shapes: Input name → dimensions during warm-up, for inputs that vary.
        response_cache: Whether Triton may answer from its response cache.
        parameters: Parameters of the backend.

    Raises:
        RepositoryError: The file is no ONNX model, Triton lacks a type of it, or options contradict it.
    """
    signature = signatures.read(path)
    dims, warmup_shapes, parameters = dict(dims or {}), dict(warmup_shapes or {}), dict(parameters or {})
    named = name if name is not None else path.stem
    _refuse_unknown(path, dims, signature.tensors)
    _refuse_unknown(path, warmup_shapes, signature.inputs)
    notes = [_refuse_names(named, backend)] if backend not in BACKENDS else []
    onnx_parameters.refuse(parameters if backend == "onnxruntime" else {})
    batch, together, reason = _batch(path, signature, max_batch_size)
    together &= dynamic_batching and batch > 1
    if not together and (preferred_batch_sizes or max_queue_delay_us is not None):
        option = "--preferred-batch-size" if preferred_batch_sizes else "--max-queue-delay-us"
        why = reason if dynamic_batching else "--no-dynamic-batching is given"
        raise RepositoryError(f"{option} is for dynamic batching, and there is none: {why}", where=named)
    spec = ModelConfigSpec(
        name=named,
        backend=backend,
        max_batch_size=batch,
        inputs=_tensors(path, signature.inputs, dims, batched=batch > 0, exact=False),
        outputs=_tensors(path, signature.outputs, dims, batched=batch > 0, exact=backend == "onnxruntime"),
        dynamic_batching=together,
        preferred_batch_sizes=preferred_batch_sizes,
        max_queue_delay_us=RepositorySpec.max_queue_delay_us if max_queue_delay_us is None else max_queue_delay_us,
        instance_count=instance_count,
        instance_kind=instance_kind,
        warmup_batch_sizes=warmup_batch_sizes,
        warmup_shapes=warmup_shapes,
        response_cache=response_cache,
        parameters=parameters,
        notes=(reason, *filter(None, notes), *_refusal(signature)),
    )
    spec.check()
    return spec


def _batch(path: Path, signature: OnnxSignature, asked: int | None) -> tuple[int, bool, str]:
    """Return max_batch_size, whether requests may be put together, and the sentence that says why."""
    if asked == 0:
        return 0, False, "max_batch_size 0, as asked: the dimensions are whole shapes"
    if asked is not None and (asked < 0 or signature.why_no_batch):
        why = signature.why_no_batch or "it must not be negative"
        raise RepositoryError(f"max_batch_size {asked} is not possible: {why}", where=str(path), hint="leave it out")
    verdict = batchable.batches(path)
    if verdict.batches:
        batch = RepositorySpec.max_batch_size if asked is None else asked
        why = f"the first dimension of every input and output varies, and {verdict.reason}"
        return batch, True, f"max_batch_size {batch}: {why}"
    if asked is None:
        return 0, False, f"max_batch_size 0: {verdict.reason}"
    if verdict.tried:
        return asked, False, f"max_batch_size {asked}, as asked, without dynamic batching: {verdict.reason}"
    return asked, True, f"max_batch_size {asked}, as asked, although {verdict.reason}"


def _tensors(
    path: Path, tensors: Sequence[OnnxTensor], dims: Mapping[str, tuple[int, ...]], *, batched: bool, exact: bool
) -> tuple[TensorSpec, ...]:
    """Return tensors as config.pbtxt names them, with the dims that were asked for held against the model's."""
    for item in tensors:
        given = dims.get(item.name)
        if given is None or item.shape is None:
            continue
        if 0 in item.shape or shapes.unlike(
            given or (() if batched else (1,)), item.shape, batched=batched, exact=exact
        ):
            shape = list(item.shape[1:] if batched else item.shape)
            said = " behind the batch" if batched else ""
            rule = ", and an output must have exactly that" if exact else ""
            raise RepositoryError(
                f"--dims {item.name}:{','.join(map(str, given))} does not go with the model: '{item.name}' is "
                f"{shape}{said}{rule} (-1 varies)",
                where=str(path),
                hint="leave it out, or name a size for a dimension that varies",
            )
    return tuple(item.spec(batched=batched, dims=dims.get(item.name), where=path) for item in tensors)


def _refuse_unknown(path: Path, given: Mapping[str, tuple[int, ...]], known: Sequence[OnnxTensor]) -> None:
    for name in sorted(set(given) - {item.name for item in known}):
        hint = did_you_mean(name, (item.name for item in known))
        raise RepositoryError(f"has no tensor '{name}' there", where=str(path), hint=hint)


def _refuse_names(name: str, backend: str) -> str:
    """Refuse what is no backend's name; one that Triton does not bring is worth a note."""
    for known, platforms in BACKENDS.items():
        if backend in platforms:
            raise RepositoryError(
                f"'{backend}' is a platform, not a backend", where=name, hint=f"use --backend {known}"
            )
    if not re.fullmatch(r"[\w.-]+", backend, re.ASCII) or backend.startswith("."):
        raise RepositoryError(f"'{backend}' cannot be the name of a backend", where=name)
    return f"warning: Triton brings no backend '{backend}' ({did_you_mean(backend, BACKENDS)}); it must be added to it"


def _refusal(signature: OnnxSignature) -> tuple[str, ...]:
    return (f"warning: {signature.refusal}",) if signature.refusal else ()
