"""``build --search`` on the zoo's networks: speed and accuracy beside all in fp32, in fp16 on TensorRT, and in int8.

    .venv/bin/python benchmarks/precision_search.py --out benchmarks/results/precision_search.json [NETWORK ...]
    ... --make FOLDER [NETWORK ...]                      # under a Python with torch: writes the networks alone
    ... --work FOLDER --target tensorrt --out FILE ...   # where the GPU is: needs no torch then
    ... --again FILE [FILE ...]        # says rows anew by their own numbers, all into the first; measures nothing

Networks are those of ``search_networks.py``. Points are points of top-1 by labels, on ``--test`` images that neither
the readout nor the search saw. unet and yolov8n have no classes: they are held to the recipe's signal to noise.

A network is searched with ``keep = "all"`` and one int8 rule for every layer as its recipe. Then fp32, fp16 where the
target has it, all in int8 and what the search wrote are timed in turns (CPU time of one thread, or the GPU's own
clock), and each is scored on the same images. The bars, of which only these measurements decide who falls under them:

- never slower than fp32 and fp16, nor than all in int8 where that keeps the limit, beyond 2 %;
- at most 0.3 points lost, as measured. A loss over the limit misses this bar whatever chance may have to do with it;
  ``p_excess_is_chance`` beside it is the chance of as large a loss where the true one is the limit (one-sided);
- where all in int8 drops more than a point or is slower than fp32 (``hard``): at least 1.3 times as fast as fp32, on
  TensorRT as fp16, as the geometric mean over batch sizes.

A network's row is written when it is done; what was measured stays in ``--work``, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from search_networks import CLASSES, DENSE, judging, made, raw_digits, recipe_of

from repo_builder.compile import CompileTarget, timed
from repo_builder.core import environment
from repo_builder.core.details import SpeedRecord
from repo_builder.core.recipe import LayerRule, QuantizeSpec, Recipe, SearchSpec
from repo_builder.flows.build import BuildOptions, BuildResult, build, compiling, running
from repo_builder.measure.judge.baseline import mcnemar

LEFT_OUT = frozenset({"resnet50"})  # unless it is named: resnet18 tells the same in a fifth of the time
SIZE, BATCH, TEST = 96, 8, 16384
LEAST, WITHIN, NOISE = 1.3, 0.3, 1.02
_LIMIT_BAR = f"at most {WITHIN} points lost on the test images, as measured"


def measure(name: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Search one network and measure what came of it."""
    recipe = recipe_of(name, folder, asked.size, asked.batch)
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
    scores = scored(target, forms, folder, asked) if name in CLASSES else {}
    layers, tried = found.engine.layers, found.engine.details.tried
    return {
        "network": name,
        "target": target.name,
        "clock": target.clock,
        "labelled": name in CLASSES,
        "layers": len(layers),
        "int8_layers": sum(item.precision == "int8" for item in layers),
        "top1": {kind: scores[kind]["top1"] if scores else None for kind in forms},
        "changed": {kind: item["changed"] for kind, item in scores.items() if kind != "fp32"},
        "sqnr_db": {kind: _sqnr(item) for kind, item in forms.items() if kind != "fp32"},
        "p_value": mcnemar(*scores["searched"]["changed"]) if scores else None,
        "test_samples": asked.test if scores else found.engine.accuracy[-1].samples,
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
        inputs = {"x": data["x"][: recipe.repository.max_batch_size]}
    feeds = timed.feeds(batches, inputs, most=recipe.repository.max_batch_size)
    found: dict[str, dict[str, tuple[SpeedRecord, ...]]] = {"searched": {}, "int8": {}}
    for kind, rows in found.items():
        for other in [item for item in forms if item not in (kind, "searched")]:
            pair = [forms[item].engine.model for item in (other, kind)]
            rows[other] = target.in_turns(*pair, feeds, seconds=seconds)
    return found


def _row(row: SpeedRecord) -> dict[str, Any]:
    ends = [round(item, 3) for item in (row.low, row.high) if item is not None]
    return {"batch": row.batch_size, "speedup": round(row.speedup, 3), "interval": ends}


def _sqnr(result: BuildResult) -> float | None:
    """Return the least signal to noise of an output against the fp32 graph, on the test split."""
    forms = {item.form: item for item in result.engine.accuracy}
    return forms["placed"].sqnr_db


def scored(
    target: CompileTarget, forms: Mapping[str, BuildResult], folder: Path, asked: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Return each form's top-1 on images that are drawn for it, and how many fp32 alone has right, and it alone."""
    right: dict[str, list[np.ndarray]] = {kind: [] for kind in forms}
    engine = forms["fp32"].engine
    batches = running.batches_of(forms["fp32"].exported.model, engine.inputs, engine.outputs)
    with contextlib.ExitStack() as stack:
        runners = {
            kind: stack.enter_context(target.runner(item.engine.model, item.engine.details))
            for kind, item in forms.items()
        }
        for images, labels in judging(raw_digits(folder), asked.test, asked.size):
            for kind, runner in runners.items():
                found = running.run(runner, batches, {"x": images})[engine.outputs[0].name]
                right[kind].append(found.argmax(axis=1) == labels)
    whole = {kind: np.concatenate(parts) for kind, parts in right.items()}
    exact = whole["fp32"]
    return {
        kind: {"top1": float(item.mean()), "changed": [int((exact & ~item).sum()), int((~exact & item).sum())]}
        for kind, item in whole.items()
    }


def chance(lost: int, won: int, count: int, limit: float) -> float:
    """Return the chance of a loss at least as large where the true one is the limit (one-sided, Wald).

    Args:
        lost: Samples that fp32 alone has right.
        won: Samples that the other alone has right.
        count: Samples.
        limit: Points.
    """
    net = lost - won
    spread = math.sqrt(max(lost + won - net**2 / count, 1.0))
    return math.erfc((net - limit / 100 * count) / spread / math.sqrt(2)) / 2


def changed_of(net: int, p_value: float) -> tuple[int, int] | None:
    """Return which (lost, won) with a difference give a McNemar p-value; None where none does to ten digits.

    Of one difference the p-value grows with the number that changed, so that there is one such pair at most.
    """
    for won in range(100_000):
        lost, fewer = (won + net, won) if net >= 0 else (won, won - net)
        found = mcnemar(lost, fewer)
        if math.isclose(found, p_value, rel_tol=1e-10):
            return lost, fewer
        if found > p_value:
            return None
    return None


def again(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of an earlier form of this script as this one says it, by its own numbers alone."""
    row = {**row, "tried": [dict(item) for item in row["tried"]]}
    for item in row["tried"]:
        if item["points"] is None and item["sqnr_db"] is None:  # never looked at
            item["fits"] = None
    if "changed" not in row:
        net = row["labelled"] and round((row["top1"]["fp32"] - row["top1"]["searched"]) * row["test_samples"])
        found = changed_of(net, row["p_value"]) if row["labelled"] else None
        row["changed"] = {"searched": list(found)} if found else {}
    row["bars"] = {}
    return judged(row)


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its bars."""
    top1, changed = row["top1"], row["changed"].get("searched")
    points = {kind: None if top1["fp32"] is None else 100 * (top1["fp32"] - top1[kind]) for kind in top1}
    over = {kind: _mean(rows) for kind, rows in row["searched_over"].items()}
    int8_over = {kind: _mean(rows) for kind, rows in row["int8_over"].items()}
    floor = "fp16" if "fp16" in over else "fp32"
    int8_fits = points["int8"] <= WITHIN if row["labelled"] else bool(row["int8_fits"])
    hard = int8_over[floor] < 1 or (points["int8"] > 1 if row["labelled"] else not int8_fits)
    bars = {f"not slower than {kind}": over[kind] >= 1 / NOISE for kind in over if kind != "int8"}
    bars |= {
        "not slower than all in int8": not int8_fits or over["int8"] >= 1 / NOISE,
        f"{LEAST} times as fast as {floor} where int8 fails": not hard or over[floor] >= LEAST,
    }
    if points["searched"] is not None:
        bars[_LIMIT_BAR] = points["searched"] <= WITHIN + 1e-9
    kept = {kind: None if value is None else round(value, 3) for kind, value in points.items()}
    means = {"searched_over": over, "int8_over": int8_over}
    shown = {name: {kind: round(value, 3) for kind, value in item.items()} for name, item in means.items()}
    p_excess = round(chance(*changed, row["test_samples"], WITHIN), 4) if changed else None
    said = {"points_lost": kept, "p_excess_is_chance": p_excess, "mean_speedup": shown, "hard": hard, "bars": bars}
    return {**row, **said}


def _mean(rows: list[dict[str, Any]]) -> float:
    """Return the geometric mean over batch sizes."""
    return statistics.geometric_mean([item["speedup"] for item in rows])


def main() -> int:
    """Measure what the command line names; exit 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[item for item in (*CLASSES, *DENSE) if item not in LEFT_OUT])
    parser.add_argument("--target", choices=["onnxruntime", "tensorrt"], default="onnxruntime")
    parser.add_argument("--size", type=int, default=SIZE, help="height and width of images")
    parser.add_argument("--batch", type=int, default=BATCH, help="largest batch: it is timed, and 1")
    parser.add_argument("--test", type=int, default=TEST, help="images that judge in the end")
    parser.add_argument("--max-drop", type=float, default=WITHIN)
    parser.add_argument("--budget", type=float, default=60, help="seconds of measuring a network")
    parser.add_argument("--samples", type=int, default=4096, help="most validation samples")
    parser.add_argument("--seconds", type=float, default=0.5, help="time a form and batch size in the end")
    parser.add_argument("--work", type=Path, help="a folder that is kept: a run that was stopped goes on there")
    parser.add_argument("--make", type=Path, help="write networks into this folder's NETWORK, and end")
    parser.add_argument(
        "--again", type=Path, nargs="+", metavar="FILE", help="say rows anew, into the first of the files"
    )
    parser.add_argument("--out", type=Path, help="add the rows to this file")
    asked = parser.parse_args()
    if asked.again:
        read = [json.loads(path.read_text(encoding="utf-8"))["networks"] for path in asked.again]
        _save(asked.again[0], [again(row) for rows in read for row in rows])
        return 0
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
            f"{name}: {row['mean_speedup']}; points lost {row['points_lost']} (p {row['p_excess_is_chance']}); "
            f"dB {row['sqnr_db']}; "
            f"{row['int8_layers']} of {row['layers']} int8; hard: {row['hard']}; missed: {failed}\n"
        )
        if asked.out:
            _write(asked, row)
    return int(missed > 0)


def _write(asked: argparse.Namespace, row: dict[str, Any]) -> None:
    """Put a network's row into the file, in place of an earlier one of the same network and target."""
    kept = json.loads(asked.out.read_text(encoding="utf-8"))["networks"] if asked.out.exists() else []
    row |= {"size": asked.size, "batch": asked.batch, "max_drop": asked.max_drop}
    row |= {"budget_s": asked.budget, "samples": asked.samples}
    _save(asked.out, [*kept, row])


def _save(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, of each network and target the last."""
    found = {(item["target"], item["network"]): item for item in rows}
    order = [*CLASSES, *DENSE]
    found = dict(sorted(found.items(), key=lambda item: (item[0][0], order.index(item[0][1]))))
    hard = sorted(f"{name} ({target})" for (target, name), item in found.items() if item["hard"])
    value = {"hard": hard, "networks": list(found.values())}
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
