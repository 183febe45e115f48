"""What a configuration says on its own: names, tensors, labels, instances, parameters."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from repo_builder.core import environment
from repo_builder.repository import protobuf
from repo_builder.repository.checks.findings import Finding, error, info, warning
from repo_builder.repository.checks.folder import ModelFolder
from repo_builder.repository.checks.target import Target, newer_fields
from repo_builder.repository.spec import BACKENDS

_EMBEDDED = ("onnxruntime", "python", "tensorrt")  # the backends of the embedded server
_AGENTS = ("checksum",)  # the repository agents of Triton's image; the embedded server has none
_COMPLETED = ("onnxruntime", "tensorrt", "tensorflow", "openvino")  # backends that fill in tensors from the model file


def check(folder: ModelFolder, target: Target) -> Iterator[Finding]:
    """Check a configuration without looking at the model file."""
    where, config = folder.config_path, folder.config
    if config.name != folder.name:
        yield error(where, f"name is '{config.name}' and the folder '{folder.name}'", "make both the same")
    if not folder.ensemble and not re.fullmatch(r"[\w.:+@-]+", folder.name):
        report = error if config.backend == "python" else warning
        hint = "use letters, digits, '-', '_' and '.'"
        yield report(folder.name, "has a name that stops Triton's Python backend, which runs it through a shell", hint)
    yield from newer_fields(where, folder.written, target)
    yield from _tensors(folder)
    yield from _labels(folder)
    yield from _instances(folder)
    yield from _runtime(folder, target)
    if config.response_cache.enable and config.model_transaction_policy.decoupled:
        yield error(where, "the response cache does not serve decoupled models", "leave one of them out")


def _tensors(folder: ModelFolder) -> Iterator[Finding]:
    config = folder.config
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for name, count in Counter(item.name for item in tensors).items():
            if count > 1:
                yield warning(folder.config_path, f"{kind} '{name}' is there {count} times")
        if not tensors and config.backend not in _COMPLETED:
            report = info if config.backend == "python" else warning
            yield report(
                folder.config_path, f"names no {kind}", "only a backend that completes configurations takes that"
            )
        for place, tensor in enumerate(tensors):
            yield from _tensor(folder, f"{kind} '{tensor.name}'" if tensor.name else f"{kind} {place}", tensor)


def _tensor(folder: ModelFolder, what: str, tensor: Any) -> Iterator[Finding]:  # noqa: ANN401 - a message
    where, config = folder.config_path, folder.config
    if not tensor.name:
        yield error(where, f"{what} has no name")
    left_out = info if folder.completes else error
    told = ", which only a backend that completes configurations takes" if folder.completes else ""
    if protobuf.type_name(tensor.data_type) == "TYPE_INVALID":
        yield left_out(where, f"{what} has no data_type{told}")
    if not tensor.dims:
        yield left_out(where, f"{what} has no dims{told}", "one number is dims: [ 1 ]")
    shape = tensor.reshape.shape if tensor.HasField("reshape") else []
    for size in (*tensor.dims, *shape):
        if size < 1 and size != -1:
            yield error(where, f"{what} has a dimension of {size}", "a dimension is at least 1, or -1 where it varies")
    if tensor.HasField("reshape"):
        if not shape and not config.max_batch_size:
            yield error(where, f"{what} is reshaped to no dimensions, and the model does not batch", "use dims: [ 1 ]")
        elif not _same_elements(tensor.dims, shape):
            yield error(where, f"{what} has dims {list(tensor.dims)} and is reshaped to {list(shape)}, another size")
    if config.backend != "tensorrt" and (tensor.is_shape_tensor or tensor.is_non_linear_format_io):
        yield error(where, f"{what} is a kind of tensor that only the tensorrt backend has")
    if getattr(tensor, "format", 0) and len(tensor.dims) != 3:
        yield error(where, f"{what} has an image format and {len(tensor.dims)} dims", "image formats go with 3 dims")


def _same_elements(dims: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether two shapes have as many elements between the dimensions that vary."""

    def parts(sizes: Sequence[int]) -> list[int]:
        found = [1]
        for size in sizes:
            if size == -1:
                found.append(1)
            else:
                found[-1] *= size
        return found

    return parts(dims) == parts(shape)


