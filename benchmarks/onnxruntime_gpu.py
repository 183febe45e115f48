"""ONNX Runtime's TensorRT provider as one row of the precision table; prints the row. ``precision_table.py`` runs it.

    python benchmarks/onnxruntime_gpu.py ARTIFACT DATA_DIR IDLE_W

onnxruntime-gpu 1.14.1 is the version whose provider was built against TensorRT 8.5. ARTIFACT is a folder that
``precision_variants.py`` wrote, IDLE_W what the GPU draws when nothing runs. The provider in use is asserted: the
profile names that of every node that ran. Its options take no stream from Python, so times are of the host's clock
around a call that returns when the GPU is done: with inputs and outputs bound on the GPU, and with arrays of the host.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from gpu_measure import Power, latency_us
from precision_rows import BATCHES, ENERGY_BATCH, TestData, load_data, scores

from repo_builder.core import artifacts
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.core.tensors import Array
from repo_builder.flows.build import lowering

PROVIDER = "TensorrtExecutionProvider"


def session(model: Path, folder: Path, *, int8: bool, fp16: bool) -> ort.InferenceSession:
    """Return a session on the TensorRT provider, with profiling on."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    settings = {
        "trt_int8_enable": int8,
        "trt_fp16_enable": fp16,
        "trt_engine_cache_enable": True,
        "trt_engine_cache_path": str(folder),
        "trt_max_workspace_size": 4 << 30,
    }
    made = ort.InferenceSession(str(model), options, providers=[(PROVIDER, settings)])
    if made.get_providers()[0] != PROVIDER:
        raise SystemExit(f"the session runs on {made.get_providers()}")
    return made


class Returned:
    """A clock for calls that return when the GPU is done: there is nothing to wait for."""

    def mark(self) -> float:
        """Return the present, seconds."""
        return time.perf_counter()

    def between(self, start: float, end: float) -> float:
        """Return the time between two marks, milliseconds."""
        return 1e3 * (end - start)

    def wait(self) -> None:
        """Do nothing."""


def outputs_of(made: ort.InferenceSession, name: str, data: TestData) -> Array:
    """Return the outputs (n, classes) for every test sample."""
    step = BATCHES[-1]
    starts = range(0, len(data.values), step)
    return np.concatenate([made.run(None, {name: data.values[start : start + step]})[0] for start in starts])


def times(made: ort.InferenceSession, name: str, output: str, data: TestData, power: Power) -> dict[str, Any]:
    """Time a session, and measure what it draws."""
    found: dict[str, Any] = {"latency_us": {}, "with_copies_us": {}}
    for size in BATCHES:
        values = np.ascontiguousarray(data.values[:size])
        bound = made.io_binding()
        bound.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(values, "cuda", 0))
        bound.bind_ortvalue_output(
            output, ort.OrtValue.ortvalue_from_shape_and_type([size, data.classes_count], np.float32, "cuda", 0)
        )
        calls = {
            "latency_us": lambda bound=bound: made.run_with_iobinding(bound),
            "with_copies_us": lambda values=values: made.run([output], {name: values}),
        }
        for key, call in calls.items():
            found[key][str(size)] = latency_us(call, Returned())
        if size == ENERGY_BATCH:
            found["energy"] = power.over(calls["latency_us"], Returned(), size)
    return found


def main() -> None:
    """Print one row."""
    artifact = artifacts.read(OnnxArtifact, Path(sys.argv[1]))
    kinds = {item.asked for item in artifact.layers}
    data = load_data(artifact.recipe.name, Path(sys.argv[2]))
    variant, power = Path(sys.argv[1]).name, Power(float(sys.argv[3]))
    row: dict[str, Any] = {"model": artifact.recipe.name, "row": f"ONNX Runtime, TensorRT provider {variant}"}
    name = artifact.inputs[0].name
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        graph = Path(folder) / "placed.onnx"
        lowering.lower(artifact, ("tensorrt", ""), graph, None)
        made = session(graph, Path(folder), int8="int8" in kinds, fp16="fp16" in kinds)
        made.run(None, {name: data.values[: BATCHES[-1]]})
        row["build_seconds"] = round(time.perf_counter() - started, 2)
        row["accuracy"] = scores(outputs_of(made, name, data), data)
        profile = json.loads(Path(made.end_profiling()).read_text(encoding="utf-8"))
        row |= times(made, name, artifact.outputs[0].name, data, power)
        row["plan_bytes"] = sum(item.stat().st_size for item in Path(folder).glob("*.engine"))
    ran = Counter(item["args"]["provider"] for item in profile if item.get("args", {}).get("provider"))
    row["nodes_by_provider"] = dict(ran)
    if set(ran) != {PROVIDER}:
        row["failed"] = f"nodes ran on {dict(ran)}"
    print(json.dumps({**row, "onnxruntime": ort.__version__}), flush=True)


if __name__ == "__main__":
    main()
