"""``build --search`` on the zoo's networks: speed and accuracy beside all in fp32, in fp16 on TensorRT, and in int8.

    .venv/bin/python benchmarks/precision_search.py --out benchmarks/results/precision_search.json [NETWORK ...]
    ... --make FOLDER [NETWORK ...]                      # under a Python with torch: writes networks and data alone
    ... --work FOLDER --target tensorrt --out FILE ...   # where the GPU is: needs no torch then

Networks are those of ``cpu_zoo.py``, with seeded weights, images of 96². Untrained networks have no accuracy of their
own, so that those which end in classes get one that is measured by labels: a linear readout behind the 1000 outputs,
fitted by ridge regression to handwritten digits that the search never sees (three fifths of scikit-learn's, shifted
and scaled), and scored on shifted and scaled copies of the other two fifths. Points are points of top-1 by labels, on a
test split that the search does not look at. unet and yolov8n have no classes: they are held to the recipe's signal to
noise.

A network is searched with ``keep = "all"`` and one int8 rule for every layer as its recipe. Then fp32, fp16 where the
target has it, all in int8 and what the search wrote are timed in turns (CPU time of one thread, or the GPU's own
clock), and each is scored on the test split. The bars, of which only these measurements decide who falls under them:

- never slower than fp32 and fp16, nor than all in int8 where that keeps the limit, beyond 2 %;
- within ``--max-drop`` points (0.3) of fp32 on the test split, or not beyond chance more (McNemar, p < 0.05);
- where all in int8 drops more than a point or is slower than fp32 (``hard``): at least 1.3 times as fast as fp32, on
  TensorRT as fp16.

A network's row is written when it is done; what was measured stays in ``--work``, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from repo_builder import datasets
from repo_builder.compile import CompileTarget, timed
from repo_builder.core import environment
from repo_builder.core.details import SpeedRecord
from repo_builder.core.recipe import LayerRule, QuantizeSpec, Recipe, SearchSpec, parse
from repo_builder.flows.build import BuildOptions, BuildResult, build, compiling, running
from repo_builder.measure.judge.baseline import mcnemar

CLASSES = (
    "mobilenet_v3_small",
    "efficientnet_b0",
    "squeezenet",
    "mobilenet_v2",
    "resnet18",
    "densenet121",
    "vit_small",
    "resnet50",
)
DENSE = ("unet", "yolov8n")
# Copies of each image that nothing but the search and the test split see, and validation samples that it looks at: as
# many as a network's time allows, as a fall of 0.3 points is only seen on thousands.
COPIES = {"mobilenet_v3_small": 10, "squeezenet": 8, "mobilenet_v2": 8, "efficientnet_b0": 8}
FEW_COPIES = 4
LEFT_OUT = frozenset({"resnet50"})  # unless it is named: resnet18 tells the same in a fifth of the time
SIZE, BATCH = 96, 8
RIDGE = 3e-4  # of the largest singular value squared: a readout that lives of no tiny differences
LEAST, WITHIN, NOISE = 1.3, 0.3, 1.02
_DIGITS = "digits.npz"


def raw_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits, from ``digits.npz`` in the folder where scikit-learn is not."""
    if (folder / _DIGITS).exists():
        with np.load(folder / _DIGITS) as kept:
            return kept["values"], kept["labels"]
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    np.savez_compressed(folder / _DIGITS, values=values.astype(np.uint8), labels=labels)
    return values, labels


