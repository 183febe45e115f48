"""From a graph that is ready to its ranges: calibrated, and repaired where the recipe asks for it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import onnx

from repo_builder.core import files, loading, onnx_files, progress
from repo_builder.core.artifacts import RANGES, REPAIRED_MODEL
from repo_builder.core.recipe import Recipe
from repo_builder.core.records import RepairRecord
from repo_builder.core.tensors import Array
from repo_builder.flows.build import keys
from repo_builder.quantize import LayerPlan, store
from repo_builder.quantize.ranges import Observed, Ranges


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What calibration and repairs made.

    Attributes:
        model: The fp32 graph that is to be placed: the one that was given, or what repairs made of it.
        ranges: What its tensors and weights hold.
        records: What ``best`` chose and what repairs did, in turn.
    """

    model: onnx.ModelProto
    ranges: Ranges
    records: tuple[RepairRecord, ...]


def calibrated(
    model: onnx.ModelProto,
    plans: tuple[LayerPlan, ...],
    recipe: Recipe,
    samples: dict[str, Array],
    folder: Path,
    *,
    data: str,
    earlier: Path,
) -> Calibrated:
    """Find the ranges, make the repairs, and write both: ``ranges.npz``, and the graph where repairs changed it.

    Args:
        model: What ``prepare`` returns.
        plans: What each layer is to become.
        recipe: The recipe.
        samples: Calibration samples by input name, batch first.
        folder: Where the files go.
        data: Fingerprint of the data set.
        earlier: The ranges that the last build left, if there are any.

    Raises:
        QuantizeError: The model does not run, a range cannot be found, or there are too few samples to judge repairs.
    """
    calibrate = _Calibration(plans, recipe, samples, data=data, earlier=earlier)
    spec = recipe.quantize.repair
    if not spec.asked or not any(item.precision == "int8" for item in plans):
        ranges, seen = calibrate(model)
        records: tuple[RepairRecord, ...] = ()
        made = model
    else:
        with loading.needs("build", what="repairing"):
            from repo_builder.quantize import repair
            from repo_builder.quantize.judge import Judge, parts
            from repo_builder.quantize.placement import PROFILES
        ranges, seen = calibrate(model)
        fits, judges = parts(model, samples)
        work = repair.Work(
            plans=plans,
            spec=recipe.quantize,
            samples=fits,
            profile=PROFILES[calibrate.target],
            seed=recipe.seed,
            calibrate=calibrate,
        )
        state = repair.State(model=model, ranges=ranges, seen=seen)
        judge = Judge(model, judges, batch_size=recipe.quantize.batch_size)
        state, records = repair.repaired(state, work, judge)
        made, ranges, seen = state.model, state.ranges, state.seen
    store.write(folder / RANGES, calibrate.key(made), seen, ranges)
    if made is not model:
        onnx_files.save(made, folder / REPAIRED_MODEL)
    return Calibrated(model=made, ranges=ranges, records=(*([seen.record] if seen.record else []), *records))


class _Calibration:
    """Calibrates graphs of one recipe; what one has seen is kept.

    Args:
        plans: What each layer is to become.
        recipe: The recipe.
        samples: Calibration samples.
        data: Fingerprint of the data set.
        earlier: The ranges that the last build left, if there are any.
    """

    def __init__(
        self, plans: tuple[LayerPlan, ...], recipe: Recipe, samples: dict[str, Array], *, data: str, earlier: Path
    ) -> None:
        self.plans, self.recipe, self.samples, self.data, self.earlier = plans, recipe, samples, data, earlier
        self.target = "tensorrt" if recipe.compile.target == "tensorrt" else "onnxruntime-cpu"
        self._seen: dict[str, Observed] = {}

    def key(self, model: onnx.ModelProto) -> str:
        """Return the hash of what ranges depend on beside their calibrators."""
        digest = hashlib.sha256()
        graph = model.graph
        for item in (*model.opset_import, *graph.input, *graph.output, *graph.node, *graph.initializer):
            digest.update(item.SerializeToString(deterministic=True))
        return files.sha256_of_json({
            "graph": digest.hexdigest(),
            "data": self.data,
            "backend": self.recipe.quantize.backend,
            "batch_size": self.recipe.quantize.batch_size,
            "code": keys.code_version("quantize", "core/graphs.py"),
            "libraries": keys.versions("onnxruntime", "numpy", self.recipe.quantize.backend),
        })  # fmt: skip

    def __call__(self, model: onnx.ModelProto) -> tuple[Ranges, Observed]:
        """Return a graph's ranges, and what they were made of."""
        with loading.needs("build", what="calibrating"):
            from repo_builder.quantize.calibrate import calibrate
        key, spec = self.key(model), self.recipe.quantize
        known = self._seen.get(key) or store.read_observed(self.earlier, key)
        with progress.step("calibrate") as step:
            ranges, seen, ran = calibrate(model, self.plans, spec, self.samples, known, target=self.target)
            count = len(next(iter(self.samples.values())))
            how = f"{spec.backend}, {count} samples" if ran else "nothing new to find"
            step.note(f"{len(ranges.tensors)} tensors, {how}")
        self._seen[key] = seen
        return ranges, seen
