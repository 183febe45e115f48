"""What each repair of int8 gives back, alone and together, where plain calibration loses.

    .venv/bin/python benchmarks/ptq_repairs.py --data-dir FOLDER --out benchmarks/results/ptq_repairs.json [NETWORK ...]

FOLDER holds CIFAR-10's .bin files, for the depthwise network, which is trained once (``mobile_net.py``), a few minutes.
MiniLM wants ``examples/zoo/make_data.py`` before. Networks:

- ``mobile``            MobileNetV2-like, ReLU6, every channel of a weight with a scale of its own
- ``mobile_tensor``     the same with one scale a weight, as runtimes without per-channel scales take it
- ``mobile_scaled``     ReLU for ReLU6, and the channels between layers scaled by e^N(0, 1.5), which changes nothing
                        of what it computes: channels as unequal as long-trained networks have them
- ``mobile_scaled_tensor``  that with one scale a weight
- ``minilm``            all-MiniLM-L6-v2, all linear layers

Each is placed for ONNX Runtime on the CPU with every layer in int8, and runs with optimizations off on samples that
calibration has not seen. Told is the lowest signal to noise of an output against the network in fp32, and the task: the
share of images in their class, or of sentences whose nearest other sentence is that in fp32. A repair alone is kept
whatever it does; together, what helps is.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from repo_builder import datasets
from repo_builder.core import environment
from repo_builder.core.recipe import InputQuantizer, LayerRule, QuantizeSpec, Recipe, RepairSpec, WeightQuantizer
from repo_builder.quantize import plan, repair
from repo_builder.quantize.calibrate import calibrate
from repo_builder.quantize.judge import Judge, parts
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.placement import PROFILES, place
from repo_builder.quantize.placement.index import Index
from repo_builder.quantize.prepare import prepare
from repo_builder.quantize.ranges import Observed, Ranges
from repo_builder.quantize.repair.chains import pairs
from repo_builder.quantize.repair.linear import Editor, layers

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "ptq"
Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
EPOCHS, SEED, CALIBRATION, TESTED = 4, 0, 256, 4000
_MEAN, _STD = np.array([0.4914, 0.4822, 0.4465], np.float32), np.array([0.2470, 0.2435, 0.2616], np.float32)
# what a row asks for: the repairs, and the calibrator of inputs and weights
ROWS: dict[str, tuple[RepairSpec, str]] = {
    "plain": (RepairSpec(), "max"),
    "equalize": (RepairSpec(equalize=True, relu6="relu", keep="all"), "max"),
    "smooth": (RepairSpec(smooth=0.5, keep="all"), "max"),
    "rounding": (RepairSpec(rounding="adaptive", keep="all"), "max"),
    "correct_bias": (RepairSpec(correct_bias=True, keep="all"), "max"),
    "best": (RepairSpec(), "best"),
    "together": (RepairSpec(equalize=True, relu6="relu", smooth=0.5, rounding="adaptive", correct_bias=True), "max"),
    "together, best": (
        RepairSpec(equalize=True, relu6="relu", smooth=0.5, rounding="adaptive", correct_bias=True),
        "best",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network with its data.

    Attributes:
        model: The fp32 graph.
        calibration: Samples to calibrate on.
        test: Samples to judge by.
        task: What the task's score is.
        score: Outputs of a form, and those in fp32 → the score.
        per_channel: Whether channels of a weight have scales of their own.
        kind: The type of the layers that are int8.
        batch_size: Samples of a run.
    """

    model: onnx.ModelProto
    calibration: Feeds
    test: Feeds
    task: str
    score: Callable[[Array, Array], float]
    per_channel: bool = True
    kind: str = "*"
    batch_size: int = 64


