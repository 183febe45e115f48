"""What a recipe that asks int8 of every layer and says nothing else makes of a network.

The network goes through the stages of ``repo-builder build``, from its .onnx and samples to the graph that is served:
what is weighed, which layers are left in fp32 and why is the product's own doing (``keep = "what pays"``). It
calibrates on the very samples that the other forms calibrate on.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from repo_builder import datasets
from repo_builder.core.details import TriedRecord
from repo_builder.core.errors import RepoBuilderError
from repo_builder.core.recipe import parse
from repo_builder.datasets.splits import partition
from repo_builder.flows.build import BuildOptions, compiling, exporting, paying, running
from repo_builder.flows.build.lowering import Ready
from repo_builder.quantize.placement import Placed

Array = np.ndarray[Any, Any]
_NUMPY = {"float32": "fp32", "int64": "int64"}


@dataclass(frozen=True, kw_only=True)
class Default:
    """A network as the default recipe makes it.

    Attributes:
        model: The file that is placed.
        left: Layer that was to be int8 and is not → why.
        int8: How many layers are int8.
        tried: What was weighed, in turn.
        seconds: What the build took.
    """

    model: Path
    left: dict[str, str]
    int8: int
    tried: tuple[TriedRecord, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return what a row says of it."""
        return {
            "int8_layers": self.int8,
            "left_float": self.left,
            "weighed": [
                {
                    "int8": row.what,
                    "left": len(row.left),
                    "sqnr_db": row.sqnr_db,
                    "over_fp32": {str(item.batch_size): round(item.speedup, 3) for item in row.speed},
                    "taken": row.chosen,
                }
                for row in self.tried
            ],
            "build_s": round(self.seconds, 1),
        }


def build(
    name: str,
    model: onnx.ModelProto,
    calibration: Array,
    held_out: Array,
    folder: Path,
    *,
    most: int,
    moving: Sequence[int] = (),
) -> Default:
    """Build a network of one input ``x`` and one output ``y``.

    Args:
        name: Its name.
        model: The fp32 graph.
        calibration: Samples that ranges are found on and choices are judged on.
        held_out: Samples that score it.
        folder: Where everything is made.
        most: The largest batch that it is to serve, and is weighed at.
        moving: Axes of a sample that vary.

    Raises:
        SystemExit: It was not built.
    """
    onnx.save(model, folder / "given.onnx")
    shape = tuple(-1 if axis in moving else size for axis, size in enumerate(calibration.shape[1:]))
    given, fractions = _laid_out(calibration, held_out)
    np.savez(folder / "samples.npz", x=given)
    sizes = [dim.dim_value or -1 for dim in model.graph.output[0].type.tensor_type.shape.dim[1:]]
    recipe = parse({
        "name": name,
        "model": {
            "source": str(folder / "given.onnx"),
            "inputs": [{"name": "x", "dtype": _NUMPY[str(calibration.dtype)], "shape": list(shape)}],
            "outputs": [{"name": "y", "dtype": "fp32", "shape": sizes}],
        },
        "data": {"source": str(folder / "samples.npz"), **fractions},
        "quantize": {"layers": [{"precision": "int8"}]},
        "repository": {"max_batch_size": most},
        "measure": {"task": "other"},
    })  # fmt: skip
    started, said = time.perf_counter(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            left, placed, tried = _decided(BuildOptions(
                recipe=recipe, work=folder / "work", repository=folder / "repository", target="onnxruntime"
            ), folder / "default.onnx")  # fmt: skip
    except RepoBuilderError as error:
        sys.stderr.write(said.getvalue())
        raise SystemExit(f"{name}: {error}") from error
    return Default(
        model=folder / "default.onnx",
        left={row.name: row.reason for row in placed.layers if row.asked == "int8" and row.placed != "int8"} | left,
        int8=sum(row.placed == "int8" for row in placed.layers),
        tried=tried,
        seconds=time.perf_counter() - started,
    )


def _decided(options: BuildOptions, path: Path) -> tuple[dict[str, str], Placed, tuple[TriedRecord, ...]]:
    """Take a recipe through the stages of a build up to the graph that is served, and write it.

    What a build does behind that changes no graph: it measures each layer's noise, scores, and lays it in a repository.
    """
    recipe = options.recipe
    dataset = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed)
    placement = compiling.choose(options).placement(recipe)
    exported, _ = exporting.run(options, dataset, placement)
    batches = running.batches_of(exported.model, exported.inputs, exported.outputs, alone=bool(exported.details.alone))
    kept = paying.choose(exported, placement, batches, dataset.split("calibration").inputs)
    _, placed, _ = Ready.of(exported, placement).write(exported, path, kept.left)
    return kept.left, placed, kept.tried


def _laid_out(calibration: Array, held_out: Array) -> tuple[Array, dict[str, Any]]:
    """Return all samples, each where the split takes it, and the recipe's fractions.

    As many samples more as a split keeps for training and validation are repeated ones, which nothing looks at.
    """
    count = 2 * len(calibration) + len(held_out) + 1
    fractions = {
        "test": len(held_out) / count,
        "validation": 1 / (count - len(held_out)),
        "calibration": len(calibration),
    }
    parts = partition(None, count, seed=0, **fractions)  # type: ignore[arg-type]
    if (len(parts["calibration"]), len(parts["test"])) != (len(calibration), len(held_out)):
        raise AssertionError("the split takes another number of samples")
    given = np.resize(calibration, (count, *calibration.shape[1:]))
    given[parts["calibration"]], given[parts["test"]] = calibration, held_out
    return given, fractions
