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
import time
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
    results = measure(options)
    files.write_json(options.output, results)
    render(options.output)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return all rows and what they were measured with."""
    import tensorrt_rows

    rows: list[dict[str, Any]] = []
    facts = tensorrt_rows.facts()
    with tempfile.TemporaryDirectory() as cache:
        for model in options.models:
            for row in tensorrt_rows.rows(options.variants / model, model, options.data_dir, Path(cache)):
                rows.append(row)
                say(row)
    if options.torch_python:
        torch_facts, found = torch_rows(options)
        facts["torch"] = torch_facts
        rows += found
    return {"schema": 1, "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": facts, "rows": rows}


def torch_rows(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run torch_rows.py under its own Python."""
    here = Path(__file__).resolve().parent
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "PYTHONNOUSERSITE")}
    clean["LD_LIBRARY_PATH"] = os.environ.get("TORCH_LIBRARY_PATH", "")
    clean["PYTHONPATH"] = str(here.parent)
    command = [options.torch_python, str(here / "torch_rows.py"), str(options.checkpoint), str(options.data_dir)]
    facts: dict[str, Any] = {}
    found: list[dict[str, Any]] = []
    process = subprocess.Popen([*command, *options.models], env=clean, stdout=subprocess.PIPE, text=True)
    for line in process.stdout or ():
        if not line.startswith("{"):
            print(line, end="", file=sys.stderr)
            continue
        row = json.loads(line)
        if "environment" in row:
            facts = row["environment"]
        else:
            found.append(row)
            say(row)
    if process.wait():
        found.append({"model": "", "row": "torch", "failed": f"exit code {process.returncode}"})
    return facts, found


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
