"""config.pbtxt: what it says (``ModelConfigSpec``), where that comes from, and its text.

The text is rendered from a template for people to read, parsed back through Triton's own ModelConfig protobuf and
compared with the message built straight from the spec, so neither the template nor an odd name can change its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from repo_builder import assets
from repo_builder.artifacts import EngineArtifact
from repo_builder.errors import RepositoryError
from repo_builder.tensors import TensorSpec

CONFIG = "config.pbtxt"
LABELS = "labels.txt"


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """An execution accelerator of the onnxruntime backend.

    Attributes:
        name: ``cuda`` or ``tensorrt``.
        parameters: Its options, under the backend's names.
    """

    name: str
    parameters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelConfigSpec:
    """What one config.pbtxt says.

    Attributes:
        name: The model's name, which is also its folder's.
        backend: Triton's backend, as in ``onnxruntime``.
        platform: The older way to name the backend; empty leaves it out.
        max_batch_size: Largest batch; 0 where the tensors' shapes are whole ones.
        inputs: Inputs; their shapes leave the batch out unless ``max_batch_size`` is 0.
        outputs: Outputs, likewise.
        labels: The output whose classes labels.txt names, None where there are none.
        dynamic_batching: Whether requests may be put together into one batch.
        preferred_batch_sizes: Batch sizes that the dynamic batcher tries to reach.
        max_queue_delay_us: How long a request may wait for others, microseconds.
        instance_count: Model instances (per GPU where there is one).
        instance_kind: ``cpu`` or ``gpu``.
        profiles: TensorRT optimization profiles of an instance; empty leaves the first.
        warmup_batch_sizes: Batch sizes run before the model is ready.
        warmup_shapes: For warm-up, the sizes of inputs that have dynamic dimensions (1 each where not named).
        keep_versions: Newest versions that are served.
        response_cache: Whether Triton may answer from its response cache.
        parameters: Parameters of the backend.
        accelerators: Execution accelerators on the GPU, in the order they are tried.
    """

    name: str
    backend: str
    platform: str = ""
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: str | None = None
    dynamic_batching: bool = True
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    instance_count: int = 1
    instance_kind: Literal["cpu", "gpu"] = "cpu"
    profiles: tuple[str, ...] = ()
    warmup_batch_sizes: tuple[int, ...] = ()
    warmup_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    keep_versions: int = 1
    response_cache: bool = False
    parameters: dict[str, str] = field(default_factory=dict)
    accelerators: tuple[Accelerator, ...] = ()

    def warmup_shape(self, tensor: TensorSpec) -> tuple[int, ...]:
        """Return the concrete dimensions of an input during warm-up."""
        shape = self.warmup_shapes.get(tensor.name, tensor.shape) or (1,)
        return tuple(1 if size < 0 else size for size in shape)


def from_engine(engine: EngineArtifact) -> ModelConfigSpec:
    """Return the configuration of what a compile target made.

    Raises:
        RepositoryError: The recipe asks for what the engine cannot do.
    """
    recipe = engine.recipe
    asked = recipe.repository
    batch = int(engine.details["max_batch_size"])
    on_gpu = engine.target == "tensorrt" or recipe.compile.onnxruntime.accelerator != "none"
    kind: Literal["cpu", "gpu"] = ("gpu" if on_gpu else "cpu") if asked.instance_kind == "auto" else asked.instance_kind
    profiles = engine.details.get("profiles") or ()
    return ModelConfigSpec(
        name=recipe.name,
        backend=str(engine.details["backend"]),
        max_batch_size=batch,
        inputs=engine.inputs if batch else tuple(_whole(item) for item in engine.inputs),
        outputs=engine.outputs if batch else tuple(_whole(item) for item in engine.outputs),
        labels=_labelled(engine),
        dynamic_batching=batch > 1,
        preferred_batch_sizes=tuple(size for size in asked.preferred_batch_sizes if size <= batch),
        max_queue_delay_us=asked.max_queue_delay_us,
        instance_count=asked.instance_count,
        instance_kind=kind,
        profiles=tuple(str(place) for place in range(len(profiles))) if len(profiles) > 1 else (),
        warmup_batch_sizes=tuple(size for size in asked.warmup_batch_sizes if size <= max(batch, 1)),
        keep_versions=asked.keep_versions,
        response_cache=asked.response_cache,
        parameters=_threads(engine),
    )


def _whole(tensor: TensorSpec) -> TensorSpec:
    """Put the batch in front of a tensor's shape."""
    return TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=(-1, *tensor.shape))


def _labelled(engine: EngineArtifact) -> str | None:
    """Return the first output with one element a class."""
    classes = len(engine.classes)
    return next((item.name for item in engine.outputs if classes and item.shape == (classes,)), None)


def _threads(engine: EngineArtifact) -> dict[str, str]:
    if engine.details["backend"] != "onnxruntime":
        return {}
    spec = engine.recipe.compile.onnxruntime
    counts = {
        "intra_op_thread_count": spec.intra_op_thread_count,
        "inter_op_thread_count": spec.inter_op_thread_count,
    }
    return {key: str(count) for key, count in counts.items() if count}


def render(spec: ModelConfigSpec) -> str:
    """Return the text of config.pbtxt.

    Raises:
        RepositoryError: The text does not mean what the spec says; a field that does is named.
    """
    import jinja2

    from repo_builder.repository import protobuf

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(assets.template_folder()),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - protobuf text, escaped by `quote`
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = protobuf.quote
    text = environment.get_template("config.pbtxt.j2").render(spec=spec, labels_file=LABELS)
    different = protobuf.difference(parse_text(text, where=spec.name), protobuf.build(spec))
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
