"""The TensorRT target: a plan for this machine's GPU, with the proof that every layer became what was asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from repo_builder.compile import CompileOptions, asking
from repo_builder.compile.tensorrt import graph, inspector, kept_plans, profiles
from repo_builder.compile.tensorrt.normalization import without_layer_normalization
from repo_builder.compile.tensorrt.regions import Piece
from repo_builder.compile.tensorrt.settle import MOST_BUILDS, settle
from repo_builder.compile.tensorrt.versions import TACTIC_SOURCES, dialect, why_no_float8
from repo_builder.compile.timed import LayerTimes
from repo_builder.core import device, environment, onnx_files
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.core.details import EngineDetails, SpeedRecord, TensorRTDetails
from repo_builder.core.errors import CompileError, MissingDependency
from repo_builder.core.progress import stderr_console
from repo_builder.core.recipe import Precision, Recipe
from repo_builder.core.records import FUSED, Verdict
from repo_builder.core.tensors import Array, DType

try:
    import tensorrt as trt
except ModuleNotFoundError:
    raise
except (ImportError, OSError) as _error:  # the bindings are here and a library that they load is not
    raise MissingDependency(
        f"TensorRT cannot be loaded ({_error})",
        hint="pip install 'repo-builder[tensorrt]', and put CUDA's libraries on LD_LIBRARY_PATH",
    ) from _error

from repo_builder.compile.tensorrt import pieces, speed
from repo_builder.compile.tensorrt.build import BuildRequest, Built, build
from repo_builder.compile.tensorrt.plan import Plan, PlanRunner

MODEL = "model.plan"


class TensorRTTarget:
    """Writes ``model.plan`` for Triton's tensorrt backend."""

    name = "tensorrt"
    clock = "device time"

    def unavailable(self) -> str | None:
        """Return why no plan can be built here."""
        if not environment.gpus():
            return "this machine has no NVIDIA GPU (nvidia-smi lists none)"
        return None

    def check(self, recipe: Recipe) -> None:
        """Refuse fp8 where this TensorRT or this GPU has none."""
        rule, why = asking(recipe, "fp8"), why_no_float8(trt.__version__, environment.gpus()[0].compute_capability)
        if rule is not None and why:
            raise CompileError(f"fp8 does not run here: {why}", where=rule, hint="give the layers int8 or fp16")

    def versions(self, recipe: Recipe) -> dict[str, str]:
        """Return what a plan depends on: TensorRT's version and the GPU."""
        gpu = environment.gpus()[0]
        return {"tensorrt": trt.__version__, "gpu": gpu.name, "compute_capability": gpu.compute_capability}

    def placement(self, recipe: Recipe) -> tuple[str, environment.Saturation]:
        """Return the placement profile."""
        return "tensorrt", "none"

    def compile(self, artifact: OnnxArtifact, folder: Path, *, options: CompileOptions) -> TensorRTDetails:
        """Build the plan, ask the engine's inspector what each layer became, and refuse what was not asked.

        Raises:
            CompileError: The graph is refused, or a layer runs in another precision than asked.
            RecipeError: A profile does not fit the inputs.
        """
        recipe, spec = options.recipe, options.recipe.compile.tensorrt
        covered = profiles.from_recipe(recipe)
        cache = options.cache_folder / f"tensorrt-{_machine()}.timing" if spec.timing_cache else None
        keeps = spec.plan_cache and spec.timing_cache  # who measures anew wants a plan that is built anew
        model = onnx_files.load(options.graph)
        if not dialect(trt.__version__).layer_normalization:
            model = without_layer_normalization(model)
            onnx_files.save(model, options.graph)
        request = BuildRequest(
            model=options.graph,
            precisions=graph.read(model, options.layer_precisions),
            profiles=covered,
            workspace_bytes=spec.workspace_mib << 20,
            optimization_level=spec.optimization_level,
            threads=spec.builder_threads,
            timing_iterations=spec.timing_iterations,
            timing_cache=cache,
            pinned=frozenset(options.pinned) & frozenset(node.name for node in model.graph.node),
        )
        settled = settle(
            request,
            build=kept_plans.keeping(build, options.cache_folder / "plans", _machine(), Built) if keeps else build,
            deserialize=lambda plan: Plan(plan, where=MODEL),
            say=lambda line: stderr_console().print(f"  {line}", markup=False),
            most=options.most_builds or MOST_BUILDS,
        )
        built, verdicts = settled.built, settled.verdicts
        (folder / MODEL).write_bytes(built.plan)
        narrow = _narrowed(artifact, settled.plan)
        notes = (*built.notes, *settled.notes, *_judged(verdicts, allowed=options.allow_precision_mismatch))
        if narrow:
            many = f"{', '.join(narrow)}: int32 in the plan, as TensorRT {trt.__version__} has no int64"
            notes = (*notes, f"{many}; values beyond 2^31 are refused")
        return TensorRTDetails(
            max_batch_size=recipe.repository.max_batch_size,
            **_provenance(),
            profiles=covered,
            flags=built.flags,
            constrained_layers=built.constraints,
            pinned=tuple(sorted(settled.pinned)),
            tactic_sources=tuple(TACTIC_SOURCES),
            workspace_mib=spec.workspace_mib,
            optimization_level=spec.optimization_level,
            cached_tactics_bytes=built.cached_tactics_bytes,
            build_seconds=round(settled.seconds, 3),
            builds=settled.builds,
            plan_bytes=len(built.plan),
            engine_layers=settled.engine_layers,
            precision_counts=inspector.counts(verdicts),
            precisions=verdicts,
            narrowed=narrow,
            notes=notes,
        )

    def below_fp32(self, recipe: Recipe) -> tuple[Precision, ...]:
        """Return int8 and fp16, and fp8 where this TensorRT and this GPU have it."""
        why = why_no_float8(trt.__version__, environment.gpus()[0].compute_capability)
        return ("int8", "fp16") if why else ("int8", "fp8", "fp16")

    def trial(self, artifact: OnnxArtifact, folder: Path, *, options: CompileOptions) -> tuple[Path, EngineDetails]:
        """Build the plan as ``compile`` does: a choice whose precisions the engine does not keep is none.

        Raises:
            CompileError: As ``compile``.
        """
        details = self.compile(artifact, folder, options=options)
        return folder / MODEL, details

    def in_turns(
        self, reference: Path, candidate: Path, inputs: Mapping[int, dict[str, Array]], *, seconds: float
    ) -> tuple[SpeedRecord, ...]:
        """Time two plans in turns, on the GPU's own clock."""
        return speed.in_turns(reference, candidate, inputs, seconds=seconds)

    def layer_times(self, model_file: Path, layers: Sequence[str], feed: Mapping[str, Array]) -> LayerTimes | None:
        """Return None: what TensorRT fuses has no time of its own; ``pieces`` tells what has."""
        return None

    def pieces(self, plan_file: Path, nodes: Sequence[str], feeds: Mapping[int, dict[str, Array]]) -> tuple[Piece, ...]:
        """Return what a plan runs one after the other, with the time of each at each batch size.

        Args:
            plan_file: The plan.
            nodes: Names of its graph's nodes, in the graph's order.
            feeds: Batch size → inputs.
        """
        return pieces.measure(plan_file, nodes, feeds)

    def runner(self, model_file: Path, details: EngineDetails) -> PlanRunner:
        """Return a runner of a plan.

        Raises:
            CompileError: It is not for this TensorRT and GPU.
        """
        return PlanRunner(model_file)


