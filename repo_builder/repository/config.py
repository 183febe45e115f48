"""config.pbtxt: from an engine, and its text; ``from_onnx.py`` makes one for any ONNX file.

The text is rendered from a template for people to read, parsed back through Triton's own ModelConfig protobuf and
compared with the message built straight from the spec, so neither the template nor an odd name can change its meaning.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, Literal

from repo_builder.core import assets
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.errors import RepositoryError
from repo_builder.core.recipe import OnnxRuntimeSpec
from repo_builder.core.samples import NONE
from repo_builder.core.tensors import TensorSpec
from repo_builder.repository.spec import CONFIG, LABELS, Accelerator, EnsembleSpec, ModelConfigSpec

if TYPE_CHECKING:
    import jinja2

__all__ = [
    "CONFIG",
    "IDENTITY",
    "LABELS",
    "Accelerator",
    "ModelConfigSpec",
    "from_engine",
    "parse_text",
    "render",
]

# How the keys of parameters begin that say which build a model is; `perf` reads them in the served configuration.
IDENTITY = "repo_builder_"
# A parameter of Triton's Python backend, which stands in for the native one where Triton is embedded: inputs that
# arrive on the GPU stay there. The native backend reads past it.
_ON_GPU = {"FORCE_CPU_ONLY_INPUT_TENSORS": "no"}


def from_engine(engine: EngineArtifact) -> ModelConfigSpec:
    """Return the configuration of what a compile target made.

    Raises:
        RepositoryError: The recipe asks for what the engine cannot do.
    """
    asked = engine.recipe.repository
    batch = engine.details.max_batch_size
    accelerators = _accelerators(engine)
    on_gpu = engine.target == "tensorrt" or bool(accelerators)
    kind: Literal["cpu", "gpu"] = ("gpu" if on_gpu else "cpu") if asked.instance_kind == "auto" else asked.instance_kind
    inputs, outputs = engine.inputs, engine.outputs
    if not batch:
        inputs, outputs = _whole(engine, inputs), _whole(engine, outputs)
    spec = ModelConfigSpec(
        name=engine.recipe.name,
        backend=engine.details.backend,
        max_batch_size=batch,
        inputs=inputs,
        outputs=outputs,
        labels=_labelled(engine, outputs),
        dynamic_batching=batch > 1,
        preferred_batch_sizes=tuple(size for size in asked.preferred_batch_sizes if size <= batch) if batch > 1 else (),
        max_queue_delay_us=asked.max_queue_delay_us,
        instance_count=asked.instance_count,
        instance_kind=kind,
        profiles=tuple(map(str, range(len(engine.profiles)))) if len(engine.profiles) > 1 else (),
        keep_versions=asked.keep_versions,
        response_cache=asked.response_cache,
        parameters=_parameters(engine),
        accelerators=accelerators,
        notes=(
            f"Written by repo-builder from the recipe '{engine.recipe.name}', and anew by every build of it.",
            *([engine.details.batching] if engine.details.batching else []),
        ),
    )
    return _with_warmup(spec, engine)


def render(spec: ModelConfigSpec) -> str:
    """Return the text of config.pbtxt.

    Raises:
        RepositoryError: The spec makes no sense, or the text does not mean what it says; the field is named.
    """
    from repo_builder.repository import protobuf

    spec.check()
    text = _environment().get_template("config.pbtxt.j2").render(spec=spec, labels_file=LABELS)
    different = protobuf.difference(protobuf.parse(text, where=spec.name), protobuf.build(spec))
    if different:
        raise RepositoryError(f"config.pbtxt would not say what was asked: {different}", where=spec.name)
    return text


def render_ensemble(spec: EnsembleSpec) -> str:
    """Return the text of an ensemble's config.pbtxt.

    Raises:
        RepositoryError: The text does not mean what it says; the field is named.
    """
    from repo_builder.repository import protobuf

    text = _environment().get_template("ensemble.pbtxt.j2").render(spec=spec, labels_file=LABELS)
    different = protobuf.difference(protobuf.parse(text, where=spec.name), protobuf.build_ensemble(spec))
    if different:
        raise RepositoryError(f"config.pbtxt would not say what was asked: {different}", where=spec.name)
    return text


def parse_text(text: str, where: str) -> Any:  # noqa: ANN401 - a ModelConfig message, whose module is slow to import
    """Parse config.pbtxt through Triton's ModelConfig protobuf.

    Args:
        text: The file's content.
        where: What to call it in an error.

    Raises:
        RepositoryError: It is not a ModelConfig; the line and column are named.
    """
    from repo_builder.repository import protobuf

    return protobuf.parse(text, where)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    from repo_builder.repository import protobuf

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(assets.template_folder()),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - protobuf text, escaped by `quote`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = protobuf.quote
    return environment


def rows(engine: EngineArtifact) -> int:
    """Return how many samples a network takes that Triton does not batch, on the first axis; -1 for any number."""
    return _whole(engine, engine.inputs[:1])[0].shape[0]


def _whole(engine: EngineArtifact, tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Put the samples where a tensor counts them, in its shape: -1, or the one number that the engine takes."""
    known: dict[str, tuple[int, ...]] = {}
    fixed: set[int] = set()
    if engine.target == "onnxruntime":
        from repo_builder.core import signatures

        known = {item.name: item.shape for item in signatures.read(engine.model).tensors if item.shape}
    else:
        shapes = [shape for profile in engine.profiles for shape in profile.values()]
        fixed = {size for shape in shapes for size in (shape.min[0], shape.max[0])}
    found = []
    for item in tensors:
        axis, shape = item.batch_axis, list(item.shape)
        if axis != NONE:
            size = fixed.copy().pop() if len(fixed) == 1 else known.get(item.name, (-1,) * (axis + 1))[axis]
            shape.insert(axis, size)
        found.append(dataclasses.replace(item, shape=tuple(shape)))
    return tuple(found)