def digits(
    raw: tuple[np.ndarray, np.ndarray], numbers: np.ndarray, copies: int, seed: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return copies of handwritten digits as images: enlarged, shifted by up to a tenth, channels of different gain."""
    values, labels = raw
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


def with_readout(model: onnx.ModelProto, raw: tuple[np.ndarray, np.ndarray], size: int) -> onnx.ModelProto:
    """Return a network with a linear layer behind its 1000 outputs, fitted to three fifths of the digits."""
    images, labels = digits(raw, np.arange(0, 1078), 4, 1, size)
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


def made(name: str, folder: Path, size: int) -> Path:
    """Write a network and its data, if they are not there; return the network's file."""
    path, labelled = folder / f"{name}.onnx", name in CLASSES
    if not path.exists():
        from cpu_zoo import exported

        folder.mkdir(parents=True, exist_ok=True)
        raw = raw_digits(folder)
        model = exported(name, size)
        images, labels = digits(raw, np.arange(1078, 1797), COPIES.get(name, FEW_COPIES) if labelled else 1, 2, size)
        if labelled:
            model = with_readout(model, raw, size)
        data: Mapping[str, np.ndarray] = {"x": images, **({"labels": labels} if labelled else {})}
        np.savez(folder / f"{name}.npz", **data)  # type: ignore[arg-type]
        onnx.save(model, path)
    return path


def recipe_of(name: str, folder: Path, size: int) -> Recipe:
    """Return the recipe of a network that was made."""
    output = onnx.load(made(name, folder, size)).graph.output[0]
    shape = [item.dim_value for item in output.type.tensor_type.shape.dim][1:]
    profile = {"min_batch": 1, "opt_batch": BATCH, "max_batch": BATCH}  # one: each more costs every trial a build
    return parse({
        "name": name,
        "model": {
            "source": str(folder / f"{name}.onnx"),
            "inputs": [{"name": "x", "dtype": "fp32", "shape": [3, size, size]}],
            "outputs": [{"name": output.name, "dtype": "fp32", "shape": shape}],
        },
        "data": {"source": str(folder / f"{name}.npz"), "calibration": 128, "test": 0.4, "validation": 0.5},
        "quantize": {"keep": "all", "layers": [{"precision": "int8"}]},
        "compile": {"tensorrt": {"profiles": [profile]}},
        "repository": {"max_batch_size": BATCH},
        "measure": {"task": "classification" if name in CLASSES else "other"},
    })  # fmt: skip


def measure(name: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Search one network and measure what came of it."""
    recipe = recipe_of(name, folder, asked.size)
    options = BuildOptions(
        recipe=recipe,
        work=folder / "build",
        repository=folder / "repository",
        target=asked.target,
        accept_departure=True,
        allow_precision_mismatch=asked.target == "tensorrt",
    )
    target, started = compiling.choose(options), time.monotonic()
    spec = SearchSpec(max_drop=asked.max_drop, budget_s=asked.budget, samples=asked.samples)
    found = build(dataclasses.replace(options, search=spec))
    took = time.monotonic() - started

    def plain(form: str, precision: str | None) -> BuildResult:
        rules = (LayerRule(precision=precision),) if precision else ()  # type: ignore[arg-type]
        changed = dataclasses.replace(recipe, name=f"{name}_{form}", quantize=QuantizeSpec(keep="all", layers=rules))
        return build(dataclasses.replace(options, recipe=changed))

    forms = {"fp32": plain("fp32", None)}
    if "fp16" in target.below_fp32(recipe):
        forms["fp16"] = plain("fp16", "fp16")
    forms |= {"int8": plain("int8", "int8"), "searched": found}
    speed = _speeds(target, forms, recipe, asked.seconds)
    layers, tried = found.engine.layers, found.engine.details.tried
    return {
        "network": name,
        "target": target.name,
        "clock": target.clock,
        "labelled": name in CLASSES,
        "layers": len(layers),
        "int8_layers": sum(item.precision == "int8" for item in layers),
        "top1": {kind: _top1(item) for kind, item in forms.items()},
        "sqnr_db": {kind: _sqnr(item) for kind, item in forms.items() if kind != "fp32"},
        "p_value": _p_value(forms["fp32"], found) if name in CLASSES else None,
        "test_samples": found.engine.accuracy[-1].samples,
        "searched_over": {kind: [_row(item) for item in rows] for kind, rows in speed["searched"].items()},
        "int8_over": {kind: [_row(item) for item in rows] for kind, rows in speed["int8"].items()},
        "int8_fits": next((row.fits for row in tried if row.what == "all in int8"), False),
        "tried": [
            {"what": row.what, "speedup": [round(item.speedup, 3) for item in row.speed], "against": row.against,
             "fits": row.fits, "points": None if row.drop is None else round(row.drop.points, 3),
             "sqnr_db": row.sqnr_db, "size_bytes": row.size_bytes, "front": row.front, "chosen": row.chosen}
            for row in tried
        ],
        "search_s": round(took, 1),
        "hardware": environment.describe(),
    }  # fmt: skip


def _speeds(
    target: CompileTarget, forms: Mapping[str, BuildResult], recipe: Recipe, seconds: float
) -> dict[str, dict[str, tuple[SpeedRecord, ...]]]:
    """Time what was found and all in int8 against every other form, in turns."""
    engine = forms["fp32"].engine
    batches = running.batches_of(forms["fp32"].exported.model, engine.inputs, engine.outputs)
    with np.load(recipe.data.source) as data:
        inputs = {"x": data["x"][:BATCH]}
    feeds = timed.feeds(batches, inputs, most=BATCH)
    found: dict[str, dict[str, tuple[SpeedRecord, ...]]] = {"searched": {}, "int8": {}}
    for kind, rows in found.items():
        for other in [item for item in forms if item not in (kind, "searched")]:
            pair = [forms[item].engine.model for item in (other, kind)]
            rows[other] = target.in_turns(*pair, feeds, seconds=seconds)
    return found


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
    recipe = exact.engine.recipe
    labels = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed).split("test").labels
    one, two = right[0] == labels, right[1] == labels
    return mcnemar(int((one & ~two).sum()), int((~one & two).sum()))


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its bars."""
    top1 = row["top1"]
    points = {kind: None if top1["fp32"] is None else 100 * (top1["fp32"] - top1[kind]) for kind in top1}
    over = {kind: _mean(rows) for kind, rows in row["searched_over"].items()}
    int8_over = {kind: _mean(rows) for kind, rows in row["int8_over"].items()}
    floor = "fp16" if "fp16" in over else "fp32"
    int8_fits = points["int8"] <= WITHIN if row["labelled"] else row["int8_fits"]
    hard = int8_over[floor] < 1 or (points["int8"] > 1 if row["labelled"] else not int8_fits)
    fallen = points["searched"]
    bars = {f"not slower than {kind}": over[kind] >= 1 / NOISE for kind in over if kind != "int8"}
    bars |= {
        "not slower than all in int8": not int8_fits or over["int8"] >= 1 / NOISE,
        "within the limit on the test split": fallen is None or fallen <= WITHIN or row["p_value"] >= 0.05,
        f"{LEAST} times as fast as {floor} where int8 fails": not hard or over[floor] >= LEAST,
    }
    kept = {kind: None if value is None else round(value, 3) for kind, value in points.items()}
    means = {"searched_over": over, "int8_over": int8_over}
    shown = {name: {kind: round(value, 3) for kind, value in item.items()} for name, item in means.items()}
    return {**row, "points_lost": kept, "mean_speedup": shown, "hard": hard, "bars": bars}


def _mean(rows: list[dict[str, Any]]) -> float:
    """Return the geometric mean over batch sizes."""
    return statistics.geometric_mean([item["speedup"] for item in rows])


def main() -> int:
    """Measure what the command line names; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[item for item in (*CLASSES, *DENSE) if item not in LEFT_OUT])
    parser.add_argument("--target", choices=["onnxruntime", "tensorrt"], default="onnxruntime")
    parser.add_argument("--size", type=int, default=SIZE, help="height and width of images")
    parser.add_argument("--max-drop", type=float, default=WITHIN)
    parser.add_argument("--budget", type=float, default=60, help="seconds of measuring a network")
    parser.add_argument("--samples", type=int, default=4096, help="most validation samples")
    parser.add_argument("--seconds", type=float, default=0.5, help="time a form and batch size in the end")
    parser.add_argument("--work", type=Path, help="a folder that is kept: a run that was stopped goes on there")
    parser.add_argument("--make", type=Path, help="write networks and data into this folder's NETWORK, and end")
    parser.add_argument("--out", type=Path, help="add the rows to this file")
    asked = parser.parse_args()
    if asked.make:
        for name in asked.networks:
            print(made(name, asked.make / name, asked.size))
        return 0
    missed = 0
    for name in asked.networks:
        with tempfile.TemporaryDirectory() as scratch:
            row = judged(measure(name, asked, (asked.work or Path(scratch)) / name))
        failed = [bar for bar, held in row["bars"].items() if not held]
        missed += bool(failed)
        sys.stderr.write(
            f"{name}: {row['mean_speedup']}; points lost {row['points_lost']}; dB {row['sqnr_db']}; "
            f"{row['int8_layers']} of {row['layers']} int8; hard: {row['hard']}; missed: {failed}\n"
        )
        if asked.out:
            _write(asked, row)
    return int(missed > 0)


def _write(asked: argparse.Namespace, row: dict[str, Any]) -> None:
    """Put a network's row into the file, in place of an earlier one of the same network and target."""
    kept = json.loads(asked.out.read_text(encoding="utf-8"))["networks"] if asked.out.exists() else []
    row |= {"size": asked.size, "max_drop": asked.max_drop, "budget_s": asked.budget, "samples": asked.samples}
    rows = {(item["target"], item["network"]): item for item in [*kept, row]}
    order = [*CLASSES, *DENSE]
    rows = dict(sorted(rows.items(), key=lambda item: (item[0][0], order.index(item[0][1]))))
    hard = sorted(f"{name} ({target})" for (target, name), item in rows.items() if item["hard"])
    value = {"hard": hard, "networks": list(rows.values())}
    asked.out.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
