"""ONNX Runtime's TensorRT provider as one row of the precision table; prints the row, or what the provider printed.

    python benchmarks/onnxruntime_gpu.py ARTIFACT DATA_DIR [fp16]

onnxruntime-gpu 1.14.1 is the version whose provider was built against TensorRT 8.5. ARTIFACT is a folder that
``precision_variants.py`` wrote. The provider in use is asserted: the profile names that of every node that ran. Times
are of the host's clock around a call with inputs and outputs bound on the GPU.
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
from gpu_measure import ITERATIONS, WARM_UP
from precision_rows import BATCHES, TestData, load_data, scores

from repo_builder import artifacts
from repo_builder.artifacts import OnnxArtifact

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


def measure(made: ort.InferenceSession, name: str, output: str, data: TestData) -> dict[str, Any]:
    """Score and time a session."""
    step = BATCHES[-1]
    starts = range(0, len(data.values), step)
    outputs = [made.run([output], {name: data.values[start : start + step]})[0] for start in starts]
    row: dict[str, Any] = {"accuracy": scores(np.concatenate(outputs), data), "latency_us": {}, "with_copies_us": {}}
    for size in BATCHES:
        values = np.ascontiguousarray(data.values[:size])
        bound = made.io_binding()
        bound.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(values, "cuda", 0))
        bound.bind_ortvalue_output(
            output, ort.OrtValue.ortvalue_from_shape_and_type([size, data.classes_count], np.float32, "cuda", 0)
        )
        row["latency_us"][str(size)] = clock(lambda bound=bound: made.run_with_iobinding(bound))
        row["with_copies_us"][str(size)] = clock(lambda values=values: made.run([output], {name: values}))
    return row


def clock(run: Any) -> dict[str, float]:  # noqa: ANN401 - a function
    """Return p50, p99 and mean of the host's time for one call, microseconds."""
    times = []
    for place in range(WARM_UP + ITERATIONS):
        started = time.perf_counter()
        run()
        if place >= WARM_UP:
            times.append(1e6 * (time.perf_counter() - started))
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "mean": round(float(np.mean(times)), 2)}


def main() -> None:
    """Print one row."""
    artifact = artifacts.read(OnnxArtifact, Path(sys.argv[1]))
    kinds = set(artifact.details["layer_precisions"].values())
    data = load_data(artifact.recipe.name, Path(sys.argv[2]))
    variant = Path(sys.argv[1]).name
    row: dict[str, Any] = {"model": artifact.recipe.name, "row": f"ONNX Runtime TensorRT provider {variant}"}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        made = session(artifact.model, Path(folder), int8="int8" in kinds, fp16="fp16" in kinds)
        made.run(None, {artifact.inputs[0].name: data.values[: BATCHES[-1]]})
        row["build_seconds"] = round(time.perf_counter() - started, 2)
        row |= measure(made, artifact.inputs[0].name, artifact.outputs[0].name, data)
        profile = json.loads(Path(made.end_profiling()).read_text(encoding="utf-8"))
        ran = Counter(item["args"]["provider"] for item in profile if item.get("args", {}).get("provider"))
        row["nodes_by_provider"] = dict(ran)
        row["plan_bytes"] = sum(item.stat().st_size for item in Path(folder).glob("*.engine"))
    if set(ran) != {PROVIDER}:
        row["failed"] = f"nodes ran on {dict(ran)}"
    print(json.dumps({**row, "onnxruntime": ort.__version__}), flush=True)


if __name__ == "__main__":
    main()
