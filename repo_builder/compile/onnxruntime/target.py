"""The ONNX Runtime target: the placed graph as it is, loaded and timed once, its layers read back."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import onnxruntime as ort

from repo_builder.compile import CompileOptions, asking, timed
from repo_builder.compile.onnxruntime import nbits, node_times, speed
from repo_builder.compile.onnxruntime.became import became
from repo_builder.core import environment
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.core.details import EngineDetails, OnnxRuntimeDetails, SpeedRecord
from repo_builder.core.environment import Saturation
from repo_builder.core.errors import CompileError, first_line
from repo_builder.core.recipe import Precision, Recipe
from repo_builder.core.records import FUSED, Verdict
from repo_builder.core.tensors import Array

_BATCH = 64
_SIMULATED = "computed in float on values that are rounded to fp8, which costs time and gains none"
# What is said of products with int4 weights.
_COMPUTED = {
    "int8": "products with int4 weights: inputs rounded to int8 in each run, a scale a block (MatMulNBits, "
    "accuracy_level 4)",
    "fp32": "products with int4 weights: computed in fp32 (MatMulNBits, accuracy_level 1)",
}
_PROVIDERS = {"none": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


class OnnxRuntimeTarget:
    """Writes ``model.onnx`` for Triton's onnxruntime backend."""

    name = "onnxruntime"
    clock = "CPU time of one thread"

    def unavailable(self) -> str | None:
        """Return None: the CPU provider runs wherever the library does."""
        return None

    def check(self, recipe: Recipe) -> None:
        """Refuse fp8: no provider that this target serves with has its arithmetic, as far as was tried."""
        rule, spec = asking(recipe, "fp8"), recipe.compile.onnxruntime
        if rule is None or (spec.accelerator == "none" and spec.fp8 == "simulate"):
            return
        hint = "give the layers int8, or compile for TensorRT 10 or later on a GPU of compute capability 8.9 or later"
        if spec.accelerator != "none":
            message = f"fp8 was never tried with ONNX Runtime's {_PROVIDERS[spec.accelerator]}"
            raise CompileError(message, where=rule, hint=hint)
        message = "ONNX Runtime's CPU provider has no fp8 arithmetic: it would compute in float, and round besides"
        only = "to measure their accuracy alone, set compile.onnxruntime.fp8=simulate"
        raise CompileError(message, where=rule, hint=f"{hint}; {only}")

    def versions(self, recipe: Recipe) -> dict[str, str]:
        """Return the library's version and what the CPU's flags decide."""
        return {"onnxruntime": ort.__version__, "saturation": saturation(recipe.compile.onnxruntime.first_layer)[0]}

    def placement(self, recipe: Recipe) -> tuple[str, Saturation]:
        """Return the placement profile: the CPU's, or TensorRT's for a provider on the GPU."""
        spec = recipe.compile.onnxruntime
        if spec.accelerator != "none":
            return "tensorrt", "none"
        return "onnxruntime-cpu", saturation(spec.first_layer)[0]

    def compile(self, artifact: OnnxArtifact, folder: Path, *, options: CompileOptions) -> OnnxRuntimeDetails:
        """Take the placed graph as ``model.onnx`` and load it once, so that what is placed is known to load."""
        spec = options.recipe.compile.onnxruntime
        path = folder / "model.onnx"
        if options.graph != path:
            nbits.finish(options.graph, path, spec.int4_compute)
        kind, why = saturation(spec.first_layer)
        matters = kind != "none" and spec.accelerator == "none" and "int8" in options.layer_precisions.values()
        notes = (f"weights of int8 layers: {kind} ({why})",) if matters else ()
        simulated = sum(item == "fp8" for item in options.layer_precisions.values())
        if simulated:
            notes = (*notes, f"{simulated} layers in fp8 are {_SIMULATED}: this build is for measuring accuracy")
        if "int4" in options.layer_precisions.values():
            notes = (*notes, _COMPUTED[spec.int4_compute])
        details = OnnxRuntimeDetails(
            max_batch_size=options.recipe.repository.max_batch_size,
            accelerator=spec.accelerator,
            onnxruntime_version=ort.__version__,
            notes=notes,
        )
        if spec.accelerator != "none":
            return details
        with self.runner(path, details):
            pass
        return replace(details, speed=self._time(artifact, path, options), precisions=_verdicts(path, options))

    def below_fp32(self, recipe: Recipe) -> tuple[Precision, ...]:
        """Return int8: the CPU provider computes fp16 in fp32, with casts around it."""
        return ("int8",)

    def trial(self, artifact: OnnxArtifact, folder: Path, *, options: CompileOptions) -> tuple[Path, EngineDetails]:
        """Return the graph itself, which is what is served.

        Raises:
            CompileError: It would be served by a provider on a GPU, which this does not time.
        """
        spec = options.recipe.compile.onnxruntime
        if spec.accelerator != "none":
            message = f"precisions are not timed for the provider {_PROVIDERS[spec.accelerator]}"
            hint = 'use accelerator = "none", or the target tensorrt'
            raise CompileError(message, where="compile.onnxruntime.accelerator", hint=hint)
        if "int4" in options.layer_precisions.values():
            nbits.finish(options.graph, options.graph, spec.int4_compute)
        return options.graph, OnnxRuntimeDetails(max_batch_size=options.recipe.repository.max_batch_size)

    def in_turns(
        self, reference: Path, candidate: Path, inputs: Mapping[int, dict[str, Array]], *, seconds: float
    ) -> tuple[SpeedRecord, ...]:
        """Time two files in turns, on one thread."""
        return speed.Timer(reference, inputs, seconds=seconds).against(candidate)

    def layer_times(
        self, model_file: Path, layers: Sequence[str], feed: Mapping[str, Array]
    ) -> timed.LayerTimes | None:
        """Return what ONNX Runtime's own profile says, on one thread."""
        return node_times.measure(model_file, layers, feed)

    def _time(self, artifact: OnnxArtifact, path: Path, options: CompileOptions) -> tuple[SpeedRecord, ...]:
        """Tell whether the precisions asked for pay on this CPU; nothing where all is fp32, or no form is."""
        if artifact.details.as_it_came or set(options.layer_precisions.values()) <= {"fp32"}:
            return ()
        if options.batches is None or not options.samples:
            return ()
        most = min(32, options.recipe.repository.max_batch_size)
        return speed.compare(artifact.model, path, timed.feeds(options.batches, options.samples, most=most))

    def runner(self, model_file: Path, details: EngineDetails) -> OnnxRuntimeRunner:
        """Return a runner on the provider that the artifact is meant for."""
        accelerator = details.accelerator if isinstance(details, OnnxRuntimeDetails) else "none"
        return OnnxRuntimeRunner(model_file, provider=_PROVIDERS[accelerator])


