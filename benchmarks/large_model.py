"""A model of more than 2 GB through every step: built as it came, in int8 and in int4, validated, served and measured.

    .venv/bin/python benchmarks/large_model.py --out benchmarks/results/large_model.json [FORM ...]

The model is a chain of linear layers with seeded weights (2.4 GB by default), which no protobuf message holds: it comes
with its weights beside it, and so does what is built of it in fp32 and int8. Of each form it is told how long each step
took, the most memory that the build held, what lies in the repository, and how far the served outputs are from fp32.
It needs about 20 GB of memory (int4 held 19.5) and 15 GB of disk, and takes them back: everything is made in a
temporary folder. Rows are written as they are made, and other forms' rows of the same model stay.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (sys.executable, "-m", "repo_builder")
RULES = {
    "fp32": "",
    "int8": '[[quantize.layers]]\ntype = "Linear"\nprecision = "int8"\n',
    "int4": '[[quantize.layers]]\ntype = "Linear"\nprecision = "int4"\n',
}
RECIPE = """\
name = "large"

[model]
source = "{source}"
inputs = [{{ name = "x", dtype = "fp32", shape = [{width}] }}]
outputs = [{{ name = "y", dtype = "fp32", shape = [{width}] }}]

[data]
source = "{data}"
calibration = 8
test = 0.25

[quantize]
keep = "all"

{rules}
[repository]
max_batch_size = 4

[measure]
task = "other"
batch_sizes = [1]
concurrency = [1]
"""


def make_model(path: Path, width: int, layers: int) -> int:
    """Write the model with its weights beside it, layer by layer; return their bytes."""
    random, weights = np.random.default_rng(0), path.with_suffix(".weights")
    nodes, stored = [], []
    with weights.open("wb") as stream:
        for place in range(layers):
            weight = random.standard_normal((width, width), np.float32)
            weight *= np.float32(np.sqrt((1 if place == 0 else 2) / width))
            name = f"w{place}"
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=weight.shape)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", weights.name), ("offset", stream.tell()), ("length", weight.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            stored.append(tensor)
            weight.tofile(stream)
            source, made = "x" if place == 0 else f"r{place - 1}", "y" if place == layers - 1 else f"h{place}"
            nodes.append(helper.make_node("MatMul", [source, name], [made], f"layer.{place}"))
            if place < layers - 1:
                nodes.append(helper.make_node("Relu", [made], [f"r{place}"], f"relu.{place}"))
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])] for name in "xy"]
    graph = helper.make_graph(nodes, "large", *sides, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return weights.stat().st_size


def step(folder: Path, *arguments: str) -> tuple[float, int, str]:
    """Run repo-builder; return its seconds, the most bytes that it held, and what it printed.

    Raises:
        SystemExit: It failed.
    """
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        child = subprocess.Popen([*COMMAND, *arguments], cwd=folder, stdout=printed)
        _, status, used = os.wait4(child.pid, 0)
        code = child.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        said = printed.read()
    if code:
        raise SystemExit(f"repo-builder {' '.join(arguments)}: exit code {code}\n{said}")
    return time.perf_counter() - started, used.ru_maxrss * 1024, said


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(item.getsockname()[1]) for item in sockets]


def through(folder: Path, form: str, width: int) -> dict[str, Any]:
    """Take one form through every step."""
    text = RECIPE.format(source=folder / "large.onnx", data=folder / "large.npz", width=width, rules=RULES[form])
    (folder / "large.toml").write_text(text, encoding="utf-8")
    seconds, held, said = step(folder, "build", "large.toml", "--target", "onnxruntime", "--json")
    built = json.loads(said)
    row: dict[str, Any] = {"form": form, "build_s": round(seconds, 1), "build_peak_bytes": held}
    row["layers"] = sorted({item["precision"] for item in built["layers"]})
    version = folder / "model_repository" / "large" / "1"
    row["repository_bytes"] = {item.name: item.stat().st_size for item in sorted(version.glob("model.onnx*"))}
    row["validate_s"] = round(step(folder, "validate", "model_repository")[0], 1)
    ports = free_ports(3)
    options = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    seconds, _, _ = step(folder, "serve", "--runtime", "embedded", "--detach", "--timeout", "300", *options)
    row["serve_s"] = round(seconds, 1)
    try:
        measured = ("--window-ms", "1000", "--max-windows", "3", "--json", "perf.json")
        measured += ("--url", f"localhost:{ports[1]}", "--metrics-url", f"http://localhost:{ports[2]}/metrics")
        row["perf_s"] = round(step(folder, "perf", "large", *measured)[0], 1)
    finally:
        step(folder, "serve", "--stop")
    run = json.loads((folder / "perf.json").read_text(encoding="utf-8"))
    row["ladder"] = [
        {"form": rung["form"], "sqnr_db": min((item["sqnr_db"] for item in rung["outputs"]), default=None)}
        for rung in run["ladder"]["rungs"]
    ]
    row["departs"] = [rung["form"] for rung in run["ladder"]["rungs"] if rung["departs"]]
    latency = run["levels"][0]["latency"]
    row["served_p50_us"] = latency["p50_us"] if latency else None
    return row


def main(arguments: Sequence[str]) -> int:
    """Take the forms that the command line names through every step."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("forms", nargs="*", default=list(RULES), help=f"of {', '.join(RULES)}")
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path, help="write the result to this file")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="large-", dir=asked.folder) as place:
        folder = Path(place)
        size = make_model(folder / "large.onnx", asked.width, asked.layers)
        samples = np.random.default_rng(1).standard_normal((16, asked.width), np.float32)
        np.savez(folder / "large.npz", x=samples)
        rows = {}
        if asked.out and asked.out.is_file():
            known = json.loads(asked.out.read_text(encoding="utf-8"))
            rows = {row["form"]: row for row in known["rows"] if known["weights_bytes"] == size}
        for form in asked.forms:
            rows[form] = through(folder, form, asked.width)
            print(json.dumps(rows[form]), flush=True)
            ordered = [rows[item] for item in RULES if item in rows]
            result = {"onnxruntime": ort.__version__, "onnx": onnx.__version__, "weights_bytes": size, "rows": ordered}
            if asked.out:
                asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