def _usual_shape(engine: EngineArtifact, tensor: TensorSpec, *, batched: bool) -> tuple[int, ...]:
    """Return the shape that the first profile, of the engine or else of the recipe, is tuned for."""
    for profile in engine.profiles:
        opt = profile[tensor.name].opt
        return opt[1:] if batched else opt
    axis = tensor.batch_axis
    whole = batched or axis == NONE
    inner = tensor.shape if whole else (*tensor.shape[:axis], *tensor.shape[axis + 1 :])
    for named in engine.recipe.compile.tensorrt.profiles[:1]:
        inner = tuple(named.shapes.get(tensor.name, {}).get("opt", inner))
    return inner if whole else (*inner[:axis], max(1, tensor.shape[axis]), *inner[axis:])


def warmup_sizes(engine: EngineArtifact) -> tuple[int, ...]:
    """Return the batch sizes to warm up: the recipe's; else 1, and of a plan the size that each profile is tuned for.

    Batches above 1 stand in nothing but plans unless they are asked for: Triton refuses a model whose warm-up has more
    samples than ``max_batch_size``, so that tools which lower that alone, as Model Analyzer does, would end there.
    """
    asked = engine.recipe.repository.warmup_batch_sizes
    if asked is not None:
        return asked
    inputs = [item.name for item in engine.inputs[:1]]
    return tuple(sorted({1, *(profile[name].opt[0] for profile in engine.profiles for name in inputs)}))


def _with_warmup(spec: ModelConfigSpec, engine: EngineArtifact) -> ModelConfigSpec:
    """Add warm-up, unless an input varies and nothing says what size it usually has."""
    batch = spec.max_batch_size
    sizes = tuple(size for size in warmup_sizes(engine) if size <= max(batch, 1))
    varying = (item for item in spec.inputs if -1 in item.shape)
    shapes = {item.name: _usual_shape(engine, item, batched=bool(batch)) for item in varying}
    unknown = next((name for name, shape in shapes.items() if -1 in shape), None)
    if unknown and sizes:
        note = f"no warm-up: '{unknown}' has dimensions that vary, and no profile of the recipe names a usual size"
        return dataclasses.replace(spec, notes=(*spec.notes, note))
    return dataclasses.replace(spec, warmup_batch_sizes=sizes, warmup_shapes=shapes)


def _labelled(engine: EngineArtifact, outputs: tuple[TensorSpec, ...]) -> str | None:
    """Return the first output that has one element a class, as configured: of several samples Triton makes no rows."""
    classes = len(engine.classes)
    fitting = (
        item.name
        for item, whole in zip(engine.outputs, outputs, strict=True)
        if -1 not in item.shape and math.prod(item.shape) == math.prod(max(1, size) for size in whole.shape) == classes
    )
    return next(fitting, None) if classes else None


def _parameters(engine: EngineArtifact) -> dict[str, str]:
    """Return the backend's parameters, and which build this is; backends read past keys that they do not know."""
    own = _threads(engine.recipe.compile.onnxruntime) if engine.target == "onnxruntime" else _ON_GPU
    return {
        **own,
        f"{IDENTITY}engine_sha256": engine.files.get(engine.model.name, ""),
        f"{IDENTITY}build_key": engine.key,
        f"{IDENTITY}recipe": engine.recipe.name,
    }


def _threads(spec: OnnxRuntimeSpec) -> dict[str, str]:
    counts = {
        "intra_op_thread_count": spec.intra_op_thread_count,
        "inter_op_thread_count": spec.inter_op_thread_count,
    }
    return {key: str(count) for key, count in counts.items() if count}


def _accelerators(engine: EngineArtifact) -> tuple[Accelerator, ...]:
    """Return the accelerators of the recipe, with options that every release of the onnxruntime backend knows."""
    spec = engine.recipe.compile.onnxruntime
    if engine.target != "onnxruntime" or spec.accelerator == "none":
        return ()
    if spec.accelerator == "cuda":
        return (Accelerator(name="cuda"),)
    options = {
        "precision_mode": spec.accelerator_precision.upper(),
        "max_workspace_size_bytes": str(engine.recipe.compile.tensorrt.workspace_mib << 20),
    }
    if spec.engine_cache:
        # Relative, so in the server's working directory: a path in the repository would be another one in a
        # container. The hash keeps engines of an older model from being taken for this one's.
        digest = engine.files.get("model.onnx", engine.key)[:12]
        options["trt_engine_cache_enable"] = "1"
        options["trt_engine_cache_path"] = f"trt-engines-{engine.recipe.name}-{digest}"
    return (Accelerator(name="tensorrt", parameters=options),)
