"""Whether a configuration and the model file of each version mean the same tensors.

The rules are those of Triton's own backends. onnxruntime: a model batches only where every first dimension varies; an
input's dimension may be fixed where the model's varies and the reverse, an output's may not; every input must be
named, outputs may be left out. tensorrt: the optimization profiles must hold what requests may bring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from repo_builder import artifacts, environment, files
from repo_builder.artifacts import MANIFEST, EngineArtifact
from repo_builder.errors import RepoBuilderError
from repo_builder.repository import onnx_file, protobuf
from repo_builder.repository.checks.findings import Finding, error, info, warning
from repo_builder.repository.checks.folder import ModelFolder
from repo_builder.repository.onnx_file import OnnxSignature, OnnxTensor
from repo_builder.tensors import ShapeProfile

Profile = dict[str, dict[str, list[int]]]  # input name → {"min", "opt", "max"}: whole shapes


def check(folder: ModelFolder) -> Iterator[Finding]:
    """Compare the configuration with the model file of every version that is served."""
    for version in folder.served:
        if not folder.filename or not folder.file(version).exists() or not folder.file(version).stat().st_size:
            continue  # has its own finding
        engine, findings = _engine(folder, version)
        yield from findings
        if folder.config.backend == "onnxruntime":
            yield from _onnx(folder, version)
        elif folder.config.backend == "tensorrt":
            if engine is not None:
                yield from _plan(folder, version, engine)
            elif not findings:
                where = f"{folder.name}/{version}/{folder.filename}"
                yield info(where, "has no manifest.json beside it: only its engine can tell what it is for")


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
    recorded = engine.files.get(file.name)
    if recorded and file.is_file() and files.sha256_of(file) != recorded:
        return None, [
            error(where, f"is about another {file.name} (its sha256 differs)", "place the model again, or remove it")
        ]
    return engine, []


# --- ONNX -----------------------------------------------------------------------------------------------------------


def _onnx(folder: ModelFolder, version: int) -> Iterator[Finding]:
    where = f"{folder.name}/{version}/{folder.filename}"
    try:
        signature = onnx_file.read(folder.file(version))
    except RepoBuilderError as reason:
        yield error(where, reason.message, reason.hint or "")
        return
    place = folder.file(version) if folder.file(version).is_dir() else folder.file(version).parent
    for name in sorted(signature.external):
        if not (place / name).is_file():
            yield error(where, f"keeps weights in '{name}', and there is no such file beside it")
    config = folder.config
    if not config.max_batch_size and onnx_file.batching(signature, None)[0]:
        yield info(folder.config_path, "max_batch_size is 0, and the model could batch")
    yield from _inputs(folder, signature, where)
    known = {item.name: item for item in signature.outputs}
    for output in config.output:
        if output.name in known:
            yield from _tensor(folder, "output", output, known[output.name])
        else:
            yield error(folder.config_path, f"output '{output.name}' is not in {where}", _there_are(known))


def _inputs(folder: ModelFolder, signature: OnnxSignature, where: str) -> Iterator[Finding]:
    config = folder.config
    known = {item.name: item for item in signature.inputs}
    given = {item.name for item in config.input} | {item.name for item in config.sequence_batching.control_input}
    given |= {item.input_name for item in config.sequence_batching.state}
    given |= {name for item in config.batch_input for name in item.target_name}
    for tensor in config.input:
        if tensor.name in known:
            yield from _tensor(folder, "input", tensor, known[tensor.name])
        elif tensor.name not in signature.defaults:
            yield error(folder.config_path, f"input '{tensor.name}' is not in {where}", _there_are(known))
    for name in sorted(set(known) - given):
        yield error(folder.config_path, f"does not name the input '{name}' of {where}", "every input must be there")


def _tensor(
    folder: ModelFolder,
    kind: str,
    tensor: Any,  # noqa: ANN401 - a ModelInput or ModelOutput
    model: OnnxTensor,
) -> Iterator[Finding]:
    where, what, largest = folder.config_path, f"{kind} '{tensor.name}'", folder.config.max_batch_size
    given = protobuf.type_name(tensor.data_type)
    if model.dtype is None:
        yield error(where, f"{what} is {model.type} in the model, a type that Triton does not have")
    elif given != model.dtype.config:
        yield error(where, f"{what} is {given}, and {model.dtype.config} in the model")
    odd = not tensor.dims or any(size < 1 and size != -1 for size in tensor.dims)  # has its own finding
    if model.shape is None or odd or getattr(tensor, "allow_ragged_batch", False):
        return
    if largest > 0 and model.shape[:1] != (-1,):
        yield error(
            where,
            f"max_batch_size is {largest}, and {what} has no first dimension that varies in the model"
            f" ({list(model.shape)})",
            "set max_batch_size: 0 and write whole shapes, or export the model with a dynamic batch",
        )
        return
    yield from _dims(where, what, _shape_of(tensor), model, exact=kind == "output", skip=1 if largest > 0 else 0)


def _dims(where: str, what: str, dims: list[int], model: OnnxTensor, *, exact: bool, skip: int) -> Iterator[Finding]:
    """Compare the dimensions of one tensor; ``skip`` leaves the batch out."""
    shape, declared = list((model.shape or ())[skip:]), list((model.declared or model.shape or ())[skip:])
    if not model.shape and all(size == 1 for size in dims):
        return  # one number: it has the shape that the configuration gives it
    named = f"{what} has dims {dims}, and {shape} in the model" + (" behind the batch" if skip else "")
    if len(dims) != len(shape) or any(
        one != other and -1 not in (one, other) for one, other in zip(dims, shape, strict=True)
    ):
        yield error(where, named, f"write dims: {shape or [1]}")
        return
    if exact:
        # What only inference knows may be -1 for ONNX Runtime; what the file says may not.
        sizes = zip(dims, shape, declared, strict=True)
        if any(one not in (found, -1) or (one != found and said != -1) for one, found, said in sizes):
            yield error(where, named, "an output must have the model's dimensions, -1 where they vary")
    elif any(one == -1 != other for one, other in zip(dims, shape, strict=True)):
        yield warning(where, named, "requests of another size would fail")


def _shape_of(tensor: Any) -> list[int]:  # noqa: ANN401 - a ModelInput or ModelOutput
    """Return the shape that the model gets: dims, or what they are reshaped to."""
    return list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)


def _there_are(known: dict[str, OnnxTensor]) -> str:
    return f"there are: {', '.join(known)}"


# --- TensorRT -------------------------------------------------------------------------------------------------------


def _plan(folder: ModelFolder, version: int, engine: EngineArtifact) -> Iterator[Finding]:
    """Compare with what the manifest says of the plan, and the plan with this machine."""
    where, config = folder.config_path, folder.config
    for kind, tensors, known in (("input", config.input, engine.inputs), ("output", config.output, engine.outputs)):
        specs = {item.name: item for item in known}
        for tensor in tensors:
            what = f"{kind} '{tensor.name}'"
            if tensor.name not in specs:
                yield error(where, f"{what} is not in the plan", f"there are: {', '.join(specs)}")
            elif protobuf.type_name(tensor.data_type) != specs[tensor.name].dtype.config:
                given, wanted = protobuf.type_name(tensor.data_type), specs[tensor.name].dtype.config
                yield error(where, f"{what} is {given}, and {wanted} in the plan")
            elif (
                kind == "output" and config.max_batch_size and tuple(tensor.dims) != (specs[tensor.name].shape or (1,))
            ):
                yield error(
                    where, f"{what} has dims {list(tensor.dims)}, and the plan {list(specs[tensor.name].shape)}"
                )
        if tensors and kind == "input":
            for name in sorted(set(specs) - {item.name for item in tensors}):
                yield error(where, f"does not name the plan's input '{name}'")
    yield from _profiles(folder, engine)
    yield from _machine(folder, version, engine)


def _profiles(folder: ModelFolder, engine: EngineArtifact) -> Iterator[Finding]:
    where, config = folder.config_path, folder.config
    profiles: Sequence[Profile] = engine.details.get("profiles") or []
    try:
        for bound in (bound for profile in profiles for bound in profile.values()):
            ShapeProfile(min=tuple(bound["min"]), opt=tuple(bound["opt"]), max=tuple(bound["max"]))
    except (AttributeError, KeyError, TypeError, ValueError) as reason:
        manifest = f"{folder.name}/{engine.path.name}/{MANIFEST}"
        yield error(manifest, f"the profiles in it are damaged ({reason!r})", _again(folder))
        return
    used = sorted({int(item) for group in config.instance_group for item in group.profile if item.isdigit()}) or [0]
    for number in used:
        if profiles and number >= len(profiles):
            yield error(where, f"instance_group names profile {number}, and the plan has {len(profiles)}")
    chosen = [profiles[number] for number in used if number < len(profiles)]
    if not chosen:
        return
    yield from _batches(folder, chosen)
    for tensor in config.input:
        bounds = [profile[tensor.name] for profile in chosen if tensor.name in profile]
        dims = _shape_of(tensor)
        if bounds and not any(_within(dims, bound, 1 if config.max_batch_size else 0) for bound in bounds):
            ranges = ", ".join(f"{bound['min']} to {bound['max']}" for bound in bounds)
            yield error(
                where, f"input '{tensor.name}' has dims {dims}, and the plan's profiles take {ranges}", _again(folder)
            )


def _batches(folder: ModelFolder, profiles: Sequence[Profile]) -> Iterator[Finding]:
    """Check that the profiles in use hold every batch that Triton may form."""
    where, largest = folder.config_path, folder.config.max_batch_size
    if not largest:
        return
    ends = max(min(bound["max"][0] for bound in profile.values()) for profile in profiles)
    begins = min(max(bound["min"][0] for bound in profile.values()) for profile in profiles)
    if ends < largest:
        yield error(
            where,
            f"max_batch_size is {largest}, and the plan's profiles end at {ends}",
            f"lower it to {ends}, or raise max_batch in the recipe's profiles and {_again(folder)}",
        )
    if begins > 1:
        yield warning(where, f"the plan's profiles begin at a batch of {begins}", "smaller ones would fail")


def _within(dims: Sequence[int], bound: dict[str, list[int]], skip: int) -> bool:
    low, high = bound["min"][skip:], bound["max"][skip:]
    return len(dims) == len(low) and all(
        size == -1 or least <= size <= most for size, least, most in zip(dims, low, high, strict=True)
    )


def _again(folder: ModelFolder) -> str:
    return f"compile it again: repo-builder compile build/{folder.name}"


def _machine(folder: ModelFolder, version: int, engine: EngineArtifact) -> Iterator[Finding]:
    """Compare a plan with the GPUs and the TensorRT of this machine; one without a GPU cannot tell."""
    where, here = f"{folder.name}/{version}/{folder.filename}", environment.gpus()
    if not here:
        return
    names = ", ".join(sorted({f"{gpu.name} ({gpu.compute_capability})" for gpu in here}))
    made_for, capability = engine.details.get("gpu"), engine.details.get("compute_capability")
    if capability and all(gpu.compute_capability != capability for gpu in here):
        yield error(where, f"was built for {made_for} ({capability}), and here is {names}", _again(folder))
    elif made_for and all(gpu.name != made_for for gpu in here):
        yield error(where, f"was tuned for {made_for}, and here is {names}", _again(folder))
    built, installed = engine.details.get("tensorrt_version"), environment.version("tensorrt")
    if built and installed and built != installed:
        yield error(where, f"was built by TensorRT {built}, and {installed} is installed here", _again(folder))
