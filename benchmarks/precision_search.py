"""``build --search`` on the zoo's networks, ONNX Runtime's CPU: speed and accuracy beside all in fp32 and all in int8.

    .venv/bin/python benchmarks/precision_search.py --out benchmarks/results/precision_search.json [NETWORK ...]

Networks are those of ``cpu_zoo.py``, with seeded weights, images of 96². Untrained networks have no accuracy of their
own, so that those which end in classes get one that is measured by labels: a linear readout behind the 1000 outputs,
fitted by ridge regression to handwritten digits that the search never sees (three fifths of scikit-learn's, shifted
and scaled), and scored on shifted and scaled copies of the other two fifths. Points are points of top-1 by labels, on a
test split that the search does not look at. unet and yolov8n have no classes: they are held to the recipe's signal to
noise.

A network is searched with ``keep = "all"`` and one int8 rule for every layer as its recipe. Then fp32, all in int8 and
what the search wrote are timed in turns, CPU time of one thread, and each is scored on the test split. The bars:

- never slower than fp32, nor than all in int8 where that keeps the limit, beyond 2 %;
- within ``--max-drop`` points (0.3) of fp32 on the test split, or not beyond chance more (McNemar, p < 0.05);
- where all in int8 drops more than a point or is slower than fp32: at least 1.3 times as fast as fp32.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from cpu_zoo import exported, hardware
from onnx import helper, numpy_helper
from sklearn.datasets import load_digits
from zoo_networks import NETWORKS

from repo_builder.compile.onnxruntime.speed import Timer
from repo_builder.core.details import SpeedRecord
from repo_builder.core.recipe import LayerRule, QuantizeSpec, Recipe, SearchSpec, parse
from repo_builder.flows.build import BuildOptions, BuildResult, build
from repo_builder.measure.judge.baseline import mcnemar

CLASSES = (
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "densenet121",
    "squeezenet",
    "vit_small",
    "resnet18",
)
DENSE = ("unet", "yolov8n")
SIZE, COPIES, BATCH = 96, 5, 8
RIDGE = 3e-4  # of the largest singular value squared: a readout that lives of no tiny differences
LEAST, WITHIN, NOISE = 1.3, 0.3, 1.02


def digits(numbers: np.ndarray, copies: int, seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return copies of handwritten digits as images: enlarged, shifted by up to a tenth, channels of different gain."""
    values, labels = load_digits(return_X_y=True)
    generator, images = np.random.default_rng(seed), []
    gains = np.array([1.0, 0.7, -0.8], np.float32)[:, None, None]
    for number in np.repeat(numbers, copies):
        side = generator.integers(int(size * 0.75), size + 1)
        places = np.clip((np.arange(side) + 0.5) * 8 / side - 0.5, 0, 7)
        low, part = places.astype(int).clip(max=6), (places - places.astype(int).clip(max=6)).astype(np.float32)
        flat = values[number].reshape(8, 8).astype(np.float32) / 8 - 1
        rows = flat[low] * (1 - part)[:, None] + flat[low + 1] * part[:, None]
        whole = rows[:, low] * (1 - part) + rows[:, low + 1] * part
        image = np.full((size, size), -1, np.float32)
        top, left = generator.integers(0, size - side + 1, 2)
        image[top : top + side, left : left + side] = whole
        images.append(gains * image + generator.standard_normal((3, size, size), np.float32) * 0.1)
    return np.stack(images), np.repeat(labels[numbers], copies).astype(np.int64)


