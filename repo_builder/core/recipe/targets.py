"""``[compile]``: the target and its options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from repo_builder.core.bounds import Bound, shown
from repo_builder.core.errors import RecipeError, did_you_mean
from repo_builder.core.profiles import BOUNDS
from repo_builder.core.recipe.bounds import Count, Natural

Target = Literal["auto", "onnxruntime", "tensorrt"]


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeSpec:
    """``[compile.onnxruntime]``: the graph for ONNX Runtime, and its provider on a GPU.

    Attributes:
        first_layer: int8 on a CPU whose sums of 8-bit products saturate (AVX2 without VNNI): ``auto`` gives weights 7
            bits there, ``int8`` keeps 8, ``fp32`` leaves the layers in floating point.
        fp8: Whether the CPU provider, which has no fp8 arithmetic, refuses layers in fp8 or computes them in float on
            values that are rounded to fp8: the accuracy is fp8's, the time is not.
        int4_compute: What products with int4 weights are computed in. ``int8``: each run rounds the layer's input to 8
            bits, a scale a block, which is fastest (MatMulNBits with accuracy_level 4, ONNX Runtime's own choice).
            ``fp32``: weights are unpacked and nothing else is rounded (accuracy_level 1).
        accelerator: ``none``, or the execution accelerator written to config.pbtxt: ``cuda`` or ``tensorrt``.
        accelerator_precision: Precision mode of the TensorRT accelerator.
        engine_cache: Whether the TensorRT accelerator keeps its engines, in a folder of the server's working directory.
        intra_op_thread_count: Threads inside an operator; 0 leaves it to ONNX Runtime.
        inter_op_thread_count: Threads across operators; 0 leaves it to ONNX Runtime.
    """

    first_layer: Literal["auto", "int8", "fp32"] = "auto"
    fp8: Literal["refuse", "simulate"] = "refuse"
    int4_compute: Literal["int8", "fp32"] = "int8"
    accelerator: Literal["none", "cuda", "tensorrt"] = "none"
    accelerator_precision: Literal["fp32", "fp16", "int8"] = "fp32"
    engine_cache: bool = True
    intra_op_thread_count: Natural = 1
    inter_op_thread_count: Natural = 1


@dataclass(frozen=True, kw_only=True)
class ProfileSpec:
    """``[[compile.tensorrt.profiles]]``: batch sizes of one optimization profile, and its dynamic dimensions.

    Attributes:
        min_batch: Smallest batch size.
        opt_batch: Batch size that kernels are tuned for.
        max_batch: Largest batch size.
        shapes: For inputs with dynamic dimensions: name → {min, opt, max}, shapes without the batch.
    """

    min_batch: Count = 1
    opt_batch: Count = 8
    max_batch: Count = 64
    shapes: dict[str, dict[str, list[Natural]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse bounds that are out of order; whether they fit the inputs is for the target to say."""
        if not self.min_batch <= self.opt_batch <= self.max_batch:
            found = f"{self.min_batch}, {self.opt_batch}, {self.max_batch}"
            message = f"1 <= min_batch <= opt_batch <= max_batch does not hold: {found}"
            raise RecipeError(message, hint="give all three: what is left out is 1, 8 and 64")
        for name, bounds in self.shapes.items():
            for key in bounds:
                if key not in BOUNDS:
                    hint = did_you_mean(key, BOUNDS)
                    raise RecipeError(f"unknown key {shown(key)}", where=f"shapes.{name}", hint=hint)


@dataclass(frozen=True, kw_only=True)
class TensorRTSpec:
    """``[compile.tensorrt]``: how the plan is built.

    Attributes:
        profiles: Optimization profiles; empty means one from 1 to ``repository.max_batch_size``.
        workspace_mib: Limit of the builder's scratch memory, MiB.
        optimization_level: Builder optimization level 0-5, for TensorRT 8.6 and later; left out, TensorRT's default.
        fp16_regions: What stays fp16 between fp16 layers: ``layers`` leaves what sums long rows or divides in fp32
            (Softmax, LayerNormalization, Erf, Div), ``wide`` takes it along where all of its input is fp16.
        builder_threads: Threads that the builder may use; left out, TensorRT's default.
        timing_iterations: How often each tactic is timed for its mean; left out, TensorRT's default. More make builds
            longer, and plans less a matter of chance.
        timing_cache: Whether measured tactics are kept per GPU and version.
        plan_cache: Whether plans are kept beside them and used again where graph, profiles and options are the same:
            a form that was weighed in one build need not be built when it is asked for. None without timing_cache.
        weigh_seconds: Seconds that weighing int8 against fp16 may take: a plan that is not expected to be built by
            then is not begun, and the notes say so. Left out, no limit.
    """

    profiles: tuple[ProfileSpec, ...] = ()
    workspace_mib: Count = 4096
    optimization_level: Annotated[int, Bound(ge=0, le=5, must="is not in 0 to 5")] | None = None
    fp16_regions: Literal["layers", "wide"] = "layers"
    builder_threads: Count | None = None
    timing_iterations: Count | None = None
    timing_cache: bool = True
    plan_cache: bool = True
    weigh_seconds: Count | None = None


@dataclass(frozen=True, kw_only=True)
class CompileSpec:
    """``[compile]``: the target and its options.

    Attributes:
        target: ``auto`` takes TensorRT where a GPU and the library are, else ONNX Runtime, and says why.
        onnxruntime: Options of ONNX Runtime.
        tensorrt: Options of TensorRT.
    """

    target: Target = "auto"
    onnxruntime: OnnxRuntimeSpec = field(default_factory=OnnxRuntimeSpec)
    tensorrt: TensorRTSpec = field(default_factory=TensorRTSpec)
