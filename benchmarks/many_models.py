"""How long the embedded server takes to start with many small models, and the memory that each takes.

    python benchmarks/many_models.py --models 100 --cpus 0,1 --output benchmarks/results/many_models.json

Each model is an ONNX file of two operators with one instance on the CPU and a complete config.pbtxt. Memory is the
*proportional set size* of each model's process (``/proc/PID/smaps_rollup``): its own pages and its share of those that
it has in common with others. ``cpu_s`` is the processor time of all of them until they have ended: on a machine that
does other things besides, it tells more than ``ready_s``, beside which the load average of the last minute stands;
there ``chrt -r 1 python benchmarks/many_models.py`` has the cores for itself, as ``real_time`` tells.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from repo_builder import serve

CONFIG = """backend: "onnxruntime"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
instance_group [ { count: 1 kind: KIND_CPU } ]
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
"""


def main() -> None:
    """Measure, and write or print the result."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--models", type=int, default=100)
    options.add_argument("--runs", type=int, default=3)
    options.add_argument("--cpus", help="run on these cores alone, as in 0,1")
    options.add_argument("--output", type=Path)
    given = options.parse_args()
    if given.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in given.cpus.split(",")})
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        for place in range(given.models):
            _write(repository / f"model_{place:03}", place)
        runs = [_measure(repository) for _ in range(given.runs)]
    result = {
        "models": given.models,
        "cores": len(os.sched_getaffinity(0)),
        "real_time": os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "runs": runs,
        **{f"median_{key}": statistics.median(run[key] for run in runs) for key in ("ready_s", "cpu_s", "model_mib")},
    }
    text = json.dumps(result, indent=2) + "\n"
    if given.output:
        given.output.write_text(text, encoding="utf-8")
    print(text, end="")


def _write(folder: Path, seed: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((16, 4)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    tensor = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [tensor("x", TensorProto.FLOAT, ["N", 16])],
        [tensor("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    (folder / "1").mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "1" / "model.onnx"))
    (folder / "config.pbtxt").write_text(CONFIG, encoding="utf-8")


def _measure(repository: Path) -> dict[str, Any]:
    log = repository.parent / "log"
    log.unlink(missing_ok=True)
    load, before = os.getloadavg()[0], _children_cpu_s()
    began = time.perf_counter()
    with serve.start(repository, runtime="embedded", http_port=0, grpc_port=0, metrics_port=0, log=log) as server:
        server.wait_ready(600)
        ready_s = time.perf_counter() - began
        sizes = [_pss_bytes(pid) for pid in _stubs(server.pid)]
        tritonserver = _pss_bytes(server.pid)
    return {
        "ready_s": round(ready_s, 2),
        "processes": len(sizes),
        "model_mib": round(statistics.mean(sizes) / 2**20, 1),
        "tritonserver_mib": round(tritonserver / 2**20, 1),
        "cpu_s": round(_children_cpu_s() - before, 2),
        "load_average": round(load, 1),
    }


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _stubs(group: int) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            head, _, tail = (process / "stat").read_text(errors="replace").rpartition(")")
        except OSError:
            continue
        if head.endswith("(triton_python_b") and tail.split()[2] == str(group):
            found.append(int(process.name))
    return found


def _pss_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