def _judged(verdicts: tuple[Verdict, ...], *, allowed: bool) -> list[str]:
    """Return a sentence for what is not as asked; raise where a layer departs and that is not allowed.

    What a region tells no types of is one sentence a region, and no departure.
    """
    wrong = [str(item) for item in verdicts if item.departs]
    if wrong and not allowed:
        raise CompileError(
            "the engine does not keep the precisions: " + "; ".join(wrong),
            hint="change the layer's rule, or accept it with --allow-precision-mismatch",
        )
    regions: dict[str, list[Verdict]] = {}
    for item in verdicts:
        if item.got == FUSED:
            regions.setdefault(item.engine_layer, []).append(item)
    fused = [
        f"{len(items)} layers ({items[0].layer} to {items[-1].layer}) are fused into one region, of which "
        f"TensorRT tells no types inside; it reads and writes {items[0].region}"
        for items in regions.values()
    ]
    wider = [str(item) for item in verdicts if not (item.holds or item.departs or item.got == FUSED)]
    return [*wrong, *fused, *wider]


class _Provenance(TypedDict):
    tensorrt_version: str
    cuda_version: str
    driver: str
    gpu: str
    compute_capability: str


def _narrowed(artifact: OnnxArtifact, plan: Plan) -> tuple[str, ...]:
    """Return the tensors that are int64 in the network and int32 in its plan."""
    wide = {item.name for item in (*artifact.inputs, *artifact.outputs) if item.dtype is DType.INT64}
    return tuple(item.name for item in plan.tensors if item.name in wide and item.dtype is DType.INT32)


def _provenance() -> _Provenance:
    """Return what the plan is for: it loads on no other TensorRT version or kind of GPU."""
    gpu, cuda = environment.gpus()[0], device.versions()
    return {
        "tensorrt_version": trt.__version__,
        "cuda_version": cuda["runtime"],
        "driver": gpu.driver,
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
    }


def _machine() -> str:
    gpu = environment.gpus()[0]
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{trt.__version__}-{gpu.name}-sm{gpu.compute_capability}")
