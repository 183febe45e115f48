"""From an ONNX file to a serialized TensorRT plan."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorrt as trt

from repo_builder.compile.tensorrt.graph import GraphPrecisions
from repo_builder.compile.tensorrt.log import Log, RateLimited, Say, monitor
from repo_builder.compile.tensorrt.versions import TACTIC_SOURCES, Dialect, dialect, strongly_typed
from repo_builder.core import files
from repo_builder.core.errors import CompileError
from repo_builder.core.profiles import Profile

_DIGEST = hashlib.sha256().digest_size
_KINDS = {"fp16": "HALF", "fp32": "FLOAT"}
# Layers that compute nothing, or whose type the graph fixes otherwise: a precision on them is refused or means nothing.
_UNCONSTRAINED = ("CONSTANT", "QUANTIZE", "DEQUANTIZE", "IDENTITY", "CAST", "SHAPE")


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What is to be built.

    Attributes:
        model: The ONNX file.
        precisions: What its graph says about precision.
        profiles: Optimization profiles; at least one.
        workspace_bytes: Limit of the builder's scratch memory.
        optimization_level: 0-5, or None for the builder's default.
        threads: Threads that the builder may use, or None for its default.
        timing_iterations: How often each tactic is timed for its mean, or None for the builder's default.
        timing_cache: File of measured tactics, read and replaced; None keeps none.
        tf32: Whether fp32 layers may use TF32 tensor cores, as TensorRT does unless told otherwise.
        pinned: ONNX nodes whose layers must run in the precision that the graph gives them. A constraint keeps
            TensorRT from fusing and from choosing, so there is one only where the inspector showed a departure.
    """

    model: Path
    precisions: GraphPrecisions
    profiles: Sequence[Profile]
    workspace_bytes: int
    optimization_level: int | None = None
    threads: int | None = None
    timing_iterations: int | None = None
    timing_cache: Path | None = None
    tf32: bool = True
    pinned: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Built:
    """A plan and how it came about.

    Attributes:
        plan: The serialized engine.
        seconds: Time that parsing and building took.
        flags: Builder flags that were set.
        constraints: Number of layers whose precision was pinned.
        cached_tactics_bytes: Size of the timing cache that was read; 0 where there was none.
        notes: Sentences for the user.
        reused: Whether it was built before; the time is then that of reading it.
    """

    plan: bytes
    seconds: float
    flags: tuple[str, ...]
    constraints: int
    cached_tactics_bytes: int
    notes: tuple[str, ...]
    reused: bool = False


def build(request: BuildRequest, say: Say) -> Built:
    """Build a plan.

    Args:
        request: What is to be built.
        say: Takes lines of progress.

    Raises:
        CompileError: There is no usable GPU, the parser refuses the graph, or no implementation meets the constraints.
    """
    started = time.perf_counter()
    speaks = dialect(trt.__version__)
    if request.precisions.has_float8:  # which a builder that chooses types by itself need not take
        speaks = strongly_typed(speaks)
    said = RateLimited(say)
    log = Log(None if speaks.progress_monitor else said)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # pybind11's way to say that TensorRT returned nothing
        raise CompileError(
            f"TensorRT {trt.__version__} makes no builder: {log.last_words()}",
            hint="nvidia-smi must list a GPU, and TensorRT's libraries must be as they were installed",
        ) from error
    if request.threads is not None:
        builder.max_threads = request.threads
    network = builder.create_network(_bits(trt.NetworkDefinitionCreationFlag, speaks.network_flags))
    _parse(network, request.model, log, speaks)
    config = builder.create_builder_config()
    flags = _configure(config, request, speaks, said)
    constraints = _constrain(network, request) if speaks.weakly_typed else 0
    if constraints:
        config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        flags = (*flags, "OBEY_PRECISION_CONSTRAINTS")
    for profile in request.profiles:
        _add_profile(builder, network, config, profile)
    read, notes = _load_cache(config, request.timing_cache)
    if request.optimization_level is not None and not speaks.optimization_level:
        notes += (f"TensorRT {trt.__version__} has no builder optimization level: it is left out",)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise CompileError(
            f"TensorRT {trt.__version__} built no plan: {log.last_words()}",
            where=str(request.model),
            hint="raise compile.tensorrt.workspace_mib, or give the named layer another precision",
        )
    if request.timing_cache is not None:
        measured = bytes(config.get_timing_cache().serialize())
        files.write_bytes(request.timing_cache, hashlib.sha256(measured).digest() + measured)
    return Built(
        plan=bytes(plan),
        seconds=time.perf_counter() - started,
        flags=flags,
        constraints=constraints,
        cached_tactics_bytes=read,
        notes=notes,
    )


def _bits(kind: Any, names: Sequence[str]) -> int:  # noqa: ANN401 - one of tensorrt's enums
    return sum(1 << int(getattr(kind, name)) for name in names)


