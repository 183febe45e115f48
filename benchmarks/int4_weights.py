"""int4 weights on ONNX Runtime's CPU: fp32, int8 and forms of int4 in turns, on MiniLM and on seeded networks.

    .venv/bin/python benchmarks/int4_weights.py --out benchmarks/results/int4_weights.json [NETWORK ...]

``minilm`` is all-MiniLM-L6-v2 of the zoo on real sentences (make zoo, or examples/zoo/make_data.py, lays it out under
build/zoo); the others are those of ``zoo_networks.py``. Every linear layer is asked to be int8 (calibrator max) or
int4, placed for onnxruntime-cpu and, for int4, written with MatMulNBits as ``build`` does. Sessions run on one thread,
in turns, and what counts is CPU time of the process; a ratio is the median over rounds of the ratios within a round.
What is fast depends on how many rows a product has, so networks are timed at several sizes: batch x tokens. Signal to
noise is that of the outputs against fp32 on samples that did not calibrate; MiniLM is judged by its task, too:
sentences whose nearest other sentence is the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from cpu_zoo import data, exported, hardware, in_turns, session, sqnr_db

from repo_builder.compile.onnxruntime import nbits
from repo_builder.core import onnx_files
from repo_builder.core.recipe import LayerRule, QuantizeSpec, WeightQuantizer
from repo_builder.quantize.calibrate import calibrate
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.placement import PROFILES, place
from repo_builder.quantize.prepare import prepare
from repo_builder.quantize.rules import plan

ROOT = Path(__file__).resolve().parents[1]
Feeds = Mapping[str, np.ndarray]
CALIBRATION = 32
_IMAGE = 224


@dataclass(frozen=True, kw_only=True)
class Form:
    """What linear layers are to be, and what products with int4 weights are computed in."""

    precision: Literal["int8", "int4"]
    weight: WeightQuantizer = field(default_factory=WeightQuantizer)
    compute: Literal["int8", "fp32"] = "int8"


FORMS = {
    "int8": Form(precision="int8"),
    "int4": Form(precision="int4"),
    "int4 symmetric": Form(precision="int4", weight=WeightQuantizer(symmetric=True)),
    "int4 mse": Form(precision="int4", weight=WeightQuantizer(calibrator="mse")),
    "int4 gptq": Form(precision="int4", weight=WeightQuantizer(calibrator="gptq")),
    "int4 block 128": Form(precision="int4", weight=WeightQuantizer(block=128)),
    "int4 in fp32": Form(precision="int4", compute="fp32"),
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network and its samples, calibration first."""

    model: onnx.ModelProto
    samples: Feeds
    timed: Mapping[str, Feeds]


def minilm() -> Subject:
    """Return MiniLM on the zoo's sentences, timed on one short, one padded and a batch of them."""
    folder = ROOT / "build" / "zoo"
    try:
        model = prepare(onnx_files.load(folder / "models" / "minilm.onnx"))
        with np.load(folder / "data" / "minilm.npz") as saved:
            samples = {name: saved[name] for name in ("input_ids", "attention_mask")}
    except FileNotFoundError as error:
        raise SystemExit(
            f"{error.filename} is not there: make zoo, or examples/zoo/make_data.py, lays it out"
        ) from None
    cut = lambda count, tokens: {name: value[:count, :tokens] for name, value in samples.items()}  # noqa: E731
    tokens = samples["input_ids"].shape[1]
    sizes = ((1, 1), (1, 8), (1, tokens), (16, tokens))
    return Subject(model=model, samples=samples, timed={f"{n} x {length}": cut(n, length) for n, length in sizes})


def seeded(name: str) -> Subject:
    """Return a network of ``zoo_networks.py`` on made-up samples."""
    held = data(name, _IMAGE, CALIBRATION + 16, 5)
    timed = {f"{count}": {"x": held[:count]} for count in (1, 8)}
    if held.ndim == 2:
        timed = {
            f"{n} x {length}": {"x": held[:n, :length]}
            for n, length in ((1, 1), (1, 8), (1, held.shape[1]), (8, held.shape[1]))
        }
    return Subject(model=exported(name, _IMAGE), samples={"x": held}, timed=timed)