def _labels(folder: ModelFolder) -> Iterator[Finding]:
    for output in folder.config.output:
        if not output.label_filename:
            continue
        file, where = folder.path / output.label_filename, f"{folder.name}/{output.label_filename}"
        if not file.is_file():
            yield error(where, f"is missing, and output '{output.name}' names it")
            continue
        yield from _names(where, output, file.read_text(encoding="utf-8", errors="replace").split("\n"))


def _names(where: str, output: Any, lines: list[str]) -> Iterator[Finding]:  # noqa: ANN401 - a ModelOutput
    """Compare a label file with its output. Triton takes any: a class without a label has none, more are not used."""
    while lines and not lines[-1].strip():
        lines.pop()
    elements = math.prod(output.dims)
    if -1 not in output.dims and output.dims and elements != len(lines):
        yield warning(
            where,
            f"has {len(lines)} labels, and output '{output.name}' has {elements} elements",
            "one line an element, in their order",
        )
    if not all(line.strip() for line in lines):
        yield warning(where, f"line {[bool(line.strip()) for line in lines].index(False) + 1} is empty")


def _instances(folder: ModelFolder) -> Iterator[Finding]:
    where, config = folder.config_path, folder.config
    for place, group in enumerate(config.instance_group):
        what = f"instance_group {group.name!r}" if group.name else f"instance_group {place}"
        kind = type(group).Kind.Name(group.kind)
        if kind in ("KIND_CPU", "KIND_MODEL") and group.gpus:
            yield error(where, f"{what} is {kind} and names GPUs")
        if config.backend == "tensorrt" and kind == "KIND_CPU":
            yield error(where, f"{what} is KIND_CPU, and a TensorRT plan runs on GPUs only", "use KIND_GPU")
        if group.profile and config.backend != "tensorrt":
            yield error(where, f"{what} names profiles, which TensorRT plans only have")
        for profile in group.profile:
            if not profile.isdigit():
                yield error(where, f"{what} names the profile '{profile}'", "profiles are numbers from 0 on")
        if group.count < 0:
            yield warning(where, f"{what} has a count of {group.count}, which Triton takes for the usual")
        if kind == "KIND_GPU" and config.backend != "tensorrt" and not environment.gpus():
            yield warning(where, f"{what} is KIND_GPU, and this machine has no GPU", "serve it where one is")
        if config.optimization.execution_accelerators.gpu_execution_accelerator and kind == "KIND_CPU":
            yield warning(where, f"{what} is KIND_CPU, so the GPU execution accelerators have no effect on it")


def _runtime(folder: ModelFolder, target: Target) -> Iterator[Finding]:
    """Check that the backend, its library and the agents that are named are there."""
    where, config = folder.config_path, folder.config
    runtime, backend = config.runtime, config.backend
    places = (folder.path, *(folder.path / str(version) for version in folder.versions))
    if runtime and ("/" in runtime or runtime in (".", "..")):
        hint = "name a file in the backend's folder, or leave it out"
        yield error(where, f"runtime is '{runtime}', which leaves the backend's folder", hint)
    elif runtime and runtime != f"libtriton_{backend}.so":
        beside = runtime != "model.py" and any((place / runtime).is_file() for place in places)
        report = error if backend == "python" and not beside else warning
        yield report(where, f"runtime is '{runtime}', another library than the backend's own", "leave it out")
    if not folder.ensemble and backend and backend not in _EMBEDDED and target.runtime == "embedded":
        yield error(where, f"backend '{backend}' is not in the embedded server", f"it has {', '.join(_EMBEDDED)}")
    elif not folder.ensemble and backend and backend not in BACKENDS and target.runtime == "container":
        yield warning(where, f"backend '{backend}' is not in Triton's image", "add it to one of your own")
    for agent in config.model_repository_agents.agents:
        if target.runtime == "embedded" or agent.name not in _AGENTS:
            yield error(where, f"the repository agent '{agent.name}' is not there", "leave it out")
