"""Recipes: what to build, how to quantize, compile, serve and measure it, as frozen dataclasses.

A recipe is a TOML file whose tables are the classes below. ``parse`` turns a mapping into a ``Recipe``; strictness
about keys and types is ``codec.py``'s, reading files and ``--set`` that of ``recipes/__init__.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from repo_builder.core import codec, recipe_check
from repo_builder.core.tensors import TensorSpec

Precision = Literal["int8", "fp16", "fp32"]
CalibratorName = Literal["max", "percentile", "mse", "entropy"]
Augmentation = Literal["shift", "mirror"]
Target = Literal["auto", "onnxruntime", "tensorrt"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """``[model]``: where the network comes from and what it takes and gives.

    Attributes:
        source: A built-in architecture, ``module:function`` returning a ``torch.nn.Module``, or an .onnx file.
        arguments: Keyword arguments of the architecture.
        checkpoint: Weights (.safetensors, .pt); relative to the recipe; ``package:NAME`` for shipped ones.
        inputs: Named inputs, batch left out.
        outputs: Named outputs, batch left out.
    """

    source: str
    arguments: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """``[data]``: samples and how they are split.

    Attributes:
        source: A built-in data set, a .npz or .csv file, a folder with one sub-folder a class, or ``module:function``.
        arguments: Keyword arguments of the loader. A user's data takes ``split = "test"`` too: all is held out.
        validation: Fraction of the samples (those outside a given test set) that choose the best epoch.
        test: Fraction held out for every reported accuracy; ignored where the data set brings its own test set.
        calibration: Number of samples, stratified by class, that calibrate ranges; drawn from what could train, and at
            most half of it.
    """

    source: str
    arguments: dict[str, Any] = field(default_factory=dict)
    validation: float = 0.1
    test: float = 0.2
    calibration: int = 512


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """``[train]``: how ``repo-builder train`` makes a checkpoint (AdamW, cosine schedule, cross-entropy)."""

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    augment: tuple[Augmentation, ...] = ()


@dataclass(frozen=True, kw_only=True)
class InputQuantizer:
    """How a layer's input range is found: per tensor, symmetric.

    Attributes:
        calibrator: ``max``, ``percentile``, ``mse`` or ``entropy``.
        percentile: Percent of absolute values that are kept, in (0, 100]; for ``percentile`` only.
    """

    calibrator: CalibratorName = "max"
    percentile: float | None = None


@dataclass(frozen=True, kw_only=True)
class WeightQuantizer:
    """How a layer's weight range is found: symmetric, per output channel or per tensor."""

    calibrator: CalibratorName = "max"
    percentile: float | None = None
    per_channel: bool = True


@dataclass(frozen=True, kw_only=True)
class LayerRule:
    """``[[quantize.layers]]``: a precision for the layers it selects; of several that match, the last wins.

    Attributes:
        type: Module type, as in ``Conv2d`` (fnmatch pattern), or None for any.
        name: Qualified module name (fnmatch pattern), as in ``feature_layers.*``, or None for any.
        precision: ``int8``, ``fp16`` or ``fp32``.
        input: Range of the layer's input; int8 only.
        weight: Range of the layer's weight; int8 only.
        num_bits: 8; anything else is refused with the reason.
    """

    type: str | None = None
    name: str | None = None
    precision: Precision
    input: InputQuantizer = field(default_factory=InputQuantizer)
    weight: WeightQuantizer = field(default_factory=WeightQuantizer)
    num_bits: int = 8

    @property
    def selector(self) -> str:
        """What the rule selects, as in ``type=Conv2d``."""
        chosen = [f"{key}={value}" for key, value in (("type", self.type), ("name", self.name)) if value is not None]
        return " ".join(chosen) or "every layer"

    def __str__(self) -> str:
        """Return the rule's selector and precision, as in ``type=Conv2d → int8``."""
        return f"{self.selector} → {self.precision}"