def _parse(network: Any, model: Path, log: Log, speaks: Dialect) -> None:  # noqa: ANN401
    """Parse the ONNX file into the network.

    Raises:
        CompileError: The parser refuses a node; the node, its operator and the reason are named.
    """
    parser = trt.OnnxParser(network, log)
    if parser.parse(model.read_bytes(), str(model)):
        return
    refusals = [_refusal(parser.get_error(place), model, speaks) for place in range(parser.num_errors)]
    raise CompileError(
        "TensorRT's parser refuses " + "; ".join(refusals or [log.last_words()]),
        where=str(model),
        hint="change that part of the model, or use --target onnxruntime",
    )


def _refusal(error: Any, model: Path, speaks: Dialect) -> str:  # noqa: ANN401 - tensorrt.ParserError
    """Return a parser's error as ``the node '/x' (Op): why``."""
    if speaks.names_refused_node:
        name, operator = error.node_name(), error.node_operator()
    else:
        import onnx

        nodes = onnx.load(str(model), load_external_data=False).graph.node
        known = 0 <= error.node() < len(nodes)
        name, operator = (nodes[error.node()].name, nodes[error.node()].op_type) if known else ("", "")
    place = f"the node '{name}' ({operator})" if operator else "the graph"
    return f"{place}: {error.desc().strip().rstrip('.')}"


def _configure(config: Any, request: BuildRequest, speaks: Dialect, said: Say) -> tuple[str, ...]:  # noqa: ANN401
    """Set everything but profiles and constraints; return the builder flags that are on."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    config.set_tactic_sources(_bits(trt.TacticSource, TACTIC_SOURCES))
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # what the inspector shows is written into the plan
    if speaks.optimization_level and request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
    if request.timing_iterations is not None:
        config.avg_timing_iterations = request.timing_iterations
    if speaks.progress_monitor:
        config.progress_monitor = monitor(said)
    flags: list[str] = []
    if speaks.weakly_typed:
        found = request.precisions
        flags = [name for name, there in (("INT8", found.has_int8), ("FP16", found.has_fp16)) if there]
    for name in flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    if not request.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    return tuple(flags)


def _constrain(network: Any, request: BuildRequest) -> int:  # noqa: ANN401 - tensorrt.INetworkDefinition
    """Pin the layers of the pinned nodes to the type that the graph gives their output; return how many.

    Parsers turn one node into several layers, whose inner tensors the graph does not name: those follow the node.
    """
    precisions, count = request.precisions, 0
    for place in range(network.num_layers):
        layer = network.get_layer(place)
        if layer.type.name in _UNCONSTRAINED:
            continue
        outputs = [layer.get_output(item) for item in range(layer.num_outputs)]
        made_by = (precisions.float_makers.get(item.name) for item in outputs)
        node = next((item for item in made_by if item), layer.name)
        kind = precisions.float_nodes.get(node) if node in request.pinned else None
        if kind is None or any(item.dtype not in (trt.DataType.FLOAT, trt.DataType.HALF) for item in outputs):
            continue
        wanted = getattr(trt.DataType, _KINDS[kind])
        layer.precision = wanted
        for item in range(layer.num_outputs):
            layer.set_output_type(item, wanted)
        count += 1
    return count


def _add_profile(builder: Any, network: Any, config: Any, profile: Profile) -> None:  # noqa: ANN401
    """Add one optimization profile.

    Raises:
        CompileError: The graph's own shapes do not allow it.
    """
    made = builder.create_optimization_profile()
    for place in range(network.num_inputs):
        tensor = network.get_input(place)
        shape = profile[tensor.name]
        for bound in (shape.min, shape.opt, shape.max):
            if any(fixed not in (-1, size) for fixed, size in zip(tensor.shape, bound, strict=True)):
                raise CompileError(
                    f"the graph fixes '{tensor.name}' to {list(tensor.shape)} and a profile asks for {list(bound)}",
                    hint="export the model with a dynamic batch, or give a profile whose batch sizes are all that one",
                )
        made.set_shape(tensor.name, shape.min, shape.opt, shape.max)
    if config.add_optimization_profile(made) < 0:
        raise CompileError(f"TensorRT refuses the profile {profile}")


def _load_cache(config: Any, path: Path | None) -> tuple[int, tuple[str, ...]]:  # noqa: ANN401
    """Give the builder the tactics measured before, or an empty cache to fill; return its size and notes.

    The file has the data's sha256 in front: TensorRT takes damaged data for an empty cache without a word.
    """
    if path is None:
        return 0, ()
    found = path.read_bytes() if path.is_file() else b""
    digest, data = found[:_DIGEST], found[_DIGEST:]
    if found and hashlib.sha256(data).digest() == digest:
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return len(data), ()
    config.set_timing_cache(config.create_timing_cache(b""), False)
    note = f"the timing cache {path} is damaged or not of this GPU and TensorRT; a new one replaces it"
    return 0, (note,) if found else ()
