"""A strongly typed TensorRT that builds without a GPU: TensorRT for RTX, compiling ahead of time.

Its plans run on no GPU of a data centre, so it is no target; but it parses, types and compiles as TensorRT 11 does, and
its plan holds the compiled program as text, types and ONNX node names included.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import onnx
import pytest

from repo_builder.compile.tensorrt import graph, versions
from repo_builder.core.profiles import Profile
from repo_builder.export import qdq

_TYPES = {"float": "fp32", "half": "fp16", "int8": "int8", "fp8_e4m3": "fp8", "bfloat16": "bf16"}
_TENSOR = re.compile(r"^  (?:sub_)?tensor=\{.*?\bname=(\"[^\"]*\"|\S+).*?\btype=(\w+)", re.MULTILINE)
_KERNEL = re.compile(r"^  (\w+)=\{ name=(\"[^\"]*\"|\S+)(.*)$", re.MULTILINE)
_MODULES = ("log", "build")
ParsedLayer = tuple[str, str, tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One step of the compiled program.

    Attributes:
        kind: As in ``corrltn`` (a convolution) or ``fully_connected``.
        name: The ONNX node's name where the step is one node.
        reads: Types of its inputs.
        writes: Types of its outputs.
    """

    kind: str
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What became of a graph.

    Attributes:
        network: (layer's type, its name, types of its inputs, types of its outputs, names of its outputs, names of its
            inputs) as parsed.
        kernels: Compute capability → the steps of its program.
    """

    network: tuple[ParsedLayer, ...]
    kernels: Mapping[str, tuple[Kernel, ...]]

    def became(self, node: str, capability: str) -> str:
        """What a node's arithmetic is done in; ``unknown`` where the program does not name the node."""
        found = next((item for item in self.kernels[capability] if item.name == node and len(item.reads) > 1), None)
        if found is None:
            return "unknown"
        first, second = found.reads[:2]
        return first if first == second else f"{second} of {first}"


def program(plan: bytes) -> tuple[Kernel, ...]:
    """Read the program that a plan made ahead of time holds as text."""
    start = plan.find(b"header {\n")
    text = plan[start:].decode("latin1") if start >= 0 else ""
    types = {name.strip('"'): _TYPES.get(kind, kind) for name, kind in _TENSOR.findall(text)}
    found = []
    for kind, name, rest in _KERNEL.findall(text):
        if kind in ("tensor", "sub_tensor", "region"):
            continue
        reads, writes = (_listed(rest, key, types) for key in ("input", "output"))
        found.append(Kernel(kind=kind, name=name.strip('"'), reads=reads, writes=writes))
    return tuple(found)


def _listed(rest: str, key: str, types: Mapping[str, str]) -> tuple[str, ...]:
    match = re.search(rf"[ {{]{key}(?:_args)?=\{{(.*?)\}}", rest)
    return tuple(types.get(name, "?") for name in re.findall(r'"([^"]*)"', match[1])) if match else ()


@pytest.fixture(scope="session")
def rtx() -> Callable[..., Compiled]:
    """Return a function that compiles an ONNX model, with this project's own build code, for several GPUs."""
    trt = pytest.importorskip(
        "tensorrt_rtx_bindings", reason="needs TensorRT for RTX: pip install --group test (CPython 3.10 to 3.12)"
    )
    kept = {name: sys.modules.pop(f"repo_builder.compile.tensorrt.{name}", None) for name in _MODULES}
    bound: dict[str, Any] = {}
    tensorrt, before = _ahead_of_time(trt, bound), sys.modules.get("tensorrt")
    sys.modules["tensorrt"] = tensorrt
    build = importlib.import_module("repo_builder.compile.tensorrt.build")
    for name in ("tensorrt", *(f"repo_builder.compile.tensorrt.{name}" for name in _MODULES)):
        sys.modules.pop(name, None)
    if before is not None:
        sys.modules["tensorrt"] = before
    sys.modules.update({f"repo_builder.compile.tensorrt.{name}": item for name, item in kept.items() if item})
    build.dialect = lambda version: versions.dialect("11.0.0")

    def compiled(model: onnx.ModelProto, path: Any, profile: Profile, *capabilities: str) -> Compiled:
        onnx.save(model, path)
        kernels = {}
        for capability in capabilities:
            bound["capability"] = getattr(trt.ComputeCapability, capability)
            request = build.BuildRequest(
                model=path,
                precisions=graph.read(model, qdq.layer_precisions(model)),
                profiles=[profile],
                workspace_bytes=1 << 30,
            )
            kernels[capability] = program(build.build(request, lambda line: None).plan)
        return Compiled(network=_network(bound["network"]), kernels=kernels)

    return compiled


def _ahead_of_time(trt: Any, bound: dict[str, Any]) -> ModuleType:
    """Return the module with a builder that compiles for the bound compute capability, and keeps the network."""

    class Builder:
        def __init__(self, log: Any) -> None:
            self._real = trt.Builder(log)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def create_builder_config(self) -> Any:
            config = self._real.create_builder_config()
            config.num_compute_capabilities = 1
            config.set_compute_capability(bound["capability"], 0)
            return config

        def create_network(self, flags: int) -> Any:
            bound["network"] = self._real.create_network(flags)
            return bound["network"]

    made = ModuleType("tensorrt")
    made.__dict__.update({name: getattr(trt, name) for name in dir(trt) if not name.startswith("__")})
    made.__dict__.update(__version__=trt.__version__, Builder=Builder)
    return made


def _network(network: Any) -> tuple[ParsedLayer, ...]:
    found = []
    for place in range(network.num_layers):
        layer = network.get_layer(place)
        inputs = [layer.get_input(item) for item in range(layer.num_inputs)]
        outputs = [layer.get_output(item) for item in range(layer.num_outputs)]
        types = (tuple(item.dtype.name for item in side if item is not None) for side in (inputs, outputs))
        names = (tuple(item.name for item in side if item is not None) for side in (outputs, inputs))
        found.append((layer.type.name, layer.name, *types, *names))
    return tuple(found)
