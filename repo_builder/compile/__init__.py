"""Compile targets: what turns the portable ONNX into the file that Triton loads.

A new target is one leaf module and one row of ``TARGETS``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from repo_builder.compile.timed import LayerTimes
from repo_builder.core import loading
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.core.details import EngineDetails, SpeedRecord
from repo_builder.core.environment import Saturation
from repo_builder.core.errors import CompileError, MissingDependency, did_you_mean
from repo_builder.core.recipe import Precision, Recipe
from repo_builder.core.samples import Batches
from repo_builder.core.tensors import Array

# name → (class, extra that installs what it imports)
TARGETS: dict[str, tuple[str, str]] = {
    "tensorrt": ("repo_builder.compile.tensorrt.target:TensorRTTarget", "tensorrt"),
    "onnxruntime": ("repo_builder.compile.onnxruntime.target:OnnxRuntimeTarget", "onnxruntime"),
}


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """What a target needs besides the artifact.

    Attributes:
        recipe: The recipe, with ``--set`` applied.
        graph: The graph to compile: the artifact's, with Q/DQ and fp16 regions for this target.
        layer_precisions: Layer name → ``int8``, ``fp16`` or ``fp32``, as derived from ``graph``.
        cache_folder: A folder that outlives the build, for timing caches.
        allow_precision_mismatch: Whether a layer may end in another precision than asked.
        batches: How the model takes samples.
        samples: Held-out samples by input name, ``(n, *shape)``, for what is measured; None where there are none here.
        most_builds: How many plans a TensorRT build may try until every layer is as asked; 0 for its usual limit.
        pinned: Nodes that it holds to their precision from the first on.
    """

    recipe: Recipe
    graph: Path
    layer_precisions: Mapping[str, str]
    cache_folder: Path
    allow_precision_mismatch: bool = False
    batches: Batches | None = None
    samples: Mapping[str, Array] | None = None
    most_builds: int = 0
    pinned: tuple[str, ...] = ()


class Runner(Protocol):
    """Runs a compiled model in this process."""

    def __call__(self, inputs: dict[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Run samples, batch first, any number of them, in batches that the model covers.

        Args:
            inputs: ``(n, *shape)`` by name.
            outputs: Names of the outputs that are wanted; none for all.
        """
        ...

    def whole(self, inputs: dict[str, Array], outputs: Sequence[str] = ()) -> dict[str, Array]:
        """Run whole tensors once, as they are."""
        ...

    def __enter__(self) -> Runner:
        """Return itself."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free what the runner holds."""
        ...


class CompileTarget(Protocol):
    """One compile target.

    Attributes:
        name: As in a recipe.
        clock: What ``in_turns`` counts, as in ``CPU time of one thread``.
    """

    name: str
    clock: str

    def unavailable(self) -> str | None:
        """Return why the target cannot be used on this machine, None where it can. Cheap, never raises."""
        ...

    def check(self, recipe: Recipe) -> None:
        """See that the target runs every precision that rules ask for.

        Raises:
            CompileError: It does not; the rule, the reason and what runs it are named.
        """
        ...

    def versions(self, recipe: Recipe) -> dict[str, str]:
        """Return what of this machine the result depends on: library versions, GPU, choices made from CPU flags."""
        ...

    def placement(self, recipe: Recipe) -> tuple[str, Saturation]:
        """Return the name of the placement profile, and what of this machine changes it."""
        ...

    def below_fp32(self, recipe: Recipe) -> tuple[Precision, ...]:
        """Return the precisions below fp32 in which a layer may be faster here, the lowest first."""
        ...

    def trial(self, artifact: OnnxArtifact, folder: Path, *, options: CompileOptions) -> tuple[Path, EngineDetails]:
        """Make of a graph what can be timed and run, without timing it; return its file and what ``runner`` needs.

        Raises:
            CompileError: The graph was refused.
        """
        ...

    def in_turns(
        self, reference: Path, candidate: Path, inputs: Mapping[int, dict[str, Array]], *, seconds: float
    ) -> tuple[SpeedRecord, ...]:
        """Time two files of ``trial`` in turns on this machine; one row a batch size.

        Args:
            reference: What the other is compared with.
            candidate: The other.
            inputs: Batch size → inputs of both.
            seconds: Time a batch size and file, about.
        """
        ...

    def layer_times(self, model_file: Path, layers: Sequence[str], feed: Mapping[str, Array]) -> LayerTimes | None:
        """Return how long each layer takes in a file of ``trial``; None where the target does not tell."""
        ...

    def compile(self, artifact: OnnxArtifact, folder: Path, *, options: CompileOptions) -> EngineDetails:
        """Write the model file into ``folder`` and return what is known of it.

        Raises:
            CompileError: The graph was refused.
        """
        ...

    def runner(self, model_file: Path, details: EngineDetails) -> Runner:
        """Return a runner of a compiled file.

        Raises:
            CompileError: The file cannot be run here.
        """
        ...


def asking(recipe: Recipe, precision: Precision) -> str | None:
    """Return the key of the first rule that asks for a precision; None where none does."""
    places = (place for place, rule in enumerate(recipe.quantize.layers) if rule.precision == precision)
    return next((f"quantize.layers[{place}]" for place in places), None)


def target(name: str) -> CompileTarget:
    """Return a target by name.

    Raises:
        CompileError: There is no such target.
        MissingDependency: Its library is not installed.
    """
    if name not in TARGETS:
        raise CompileError(f"there is no compile target '{name}'", hint=did_you_mean(name, TARGETS))
    place, extra = TARGETS[name]
    made: CompileTarget = loading.load(place, extra=extra, what=f"the target '{name}'")()
    return made


def choose(name: str) -> tuple[CompileTarget, str]:
    """Return the target to use and why; ``auto`` takes the first row of ``TARGETS`` that works here.

    Raises:
        CompileError: The named target, or every target, is unavailable here.
        MissingDependency: The named target's library is not installed.
    """
    if name != "auto":
        chosen = target(name)
        reason = chosen.unavailable()
        if reason:
            raise CompileError(f"target '{name}' cannot be used here: {reason}", where="--target", hint="use auto")
        return chosen, f"{name}, as asked"
    reasons: list[str] = []
    for candidate in TARGETS:
        try:
            chosen = target(candidate)
            reason = chosen.unavailable()
        except MissingDependency as error:
            reason = error.message
        if reason is None:
            because = "; ".join(reasons) or "the first choice, and what it needs is here"
            return chosen, f"{candidate} ({because})"
        reasons.append(f"not {candidate}: {reason}")
    raise CompileError("no compile target works here: " + "; ".join(reasons), hint="pip install 'repo-builder[build]'")
