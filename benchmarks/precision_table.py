"""Accuracy, latency, size and energy of every precision, beside PyTorch, on one GPU.

    python benchmarks/precision_table.py VARIANTS --checkpoint VGG7 --data-dir DATA --output RESULTS.json
    python benchmarks/precision_table.py --render RESULTS.json          # RESULTS.md and RESULTS.svg again

VARIANTS is what ``precision_variants.py`` wrote. Runs where TensorRT and a GPU are; the PyTorch rows run under
``--torch-python``, in an environment of their own. Every latency is the GPU's time between two events, after a warm-up:
alone, and with the copies of inputs and outputs between page-locked memory and the GPU. TensorRT runs in a CUDA graph,
as the backend serves it. Power wants nvidia-ml-py, under ``--torch-python`` too.

The rows of ONNX Runtime's TensorRT provider need onnxruntime-gpu 1.14.1 in a folder of its own, which was built against
TensorRT 8.5, and cuBLAS 11 and cuDNN 8 in another: ``pip install --target FOLDER --no-deps onnxruntime-gpu==1.14.1``,
nvidia-cublas-cu11==11.11.3.6, nvidia-cudnn-cu11==8.6.0.163, nvidia-cuda-runtime-cu11, nvidia-cufft-cu11,
nvidia-curand-cu11.
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

from repo_builder.core import files

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Measure, or render again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", type=Path, nargs="?")
    parser.add_argument("--checkpoint", type=Path, help="weights of VGG7 on CIFAR-10")
    parser.add_argument("--data-dir", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--output", type=Path, default=Path("precision_table.json"))
    parser.add_argument("--models", nargs="*", default=["vgg7", "jsc-toy", "jsc-s"])
    parser.add_argument("--torch-python", help="Python with torch and CUDA; without it there are no PyTorch rows")
    parser.add_argument(
        "--onnxruntime", type=Path, help="folder with onnxruntime-gpu; without it there are no such rows"
    )
    parser.add_argument("--cuda-libraries", type=Path, help="folder with the CUDA 11 libraries that it needs")
    parser.add_argument("--render", type=Path, help="only render these results")
    options = parser.parse_args()
    if options.render:
        render(options.render)
        return
    if not options.variants or ("vgg7" in options.models and not options.data_dir):
        parser.error("VARIANTS, and --data-dir for vgg7, are needed to measure")
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
    for row in onnxruntime_rows(options, power.idle_w) if options.onnxruntime else ():
        add(row)
    for row in torch_rows(options, power.idle_w) if options.torch_python else ():
        if "environment" in row:
            results["machine"]["torch"] = row["environment"]
        else:
            add(row)


def torch_rows(options: argparse.Namespace, idle_w: float) -> Iterator[dict[str, Any]]:
    """Run torch_rows.py under its own Python and yield what it prints."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "PYTHONNOUSERSITE")}
    clean["LD_LIBRARY_PATH"] = os.environ.get("TORCH_LIBRARY_PATH", "")
    clean["PYTHONPATH"] = str(HERE.parent)
    command = [options.torch_python, str(HERE / "torch_rows.py"), str(options.checkpoint), str(options.data_dir)]
    failed = {"model": options.models[-1], "row": "torch"}
    yield from printed_rows([*command, str(idle_w), *options.models], clean, failed)


def onnxruntime_rows(options: argparse.Namespace, idle_w: float) -> Iterator[dict[str, Any]]:
    """Run onnxruntime_gpu.py with its own libraries, once a variant, and yield what it prints."""
    environment = dict(os.environ)
    for name, first in (("PYTHONPATH", options.onnxruntime), ("LD_LIBRARY_PATH", options.cuda_libraries)):
        environment[name] = os.pathsep.join(map(str, filter(None, [first, os.environ.get(name)])))
    for variant in ("int8-percentile-99.99", "fp16") if "vgg7" in options.models else ():
        command = [sys.executable, str(HERE / "onnxruntime_gpu.py"), str(options.variants / "vgg7" / variant)]
        failed = {"model": "vgg7", "row": f"ONNX Runtime, TensorRT provider {variant}"}
        yield from printed_rows([*command, str(options.data_dir), str(idle_w)], environment, failed)


def printed_rows(command: list[str], environment: dict[str, str], failed: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run a program and yield the rows that it prints, a line each; ``failed`` begins the row that says it failed."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout or ():
        if not line.startswith("{"):
            print(line, end="", file=sys.stderr)
            continue
        yield json.loads(line)
    if process.wait():
        yield {**failed, "failed": f"exit code {process.returncode}"}


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