@dataclass(frozen=True, kw_only=True)
class QuantizeSpec:
    """``[quantize]``: the back end and the layer rules. Layers that no rule selects stay fp32."""

    backend: str = "modelopt"
    batch_size: int = 64
    layers: tuple[LayerRule, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """``[export]``: the ONNX that is written. 17 is the newest opset that TensorRT 8.5 parses."""

    opset: int = 17


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeSpec:
    """``[compile.onnxruntime]``: the graph for ONNX Runtime, and its provider on a GPU.

    Attributes:
        first_layer: int8 layers that read a signed input: ``auto`` decides from the CPU's flags, ``int8`` keeps them,
            ``fp32`` leaves them in floating point.
        accelerator: ``none``, or the execution accelerator written to config.pbtxt: ``cuda`` or ``tensorrt``.
        accelerator_precision: Precision mode of the TensorRT accelerator.
        engine_cache: Whether the TensorRT accelerator keeps its engines, in a folder of the server's working directory.
        intra_op_thread_count: Threads inside an operator; 0 leaves it to ONNX Runtime.
        inter_op_thread_count: Threads across operators; 0 leaves it to ONNX Runtime.
    """

    first_layer: Literal["auto", "int8", "fp32"] = "auto"
    accelerator: Literal["none", "cuda", "tensorrt"] = "none"
    accelerator_precision: Literal["fp32", "fp16", "int8"] = "fp32"
    engine_cache: bool = True
    intra_op_thread_count: int = 1
    inter_op_thread_count: int = 1


@dataclass(frozen=True, kw_only=True)
class ProfileSpec:
    """``[[compile.tensorrt.profiles]]``: batch sizes of one optimization profile, and its dynamic dimensions.

    Attributes:
        min_batch: Smallest batch size.
        opt_batch: Batch size that kernels are tuned for.
        max_batch: Largest batch size.
        shapes: For inputs with dynamic dimensions: name → {min, opt, max}, shapes without the batch.
    """

    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 64
    shapes: dict[str, dict[str, list[int]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TensorRTSpec:
    """``[compile.tensorrt]``: how the plan is built.

    Attributes:
        profiles: Optimization profiles; empty means one from 1 to ``repository.max_batch_size``.
        workspace_mib: Limit of the builder's scratch memory, MiB.
        optimization_level: Builder optimization level 0-5, for TensorRT 8.6 and later; None leaves the default.
        timing_cache: Whether measured tactics are kept per GPU and version.
    """

    profiles: tuple[ProfileSpec, ...] = ()
    workspace_mib: int = 4096
    optimization_level: int | None = None
    timing_cache: bool = True


@dataclass(frozen=True, kw_only=True)
class CompileSpec:
    """``[compile]``: the target and its options."""

    target: Target = "auto"
    onnxruntime: OnnxRuntimeSpec = field(default_factory=OnnxRuntimeSpec)
    tensorrt: TensorRTSpec = field(default_factory=TensorRTSpec)


@dataclass(frozen=True, kw_only=True)
class RepositorySpec:
    """``[repository]``: what config.pbtxt says beyond the tensors.

    Attributes:
        max_batch_size: Largest batch that Triton forms; 0 turns batching off.
        preferred_batch_sizes: Batch sizes that the dynamic batcher tries to reach.
        max_queue_delay_us: How long a request may wait for others, microseconds.
        instance_count: Model instances (per GPU where there is one).
        instance_kind: ``auto`` follows the target.
        warmup_batch_sizes: Batch sizes run before the model is ready.
        response_cache: Whether Triton may answer from its response cache.
        keep_versions: Newest versions that Triton serves.
    """

    max_batch_size: int = 64
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 100
    instance_count: int = 1
    instance_kind: Literal["auto", "cpu", "gpu"] = "auto"
    warmup_batch_sizes: tuple[int, ...] = (1,)
    response_cache: bool = False
    keep_versions: int = 1


@dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """``[measure]``: defaults of ``repo-builder perf``.

    Attributes:
        task: ``classification`` scores classes; ``other`` checks outputs against the reference within ``tolerance``.
        metric: ``module:function(outputs, labels) -> dict[str, float]`` instead of the built-in metrics.
        batch_sizes: Batch sizes measured.
        concurrency: Requests in flight.
        accuracy_tolerance: Points of top-1, as a fraction, by which a rung may fall below the one above it.
        output_tolerance: Largest absolute difference between outputs that are not classes.
    """

    task: Literal["classification", "other"] = "classification"
    metric: str | None = None
    batch_sizes: tuple[int, ...] = (1, 8)
    concurrency: tuple[int, ...] = (1, 4)
    accuracy_tolerance: float = 0.005
    output_tolerance: float = 1e-3


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One model, from its source to how it is measured.

    Attributes:
        name: The model's name in Triton.
        description: One line for ``repo-builder recipes``.
        seed: Seed of every random choice.
    """

    name: str
    description: str = ""
    seed: int = 0
    model: ModelSpec
    data: DataSpec
    train: TrainSpec = field(default_factory=TrainSpec)
    quantize: QuantizeSpec = field(default_factory=QuantizeSpec)
    export: ExportSpec = field(default_factory=ExportSpec)
    compile: CompileSpec = field(default_factory=CompileSpec)
    repository: RepositorySpec = field(default_factory=RepositorySpec)
    measure: MeasureSpec = field(default_factory=MeasureSpec)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain TOML/JSON values, from which ``parse`` makes an equal one."""
        values: dict[str, Any] = codec.plain(self)
        return values


def parse(value: Mapping[str, Any]) -> Recipe:
    """Turn a parsed TOML document into a recipe.

    Raises:
        RecipeError: A key is unknown or missing, or a value has the wrong type or is out of range.
    """
    recipe = codec.build(Recipe, value)
    recipe_check.check(recipe)
    return recipe