def with_readout(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """Return a network with a linear layer behind its 1000 outputs, fitted to three fifths of the digits."""
    images, labels = digits(np.arange(0, 1078), 4, 1, size)
    runner = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = np.concatenate([runner.run(None, {"x": images[at : at + 64]})[0] for at in range(0, len(images), 64)])
    middle, spread = found.mean(axis=0), found.std(axis=0) + 1e-9
    features = ((found - middle) / spread).astype(np.float64)
    left, sizes, right = np.linalg.svd(features, full_matrices=False)
    shrunk = sizes / (np.square(sizes) + RIDGE * sizes[0] ** 2)
    fitted = right.T @ (shrunk[:, None] * (left.T @ (np.eye(10)[labels] - 0.1))) / spread[:, None]
    weights = fitted.astype(np.float32), (-middle @ fitted).astype(np.float32)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.initializer.append(numpy_helper.from_array(weights[0], "readout.weight"))
    made.graph.initializer.append(numpy_helper.from_array(weights[1], "readout.bias"))
    made.graph.node.append(
        helper.make_node("Gemm", ["y", "readout.weight", "readout.bias"], ["classes"], name="readout")
    )
    del made.graph.output[:]
    made.graph.output.append(helper.make_tensor_value_info("classes", onnx.TensorProto.FLOAT, ["n", 10]))
    return made


def recipe_of(name: str, folder: Path, size: int) -> Recipe:
    """Write a network and its data and return the recipe."""
    model, labelled = exported(name, size), name in CLASSES
    images, labels = digits(np.arange(1078, 1797), COPIES if labelled else 1, 2, size)
    if labelled:
        model = with_readout(model, size)
    onnx.save(model, folder / f"{name}.onnx")
    data: Mapping[str, np.ndarray] = {"x": images, **({"labels": labels} if labelled else {})}
    np.savez(folder / f"{name}.npz", **data)  # type: ignore[arg-type]
    output = model.graph.output[0]
    shape = [item.dim_value for item in output.type.tensor_type.shape.dim][1:]
    return parse({
        "name": name,
        "model": {
            "source": str(folder / f"{name}.onnx"),
            "inputs": [{"name": "x", "dtype": "fp32", "shape": [3, size, size]}],
            "outputs": [{"name": output.name, "dtype": "fp32", "shape": shape}],
        },
        "data": {"source": str(folder / f"{name}.npz"), "calibration": 128, "test": 0.4, "validation": 0.5},
        "quantize": {"keep": "all", "layers": [{"precision": "int8"}]},
        "repository": {"max_batch_size": BATCH},
        "measure": {"task": "classification" if labelled else "other"},
    })  # fmt: skip


def built(recipe: Recipe, folder: Path, search: SearchSpec | None = None) -> BuildResult:
    """Build a recipe, whatever departs."""
    return build(
        BuildOptions(
            recipe=recipe, work=folder / "build", repository=folder / "repository", target="onnxruntime",
            accept_departure=True, search=search,
        )
    )  # fmt: skip


def measure(name: str, folder: Path, size: int, max_drop: float, budget_s: float, seconds: float) -> dict[str, Any]:
    """Search one network and measure what came of it."""
    recipe = recipe_of(name, folder, size)
    started = time.monotonic()
    found = built(recipe, folder / "searched", search=SearchSpec(max_drop=max_drop, budget_s=budget_s))
    took = time.monotonic() - started
    plain = lambda rules: dataclasses.replace(recipe, quantize=QuantizeSpec(keep="all", layers=rules))  # noqa: E731
    forms = {
        "fp32": built(plain(()), folder / "fp32"),
        "int8": built(plain((LayerRule(precision="int8"),)), folder / "int8"),
        "searched": found,
    }
    images = {"x": np.load(folder / f"{name}.npz")["x"]}
    feeds = {count: {"x": images["x"][:count]} for count in (1, BATCH)}
    timer = Timer(forms["fp32"].engine.model, feeds, seconds=seconds)
    speed = {kind: timer.against(forms[kind].engine.model) for kind in ("int8", "searched")}
    direct = Timer(forms["int8"].engine.model, feeds, seconds=seconds).against(forms["searched"].engine.model)
    layers = found.engine.layers
    return {
        "network": name,
        "labelled": name in CLASSES,
        "layers": len(layers),
        "int8_layers": sum(item.precision == "int8" for item in layers),
        "top1": {kind: _top1(item) for kind, item in forms.items()},
        "sqnr_db": {kind: _sqnr(item) for kind, item in forms.items() if kind != "fp32"},
        "p_value": _p_value(forms["fp32"], found) if name in CLASSES else None,
        "test_samples": found.engine.accuracy[-1].samples,
        "over_fp32": {kind: [_row(item) for item in rows] for kind, rows in speed.items()},
        "over_int8": [_row(item) for item in direct],
        "tried": [
            {"what": row.what, "speedup": [round(item.speedup, 3) for item in row.speed], "fits": row.fits,
             "points": None if row.drop is None else round(row.drop.points, 3), "sqnr_db": row.sqnr_db,
             "size_bytes": row.size_bytes, "front": row.front, "chosen": row.chosen}
            for row in found.engine.details.tried
        ],
        "search_s": round(took, 1),
    }  # fmt: skip


def _row(row: SpeedRecord) -> dict[str, Any]:
    ends = [round(item, 3) for item in (row.low, row.high) if item is not None]
    return {"batch": row.batch_size, "speedup": round(row.speedup, 3), "interval": ends}


def _top1(result: BuildResult) -> float | None:
    return result.engine.accuracy[-1].top1


def _sqnr(result: BuildResult) -> float | None:
    """Return the least signal to noise of an output against the fp32 graph, on the test split."""
    forms = {item.form: item for item in result.engine.accuracy}
    return forms["placed"].sqnr_db


def _p_value(exact: BuildResult, other: BuildResult) -> float:
    right = []
    for result in (exact, other):
        with np.load(result.engine.path / "outputs.npz") as saved:
            right.append(saved["engine/classes"].argmax(axis=1))
    from repo_builder import datasets

    recipe = exact.engine.recipe
    labels = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed).split("test").labels
    one, two = right[0] == labels, right[1] == labels
    return mcnemar(int((one & ~two).sum()), int((~one & two).sum()))


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its bars."""
    top1 = row["top1"]
    points = {kind: None if top1["fp32"] is None else 100 * (top1["fp32"] - top1[kind]) for kind in top1}
    mean = {kind: float(np.exp(np.mean([np.log(item["speedup"]) for item in rows]))) for kind, rows in
            (("int8", row["over_fp32"]["int8"]), ("searched", row["over_fp32"]["searched"]),
             ("over_int8", row["over_int8"]))}  # fmt: skip
    int8_fits = points["int8"] <= WITHIN if row["labelled"] else row["tried"][1]["fits"]
    hard = mean["int8"] < 1 or (points["int8"] > 1 if row["labelled"] else not int8_fits)
    fallen = points["searched"]
    bars = {
        "not slower than fp32": mean["searched"] >= 1 / NOISE,
        "not slower than all in int8": not int8_fits or mean["over_int8"] >= 1 / NOISE,
        "within the limit on the test split": fallen is None or fallen <= WITHIN or row["p_value"] >= 0.05,
        "1.3 times as fast where int8 fails": not hard or mean["searched"] >= LEAST,
    }
    kept = {kind: None if value is None else round(value, 3) for kind, value in points.items()}
    return {**row, "points_lost": kept, "mean_speedup": {k: round(v, 3) for k, v in mean.items()}, "hard": hard,
            "bars": bars}  # fmt: skip


def main() -> int:
    """Measure what the command line names; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=[*CLASSES, *DENSE])
    parser.add_argument("--size", type=int, default=SIZE, help="height and width of images")
    parser.add_argument("--max-drop", type=float, default=WITHIN)
    parser.add_argument("--budget", type=float, default=240, help="seconds of measuring a network")
    parser.add_argument("--seconds", type=float, default=0.5, help="CPU time a form and batch size in the end")
    parser.add_argument("--work", type=Path, help="a folder that is kept")
    parser.add_argument("--out", type=Path, help="add the rows to this file")
    asked = parser.parse_args()
    rows: dict[str, Any] = {}
    if asked.out and asked.out.exists():
        rows = {row["network"]: row for row in json.loads(asked.out.read_text(encoding="utf-8"))["networks"]}
    for name in asked.networks:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (asked.work or Path(scratch)) / name
            folder.mkdir(parents=True, exist_ok=True)
            row = judged(measure(name, folder, asked.size, asked.max_drop, asked.budget, asked.seconds))
        rows[name] = row
        missed = [bar for bar, held in row["bars"].items() if not held]
        sys.stderr.write(
            f"{name}: int8 {row['mean_speedup']['int8']:.2f}×, searched {row['mean_speedup']['searched']:.2f}×; "
            f"points lost {row['points_lost']}; dB {row['sqnr_db']}; {row['int8_layers']} of {row['layers']} int8; "
            f"missed: {missed}\n"
        )
        if asked.out:
            order = [item for item in NETWORKS if item in rows]
            result = {
                "size": asked.size, "max_drop": asked.max_drop, "budget_s": asked.budget, "hardware": hardware(),
                "networks": [rows[item] for item in order],
            }  # fmt: skip
            asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(any(not all(rows[name]["bars"].values()) for name in asked.networks))


if __name__ == "__main__":
    sys.exit(main())
