"""``[repository]`` and ``[measure]``: how the model is served, and how it is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from repo_builder.core.bounds import Bound, Former
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe.bounds import Count, Counts, Function, Natural


@dataclass(frozen=True, kw_only=True)
class RepositorySpec:
    """``[repository]``: what config.pbtxt says beyond the tensors.

    Attributes:
        max_batch_size: Largest batch that Triton forms; 0 turns batching off.
        preferred_batch_sizes: Batch sizes that the dynamic batcher tries to reach.
        max_queue_delay_us: How long a request may wait for others, microseconds.
        instance_count: Model instances (per GPU where there is one); several of a plan in the embedded Triton want
            ``serve --mps``.
        instance_kind: ``auto`` follows the target.
        warmup_batch_sizes: Batch sizes run before the model is ready; left out, 1, and of a TensorRT plan also what
            each profile is tuned for, since its CUDA graphs are captured then.
        response_cache: Whether Triton may answer from its response cache.
        keep_versions: Newest versions that Triton serves.
    """

    max_batch_size: Natural = 64
    preferred_batch_sizes: tuple[Count, ...] = ()
    max_queue_delay_us: Natural = 100
    instance_count: Count = 1
    instance_kind: Literal["auto", "cpu", "gpu"] = "auto"
    warmup_batch_sizes: tuple[Count, ...] | None = None
    response_cache: bool = False
    keep_versions: Count = 1

    def __post_init__(self) -> None:
        """Refuse batches that Triton could never form."""
        for key in ("preferred_batch_sizes", "warmup_batch_sizes"):
            for place, size in enumerate(getattr(self, key) or ()):
                if size > max(1, self.max_batch_size):
                    message = f"{size} is not between 1 and max_batch_size ({self.max_batch_size})"
                    raise RecipeError(message, where=f"{key}[{place}]")


@dataclass(frozen=True, kw_only=True)
class MeasureSpec:
    """``[measure]``: defaults of ``repo-builder perf``.

    Attributes:
        task: ``classification`` scores classes; ``other`` where outputs are not classes.
        output: The output that is scored; left out, the first of one number a class, else the first.
        metric: ``module:function(outputs, labels) -> dict[str, float]`` instead of the built-in metrics.
        batch_sizes: Batch sizes measured.
        concurrency: Requests in flight.
        accuracy_tolerance_points: Percentage points of top-1 by which a rung may fall below the one above it.
        output_tolerance: Largest absolute difference between outputs that are not classes; left out, they are held to a
            signal to noise.
        output_sqnr_db: The lowest signal to noise of an output against the rung above it, dB; left out, it follows the
            lowest precision of the layers (docs/measuring.md).
    """

    task: Literal["classification", "other"] = "classification"
    output: str | None = None
    metric: Function | None = None
    batch_sizes: Counts = (1, 8)
    concurrency: Counts = (1, 4)
    accuracy_tolerance_points: Annotated[float, Bound(ge=0, le=100), Former("accuracy_tolerance", 100)] = 0.5
    output_tolerance: Annotated[float, Bound(ge=0)] | None = None
    output_sqnr_db: Annotated[float, Bound(ge=-200, le=200)] | None = None