def _verdicts(path: Path, options: CompileOptions) -> tuple[Verdict, ...]:
    """Tell what ONNX Runtime's own graph has of each layer; what it folded away is part of another operator."""
    asked = options.layer_precisions
    return tuple(
        Verdict(
            layer=row.name,
            node=row.name,
            asked=asked[row.name],
            got=FUSED if row.got == "gone" else row.got,
            kind=row.operator,
            engine_layer=row.name if row.operator else "",
        )
        for row in became(path, list(asked))
    )


def saturation(first_layer: str) -> tuple[Saturation, str]:
    """Decide what is done about sums of 8-bit products that saturate on this CPU.

    AVX2 without VNNI adds pairs of 8-bit products in saturating 16 bits (VPMADDUBSW).

    Args:
        first_layer: ``auto``, ``int8`` or ``fp32``, from the recipe.

    Returns:
        What ``placement.profiles.onnxruntime_cpu.for_cpu`` takes, and the reason.
    """
    if first_layer == "int8":
        return "none", "the recipe says so"
    machine, flags = platform.machine().lower(), environment.cpu_flags()
    if machine not in ("x86_64", "amd64"):
        return "none", f"{machine} has no saturating 16-bit sums"
    found = sorted(flags & {"avx512_vnni", "avx_vnni"})
    if found:
        return "none", f"the CPU has {found[0]}"
    if first_layer == "fp32":
        return "float", "the CPU has no VNNI, and the recipe leaves such layers in floating point"
    return "7 bits", "the CPU has no VNNI, its 16-bit sums of 8-bit products would saturate"


class OnnxRuntimeRunner:
    """Runs an ONNX file in ONNX Runtime on one named provider.

    Args:
        model_file: The model.
        provider: The execution provider; it is asserted, nothing falls back to another.
        optimize: Whether graph optimizations (Q/DQ fusion among them) are on.
        threads: Threads inside an operator; 0 leaves it to ONNX Runtime.

    Raises:
        CompileError: The file does not load, or the provider is not there.
    """

    def __init__(
        self, model_file: Path, *, provider: str = "CPUExecutionProvider", optimize: bool = True, threads: int = 0
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin between operators cost a quarter to half of the CPU time of what runs here.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if provider not in ort.get_available_providers():
            found = ", ".join(ort.get_available_providers())
            hint = "pip install onnxruntime-gpu on a machine with a GPU"
            raise CompileError(
                f"ONNX Runtime here has no {provider} (it has {found})", where=str(model_file), hint=hint
            )
        try:
            self.session = ort.InferenceSession(str(model_file), options, providers=[provider])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise CompileError(f"ONNX Runtime refuses it: {first_line(error)}", where=str(model_file)) from error
        if self.session.get_providers()[0] != provider:
            found = ", ".join(self.session.get_providers())
            raise CompileError(f"runs on {found}, not on {provider}", where=str(model_file))
        self.outputs = [item.name for item in self.session.get_outputs()]
        self._where = str(model_file)

    def __call__(self, inputs: dict[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Run samples in batches of 64 and return the outputs that are wanted, or all, batch first."""
        count, names = len(next(iter(inputs.values()))), list(outputs or self.outputs)
        parts = [
            self._run(names, {name: value[start : start + _BATCH] for name, value in inputs.items()})
            for start in range(0, count, _BATCH)
        ]
        return {name: np.concatenate([part[place] for part in parts]) for place, name in enumerate(names)}

    def whole(self, inputs: dict[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Run whole tensors once, as they are."""
        names = list(outputs or self.outputs)
        return {name: np.asarray(value) for name, value in zip(names, self._run(names, inputs), strict=True)}

    def _run(self, names: list[str], feed: dict[str, Array]) -> list[Array]:
        try:
            found: list[Array] = self.session.run(names, feed)
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feed.items())
            message = f"ONNX Runtime does not run it on {shapes}: {first_line(error)}"
            raise CompileError(message, where=self._where) from error
        return found

    def __enter__(self) -> OnnxRuntimeRunner:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the session."""
        del self.session