def cifar(folder: Path) -> tuple[Array, Array, Array, Array]:
    """Return training images and labels, and test ones: float32 (n, 3, 32, 32) normalised, int64 (n,)."""

    def read(paths: list[Path]) -> tuple[Array, Array]:
        rows = np.concatenate([np.fromfile(path, np.uint8).reshape(-1, 3073) for path in paths])
        images = rows[:, 1:].reshape(-1, 3, 32, 32).astype(np.float32) / 255
        return (images - _MEAN[:, None, None]) / _STD[:, None, None], rows[:, 0].astype(np.int64)

    place_of = folder / "cifar-10-batches-bin"
    place_of = place_of if place_of.is_dir() else folder
    return (*read(sorted(place_of.glob("data_batch_*.bin"))), *read([place_of / "test_batch.bin"]))


def mobile(folder: Path, *, scaled: bool, per_channel: bool) -> Network:
    """Return the depthwise network in one of its forms."""
    import mobile_net

    images, labels, held_out, truth = cifar(folder)
    model = prepare(mobile_net.exported(images, labels, WORK / "mobile.safetensors", epochs=EPOCHS, seed=SEED))
    chosen = np.random.default_rng(SEED).choice(len(images), CALIBRATION, replace=False)
    return Network(
        model=badly_scaled(model) if scaled else model,
        calibration={"image": images[chosen]},
        test={"image": held_out[:TESTED]},
        task="top-1",
        score=lambda found, _: float((found.argmax(1) == truth[:TESTED]).mean()),
        per_channel=per_channel,
    )