def made(subject: Subject, form: Form) -> tuple[onnx.ModelProto, float]:
    """Return the network in a form, and the seconds that finding and placing it took."""
    started = time.perf_counter()
    rules = (LayerRule(type="Linear", precision=form.precision, weight=form.weight),)
    spec = QuantizeSpec(layers=rules, batch_size=16)
    plans = plan(list(find_layers(subject.model)), spec)
    samples = {name: value[:CALIBRATION] for name, value in subject.samples.items()}
    ranges, _, _ = calibrate(subject.model, plans, spec, samples)
    placed = place(subject.model, plans, ranges, PROFILES["onnxruntime-cpu"])
    left = [item.name for item in placed.layers if item.placed != item.asked]
    if left:
        raise SystemExit(f"{', '.join(left)} did not become {form.precision}")
    model = nbits.lowered(placed.model, form.compute) if form.precision == "int4" else placed.model
    return model, time.perf_counter() - started

    return time.perf_counter()


def same_neighbour(exact: np.ndarray, found: np.ndarray) -> float:
    """Return the fraction of sentences whose nearest other sentence is the same."""
    nearest = []
    for vectors in (exact, found):
        closeness = vectors @ vectors.T
        np.fill_diagonal(closeness, -np.inf)
        nearest.append(closeness.argmax(1))
    return float((nearest[0] == nearest[1]).mean())


def measure(name: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure one network."""
    subject = minilm() if name == "minilm" else seeded(name)
    built = {form: made(subject, item) for form, item in FORMS.items()}
    models = {"fp32": subject.model, **{form: model for form, (model, _) in built.items()}}
    sessions = {form: session(model) for form, model in models.items()}
    held = {key: value[CALIBRATION:] for key, value in subject.samples.items()}
    size = len(next(iter(held.values())))
    outputs = {
        form: np.concatenate([
            runner.run(None, {key: value[start : start + 16] for key, value in held.items()})[0]
            for start in range(0, size, 16)
        ])
        for form, runner in sessions.items()
    }  # fmt: skip
    rows: dict[str, dict[str, Any]] = {
        form: {"bytes": model.ByteSize(), "cpu_us": {}, "over_fp32": {}} for form, model in models.items()
    }
    for form, (_, took) in built.items():
        rows[form]["made_in_s"] = round(took, 2)
        rows[form]["sqnr_db"] = round(sqnr_db([outputs["fp32"]], [outputs[form]]), 2)
        if name == "minilm":
            rows[form]["same_neighbour"] = round(same_neighbour(outputs["fp32"], outputs[form]), 4)
    for what, taken in in_turns(models, subject.timed, rounds, seconds).items():
        for form, values in taken.items():
            rows[form]["cpu_us"][what] = round(statistics.median(values) * 1e6, 1)
            ratios = [x / y for x, y in zip(taken["fp32"], values, strict=True)]
            rows[form]["over_fp32"][what] = round(statistics.median(ratios), 3)
    return {"network": name, "held_out": size, "forms": rows}


def show(row: Mapping[str, Any]) -> None:
    """Print a network's figures as a table."""
    sizes = list(row["forms"]["fp32"]["cpu_us"])
    print(f"{row['network']}, times as fast as fp32 at {', '.join(sizes)}", flush=True)
    for form, item in row["forms"].items():
        speeds = "  ".join(f"{item['over_fp32'][size]:6.2f}" for size in sizes)
        kept = f"{item['sqnr_db']:6.1f} dB" if "sqnr_db" in item else ""
        task = f"  same neighbour {item['same_neighbour']:.3f}" if "same_neighbour" in item else ""
        print(f"  {form:16} {item['bytes'] / 1e6:8.1f} MB  {speeds}  {kept}{task}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=["minilm", "bert_small", "vit_small"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="CPU time of one turn")
    parser.add_argument("--out", type=Path, help="write the result to this file")
    asked = parser.parse_args(arguments)
    rows = []
    for name in asked.networks:
        rows.append(measure(name, asked.rounds, asked.seconds))
        show(rows[-1])
    if asked.out:
        asked.out.write_text(json.dumps({"hardware": hardware(), "networks": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
