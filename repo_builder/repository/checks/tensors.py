"""Whether a configuration and the model file of each version mean the same tensors.

The rules for ONNX are those of Triton's own onnxruntime backend: a model batches only where every first dimension
varies; an input's dimension may be fixed where the model's varies and the reverse, an output's may not; every input
must be named, outputs may be left out. Those for TensorRT stand in ``plans.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from repo_builder.core import artifacts, files, shapes, signatures
from repo_builder.core.artifacts import MANIFEST, EngineArtifact
from repo_builder.core.errors import RepoBuilderError
from repo_builder.core.signatures import OnnxSignature, OnnxTensor
from repo_builder.core.tensors import DType
from repo_builder.repository import protobuf
from repo_builder.repository.checks import onnx_settings as runtime
from repo_builder.repository.checks import plans
from repo_builder.repository.checks.findings import Finding, error, info, warning
from repo_builder.repository.checks.folder import ModelFolder, shape_of
from repo_builder.repository.checks.target import Target, onnx_versions


def check(
    folder: ModelFolder, ask_engine: plans.AskEngine | None, target: Target, *, serving: bool = False
) -> Iterator[Finding]:
    """Compare the configuration with the model file of every version that is served; see ``plans.check``."""
    for version in folder.served:
        if not folder.filename or not folder.file(version).exists() or not folder.file(version).stat().st_size:
            continue  # has its own finding
        engine, findings = _engine(folder, version)
        yield from findings
        if folder.config.backend == "onnxruntime":
            yield from _onnx(folder, version, target)
        elif folder.config.backend == "tensorrt":
            yield from plans.check(folder, version, engine, ask_engine, serving=serving)


def _engine(folder: ModelFolder, version: int) -> tuple[EngineArtifact | None, list[Finding]]:
    """Return what the manifest beside a model file says; None where there is none, or not one for this file."""
    place = folder.path / str(version)
    where = f"{folder.name}/{version}/{MANIFEST}"
    if not (place / MANIFEST).is_file():
        return None, []
    try:
        engine = artifacts.read(EngineArtifact, place)
    except RepoBuilderError as reason:
        return None, [warning(where, f"cannot be understood: {reason.message}", "build the model again")]
    file = folder.file(version)
    if not engine.files:
        message = f"does not say which {file.name} it is about"
        return None, [warning(where, message, "build the model again")]
    if file.is_file() and files.sha256_of(file) not in engine.files.values():
        return None, [
            error(where, f"is about another {file.name} (its sha256 differs)", "place the model again, or remove it")
        ]
    return engine, []


def _onnx(folder: ModelFolder, version: int, target: Target) -> Iterator[Finding]:
    where = f"{folder.name}/{version}/{folder.filename}"
    try:
        signature = signatures.read(folder.file(version))
    except RepoBuilderError as reason:
        yield error(where, reason.message, reason.hint or "")
        return
    place = folder.file(version) if folder.file(version).is_dir() else folder.file(version).parent
    for name in sorted(signature.external):
        if not (place / name).is_file():
            yield error(where, f"keeps weights in '{name}', and there is no such file beside it")
    config = folder.config
    if signature.refusal and not config.model_operations.op_library_filename:
        yield error(where, signature.refusal, "export it for that version, or name model_operations")
        return
    yield from runtime.check(folder, target)
    yield from onnx_versions(where, dict(signature.opsets).get("", 0), signature.ir_version, target)
    if not config.max_batch_size and not signature.why_no_batch:
        yield info(folder.config_path, "max_batch_size is 0, and the model could batch")
    for tensor in signature.tensors:
        if not tensor.config_type and tensor.name not in {item.name for item in (*config.input, *config.output)}:
            yield error(where, f"'{tensor.name}' is {tensor.type}, a type that Triton does not have")
    yield from _inputs(folder, signature, where, target)
    known = {item.name: item for item in signature.outputs}
    for output in config.output:
        if output.name in known:
            yield from _tensor(folder, "output", output, known[output.name], target)
        else:
            yield error(folder.config_path, f"output '{output.name}' is not in {where}", _there_are(known))


def _inputs(folder: ModelFolder, signature: OnnxSignature, where: str, target: Target) -> Iterator[Finding]:
    config = folder.config
    known = {item.name: item for item in signature.inputs}
    takes = {**known, **{item.name: item for item in signature.optional}}
    for tensor in config.input:
        if tensor.name in takes:
            yield from _tensor(folder, "input", tensor, takes[tensor.name], target)
        else:
            yield error(folder.config_path, f"input '{tensor.name}' is not in {where}", _there_are(known))
    for name in sorted(folder.named_inputs - {item.name for item in config.input} - set(takes)):
        yield error(folder.config_path, f"fills the input '{name}', which is not in {where}", _there_are(known))
    for state in config.sequence_batching.state:
        if state.output_name not in {item.name for item in signature.outputs}:
            yield error(folder.config_path, f"keeps the output '{state.output_name}', which is not in {where}")
    for name in sorted(set(known) - folder.named_inputs):
        yield error(folder.config_path, f"does not name the input '{name}' of {where}", "every input must be there")


def _tensor(
    folder: ModelFolder,
    kind: str,
    tensor: Any,  # noqa: ANN401 - a ModelInput or ModelOutput
    model: OnnxTensor,
    target: Target,
) -> Iterator[Finding]:
    where, what, largest = folder.config_path, f"{kind} '{tensor.name}'", folder.config.max_batch_size
    given = protobuf.type_name(tensor.data_type)
    if model.dtype is DType.BF16 and given == model.dtype.config:
        yield from target.only_embedded(where, f"{what} is TYPE_BF16, which numpy does not have")
    elif model.dtype is None:
        yield error(where, f"{what} is {model.type} in the model, a type that Triton does not have")
    elif given != model.dtype.config:
        yield error(where, f"{what} is {given}, and {model.dtype.config} in the model")
    odd = not tensor.dims or any(size < 1 and size != -1 for size in tensor.dims)  # has its own finding
    if getattr(tensor, "allow_ragged_batch", False):
        yield from target.only_embedded(where, f"{what} allows ragged batches")
        return
    if getattr(tensor, "optional", False) and largest > 0:
        yield from target.only_native(where, f"{what} is optional, which needs max_batch_size: 0")
    if model.shape is None or odd:
        return
    if largest > 0 and model.shape[:1] != (-1,):
        yield error(
            where,
            f"max_batch_size is {largest}, and {what} has no first dimension that varies in the model"
            f" ({list(model.shape)})",
            "set max_batch_size: 0 and write whole shapes, or export the model with a dynamic batch",
        )
        return
    dims, batched = shape_of(tensor), largest > 0
    shape = list(model.shape[1:] if batched else model.shape)
    named = f"{what} has dims {dims}, and {shape} in the model" + (" behind the batch" if batched else "")
    if shapes.unlike(dims, model.shape, batched=batched, exact=False):
        yield error(where, named, f"write dims: {shape or [1]}")
    elif 0 in model.shape:
        yield from target.only_native(where, f"{named}: a size of 0, which config.pbtxt cannot say")
    elif kind == "output" and shapes.unlike(dims, model.shape, batched=batched, exact=True):
        yield from target.only_native(where, named, "an output must have the model's dimensions, -1 where they vary")
    elif not model.shape and len(dims) > 1:
        yield from target.only_embedded(where, named, "write dims: [ 1 ]")


def _there_are(known: dict[str, OnnxTensor]) -> str:
    return f"there are: {', '.join(known)}"