def badly_scaled(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a network with ReLU for ReLU6 that computes what it did, its channels between layers of unequal sizes."""
    for node in model.graph.node:
        if node.op_type == "Clip":
            node.op_type = "Relu"
            del node.input[1:]
    index = Index(model)
    spec = QuantizeSpec(layers=(LayerRule(precision="int8"),))
    known = layers(index, plan(list(find_layers(model)), spec))
    editor, draw = Editor(index), np.random.default_rng(SEED)
    weights = {place_of: layer.weight.astype(np.float64) for place_of, layer in known.items()}
    for pair in pairs(index, known):
        factors = np.exp(draw.normal(0, 1.5, pair.first.outputs))
        weights[pair.first.place] *= pair.first.along_outputs(factors)
        weights[pair.second.place] /= pair.second.along_inputs(np.repeat(factors, pair.repeats))
        bias = index.value(pair.first.node.input[2])
        if bias is not None:
            editor.give(pair.first.place, 2, bias * factors, "scaled_bias")
    for place_of, weight in weights.items():
        editor.give(place_of, 1, weight, "scaled")
    return editor.done()


def minilm(_folder: Path) -> Network:
    """Return MiniLM with its sentences."""
    zoo = ROOT / "build/zoo"
    places = [f"model.source={zoo}/models/minilm.onnx", f"data.source={zoo}/data/minilm.npz"]
    recipe = Recipe.load(ROOT / "examples/zoo/minilm.toml", places)
    data = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed, data_dir=None)

    def nearest(vectors: Array) -> Array:
        closeness = vectors @ vectors.T
        np.fill_diagonal(closeness, -np.inf)
        return np.asarray(closeness.argmax(1))

    return Network(
        model=prepare(onnx.load(recipe.model.source)),
        calibration=data.split("calibration").inputs,
        test=data.split("test").inputs,
        task="same nearest neighbour",
        score=lambda found, exact: float((nearest(found) == nearest(exact)).mean()),
        kind="Linear",
        batch_size=16,
    )


NETWORKS: dict[str, Callable[[Path], Network]] = {
    "mobile": lambda folder: mobile(folder, scaled=False, per_channel=True),
    "mobile_tensor": lambda folder: mobile(folder, scaled=False, per_channel=False),
    "mobile_scaled": lambda folder: mobile(folder, scaled=True, per_channel=True),
    "mobile_scaled_tensor": lambda folder: mobile(folder, scaled=True, per_channel=False),
    "minilm": minilm,
}


def outputs(model: onnx.ModelProto, network: Network) -> Array:
    """Return the first output on the test samples, optimizations off: Q/DQ as they are written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    count, size = len(next(iter(network.test.values()))), network.batch_size
    batches = (
        {name: value[start : start + size] for name, value in network.test.items()} for start in range(0, count, size)
    )
    return np.concatenate([session.run(None, batch)[0] for batch in batches])


def measured(network: Network, name: str, exact: Array) -> dict[str, Any]:
    """Quantize a network as a row says, and return the row's figures."""
    asked, calibrator = ROWS[name]
    rule = LayerRule(
        type=network.kind,
        precision="int8",
        input=InputQuantizer(calibrator=calibrator),
        weight=WeightQuantizer(calibrator=calibrator, per_channel=network.per_channel),
    )
    spec = QuantizeSpec(layers=(rule,), repair=asked, batch_size=network.batch_size)
    plans = plan(list(find_layers(network.model)), spec)
    profile = PROFILES["onnxruntime-cpu"]
    started = time.perf_counter()

    def found(model: onnx.ModelProto) -> tuple[Ranges, Observed]:
        made, seen, _ = calibrate(model, plans, spec, network.calibration)
        return made, seen

    ranges, seen = found(network.model)
    state, records = repair.State(model=network.model, ranges=ranges, seen=seen), ()
    if asked.asked:
        fits, judges = parts(network.model, network.calibration)
        work = repair.Work(plans=plans, spec=spec, samples=fits, profile=profile, seed=SEED, calibrate=found)
        judge = Judge(network.model, judges, batch_size=network.batch_size)
        state, records = repair.repaired(state, work, judge)
    seconds = time.perf_counter() - started
    made = outputs(place(state.model, plans, state.ranges, profile).model, network)
    noise = np.square(made.astype(np.float64) - exact).sum()
    said = [state.seen.record] if state.seen.record else []
    return {
        "row": name,
        "output_db": round(float(10 * np.log10(np.square(exact.astype(np.float64)).sum() / noise)), 2),
        "score": round(network.score(made, exact), 4),
        "kept": [item.name for item in records if item.kept],
        "said": [str(item) for item in (*said, *records)],
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measure, and write the figures after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--data-dir", type=Path, default=Path(), help="folder of CIFAR-10's .bin files")
    parser.add_argument("--out", type=Path, required=True, help="file of the figures; other networks' stay in it")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS), help="measure these; others stay")
    parser.add_argument("--table", action="store_true", help="print the figures that are there, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table(options.out))
        return
    for name in options.networks:
        network = NETWORKS[name](options.data_dir)
        exact = outputs(network.model, network)
        fp32 = network.score(exact, exact)
        rows = {row["row"]: row for row in _known(options.out, name) if row["row"] not in options.rows}
        for row in options.rows:
            found = measured(network, row, exact)
            rows[row] = found
            _write(
                options.out,
                name,
                {"task": network.task, "fp32": round(fp32, 4), "rows": [rows[key] for key in ROWS if key in rows]},
            )
            print(
                f"{name:22} {row:15} {found['output_db']:6.2f} dB  {network.task} {found['score']:.4f} of {fp32:.4f}",
                flush=True,
            )


def table(path: Path) -> str:
    """Return the figures as Markdown: a row a repair, a column a network."""
    known = json.loads(path.read_text(encoding="utf-8"))["networks"]
    heads = [f"{name}, {item['task']} {100 * item['fp32']:.1f} % in fp32" for name, item in known.items()]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row in ROWS:
        cells = []
        for item in known.values():
            found = next((one for one in item["rows"] if one["row"] == row), None)
            cells.append(f"{found['output_db']:.1f} dB, {100 * found['score']:.1f} %" if found else "not run")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _known(path: Path, name: str) -> list[dict[str, Any]]:
    """Return the rows of a network that are there."""
    known = json.loads(path.read_text(encoding="utf-8"))["networks"] if path.is_file() else {}
    found: list[dict[str, Any]] = known.get(name, {}).get("rows", [])
    return found


def _write(path: Path, name: str, figures: dict[str, Any]) -> None:
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"networks": {}}
    known |= {"date": date.today().isoformat(), "environment": environment.describe()}
    known["networks"] = {key: item for key, item in (known["networks"] | {name: figures}).items() if key in NETWORKS}
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
