"""What a configuration asks of the onnxruntime backend: threads and other parameters, accelerators, libraries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from repo_builder.core import loading
from repo_builder.core.errors import MissingDependency
from repo_builder.repository import onnx_parameters
from repo_builder.repository.checks.findings import Finding, error, warning
from repo_builder.repository.checks.folder import ModelFolder
from repo_builder.repository.checks.target import Target

# execution accelerator on the CPU → ONNX Runtime's provider
_ON_CPU = {"openvino": "OpenVINOExecutionProvider"}
_ON_GPU = ("cuda", "tensorrt")


def check(folder: ModelFolder, target: Target) -> Iterator[Finding]:
    """Check parameters, accelerators and operator libraries of a model of the onnxruntime backend."""
    where, config = folder.config_path, folder.config
    for key, value in config.parameters.items():
        if message := onnx_parameters.wrong(key, value.string_value):
            # Triton's own backend reads any number, and takes one that makes no sense for none
            lenient = target.runtime == "container" and value.string_value.lstrip("+-").isdecimal()
            yield (warning if lenient else error)(where, message)
    accelerators = config.optimization.execution_accelerators
    for item in accelerators.cpu_execution_accelerator:
        provider = _ON_CPU.get(item.name)
        if provider is None:
            yield error(where, f"cpu_execution_accelerator '{item.name}' is unknown", f"there is {', '.join(_ON_CPU)}")
        elif target.runtime != "container" and provider not in _providers():
            message = f"asks for {provider}, which the ONNX Runtime installed here does not have"
            yield from target.only_embedded(where, message)
    kinds = {type(group).Kind.Name(group.kind) for group in config.instance_group}
    for item in accelerators.gpu_execution_accelerator:
        if item.name not in _ON_GPU and kinds != {"KIND_CPU"}:
            yield error(
                where, f"gpu_execution_accelerator '{item.name}' is not known", f"there are {', '.join(_ON_GPU)}"
            )
    for library in config.model_operations.op_library_filename:
        if not Path(library).is_file():
            report = warning if target.runtime == "container" and library.startswith("/") else error
            yield report(
                where, f"model_operations names '{library}', and there is no such file", "write its whole path"
            )


def _providers() -> tuple[str, ...]:
    """Return the execution providers of the installed ONNX Runtime, all where there is none to ask."""
    try:
        with loading.needs("onnxruntime", what="listing execution providers"):
            from repo_builder.core.sessions import PROVIDERS
    except MissingDependency:
        return tuple(_ON_CPU.values())
    return PROVIDERS
