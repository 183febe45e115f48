"""Accuracy, latency, size and energy of every precision, beside PyTorch, on one GPU.

    python benchmarks/precision_table.py VARIANTS --checkpoint VGG7 --data-dir DATA --output RESULTS.json
    python benchmarks/precision_table.py --render RESULTS.json          # RESULTS.md and RESULTS.svg again

VARIANTS is what ``precision_variants.py`` wrote. Runs where TensorRT and a GPU are; the PyTorch rows run under
``--torch-python``, in an environment of their own. Every latency is the GPU's time between two events, after a warm-up:
alone, and with the copies of inputs and outputs between page-locked memory and the GPU. TensorRT runs in a CUDA graph,
as the backend serves it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from precision_render import render

from repo_builder import files


def main() -> None:
    """Measure, or render again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", type=Path, nargs="?")
    parser.add_argument("--checkpoint", type=Path, help="weights of VGG7 on CIFAR-10")
    parser.add_argument("--data-dir", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--output", type=Path, default=Path("precision_table.json"))
    parser.add_argument("--models", nargs="*", default=["vgg7", "jsc-toy", "jsc-s"])
    parser.add_argument("--torch-python", help="Python with torch and CUDA; without it there are no PyTorch rows")
    parser.add_argument("--render", type=Path, help="only render these results")
    options = parser.parse_args()
    if options.render:
        render(options.render)
        return
    measure(options)
    render(options.output)


def measure(options: argparse.Namespace) -> None:
    """Measure all rows; after each, the results so far are written."""
    from gpu_measure import Power

    power = Power()  # before anything opens the GPU
    import tensorrt_rows
    from gpu_facts import head

    rows: list[dict[str, Any]] = []
    results: dict[str, Any] = {**head(), "rows": rows}

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        say(row)
        files.write_json(options.output, results)

    with tempfile.TemporaryDirectory() as cache:
        for model in options.models:
            for row in tensorrt_rows.rows(options.variants / model, model, options.data_dir, Path(cache), power):
                add(row)
    for row in torch_rows(options, power.idle_w) if options.torch_python else ():
        if "environment" in row:
            results["machine"]["torch"] = row["environment"]
        else:
            add(row)


def torch_rows(options: argparse.Namespace, idle_w: float) -> Iterator[dict[str, Any]]:
    """Run torch_rows.py under its own Python and yield what it prints."""
    here = Path(__file__).resolve().parent
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "PYTHONNOUSERSITE")}
    clean["LD_LIBRARY_PATH"] = os.environ.get("TORCH_LIBRARY_PATH", "")
    clean["PYTHONPATH"] = str(here.parent)
    command = [options.torch_python, str(here / "torch_rows.py"), str(options.checkpoint), str(options.data_dir)]
    process = subprocess.Popen([*command, str(idle_w), *options.models], env=clean, stdout=subprocess.PIPE, text=True)
    for line in process.stdout or ():
        if not line.startswith("{"):
            print(line, end="", file=sys.stderr)
            continue
        yield json.loads(line)
    if process.wait():
        yield {"model": options.models[-1], "row": "torch", "failed": f"exit code {process.returncode}"}


def say(row: dict[str, Any]) -> None:
    """Print a row in short."""
    if "failed" in row:
        print(f"{row['model']:8} {row['row']:32} FAILED {row['failed']}", flush=True)
        return
    top1 = row.get("accuracy", {}).get("top1", float("nan"))
    times = "  ".join(f"{size}: {value['p50']:.0f}" for size, value in row["latency_us"].items())
    print(f"{row['model']:8} {row['row']:32} top-1 {top1:.4f}  us {times}", flush=True)


if __name__ == "__main__":
    main()
