"""int8 against fp32 in ONNX Runtime on one thread of this CPU, with the accuracy of both.

    repo-builder build vgg --set quantize.keep=all && repo-builder build jsc --set quantize.keep=all
    python benchmarks/onnxruntime_cpu.py vgg jsc --work build --output benchmarks/results/onnxruntime_cpu.json

Both files are timed in turns in one process; a row is the median of five such rounds. The bars are those of the
built-in vgg: at least 1.6 times as fast at batch 1 and 32, top-1 within 0.5 points.
"""

from __future__ import annotations

import datetime
import statistics
from pathlib import Path
from typing import Any

import click

from repo_builder.compile.onnxruntime import speed
from repo_builder.core import artifacts, environment, files
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact

ROUNDS = 5
BATCH_SIZES = (1, 32)
MIN_SPEEDUP = 1.6
MAX_LOSS = 0.005


def measure(folder: Path) -> dict[str, Any]:
    """Time one model's fp32 ONNX and compiled ONNX, and read back what their held-out accuracy was."""
    exported = artifacts.read(OnnxArtifact, folder / "onnx")
    engine = artifacts.read(EngineArtifact, folder / "engine")
    rounds = [
        speed.compare(exported.model, engine.model, exported.inputs, batch_sizes=BATCH_SIZES) for _ in range(ROUNDS)
    ]
    rows = []
    for place, size in enumerate(BATCH_SIZES):
        taken = [one[place] for one in rounds]
        rows.append(
            {
                "batch_size": size,
                "fp32_us": statistics.median(row["reference_us"] for row in taken),
                "int8_us": statistics.median(row["candidate_us"] for row in taken),
                "speedup": statistics.median(row["speedup"] for row in taken),
                "speedups": [row["speedup"] for row in taken],
            }
        )
    accuracy = {item.form: item.top1 for item in engine.accuracy}
    return {
        "model": engine.recipe.name,
        "samples": engine.accuracy[0].samples,
        "top1": accuracy,
        "loss_of_top1": (accuracy["fp32"] or 0) - (accuracy["onnxruntime"] or 0),
        "latency": rows,
    }


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("build"), show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(models: tuple[str, ...], work: Path, output: Path | None) -> None:
    """Print a table for MODELS that repo-builder has built for ONNX Runtime, and check the bars of vgg."""
    measured = [measure(work / name) for name in models]
    click.echo("| model | batch | fp32 µs | int8 µs | times as fast | top-1 fp32 | top-1 int8 |")
    click.echo("|---|---:|---:|---:|---:|---:|---:|")
    for result in measured:
        for row in result["latency"]:
            click.echo(
                f"| {result['model']} | {row['batch_size']} | {row['fp32_us']:.1f} | {row['int8_us']:.1f} "
                f"| {row['speedup']:.2f} | {result['top1']['fp32']:.4f} | {result['top1']['onnxruntime']:.4f} |"
            )
    if output is not None:
        document = {
            "benchmark": "onnxruntime_cpu",
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "environment": environment.describe(),
            "threads": 1,
            "rounds": ROUNDS,
            "results": measured,
        }
        files.write_json(output, document)
    failed = [
        f"{result['model']} batch {row['batch_size']}: {row['speedup']:.2f} < {MIN_SPEEDUP}"
        for result in measured
        for row in result["latency"]
        if result["model"] == "vgg" and row["speedup"] < MIN_SPEEDUP
    ] + [
        f"{item['model']}: top-1 fell by {item['loss_of_top1']:.4f}"
        for item in measured
        if item["loss_of_top1"] > MAX_LOSS
    ]
    for line in failed:
        click.echo(f"below the bar: {line}", err=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
