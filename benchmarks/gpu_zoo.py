"""Real networks as TensorRT plans: built by the command line, timed beside torch and a plain FP16 build of TensorRT.

    python benchmarks/gpu_zoo.py FOLDER RESULTS.json [--torch BASELINES.json] [--build WORK] [network[/form+form] ...]
    python benchmarks/gpu_zoo.py --merge RESULTS.json PART.json ...

FOLDER holds what `gpu_networks.py export` wrote. Each network is built by `repo-builder build NAME.toml --target
tensorrt` in each form, all with one timing cache, as plans of one network share most of their tactics (``--build``, one
a GPU); times are of CUDA graphs of the plan, medians of 300 runs, at batch 1, 8 and 64, and the rows of
one network are of one machine and one run, which each network tells. Needs TensorRT, a GPU and ONNX Runtime; no torch.
``--merge`` puts the networks of several runs into one file, a later one in place of an earlier.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_facts
import numpy as np
import onnx
from gpu_measure import latency_us
from gpu_sizes import batches
from tensorrt_rows import Graph, StreamClock

from repo_builder import recipes
from repo_builder.compile.tensorrt import graph
from repo_builder.compile.tensorrt.build import BuildRequest, build
from repo_builder.compile.tensorrt.plan import Plan, Session
from repo_builder.compile.tensorrt.profiles import choose, from_recipe
from repo_builder.core import artifacts, codec
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.tensors import DType
from repo_builder.report import choice

_INT8 = '[[quantize.layers]]\ntype = "*"\nprecision = "int8"\n'
_HALF = '[[quantize.layers]]\ntype = "*"\nprecision = "fp16"\n'
# form → its layer rules. The order is that of usefulness where time runs out.
FORMS: dict[str, str] = {
    "int8": _INT8,  # with what the default leaves in fp16 because int8 is slower there
    "fp16": _HALF,
    "fp16 wide": _HALF + '[compile.tensorrt]\nfp16_regions = "wide"\n',
    "int8 throughout": 'keep = "all"\n' + _INT8,
    "int8 with fp16": _HALF + '[[quantize.layers]]\ntype = "Conv*"\nprecision = "int8"\n',
}
PLAIN = "plain FP16"


def recipe(name: str, model: Path, form: str) -> str:
    """Return a recipe for an ONNX file, its inputs and outputs read from it."""
    loaded = onnx.load(model, load_external_data=False)
    lines = [f'name = "{name}"', "[model]", f'source = "{model}"']
    for key, values in (("inputs", loaded.graph.input), ("outputs", loaded.graph.output)):
        for item in values:
            kind = onnx.TensorProto.DataType.Name(item.type.tensor_type.elem_type)
            sizes = [size.dim_value or -1 for size in item.type.tensor_type.shape.dim][1:]
            lines += [
                f"[[model.{key}]]",
                f'name = "{item.name}"',
                f'dtype = "{DType.of(kind).value}"',
                f"shape = {sizes}",
            ]
    lines += ["[data]", f'source = "{model.with_suffix(".npz")}"', "test = 0.3", "calibration = 32"]
    lines += ["[repository]", f"max_batch_size = {max(batches(model.stem))}", "[measure]", 'task = "other"']
    return "\n".join(lines) + "\n[quantize]\n" + FORMS[form]


def row(folder: Path, work: Path, name: str, form: str) -> dict[str, Any]:
    """Build a network in a form with the command line, and time its plan."""
    tag = f"{name}-{form.replace(' ', '-')}"
    (folder / f"{tag}.toml").write_text(recipe(tag, folder / f"{name}.onnx", form))
    command = [sys.executable, "-m", "repo_builder", "build", f"{folder / tag}.toml", "--target", "tensorrt"]
    command += ["--work", str(work), "--output", str(work / "repository"), "--accept-departure"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s = round(time.perf_counter() - started, 1)
    (folder / f"{tag}.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        return {"failed": done.stderr.strip()[-600:], "exit": done.returncode, "wall_s": wall_s}
    made = artifacts.read(EngineArtifact, work / tag / "engine")
    details: Any = made.details
    return {
        "wall_s": wall_s,
        "build_s": details.build_seconds,
        "builds": details.builds,
        "cached_tactics_bytes": details.cached_tactics_bytes,
        "verdict": list(choice.verdict(made)),
        "tried": [codec.plain(item, nulls=True) for item in details.tried],
        "precisions": details.precision_counts,
        "plan_bytes": details.plan_bytes,
        "notes": list(details.notes),
        "accuracy": [dataclasses.asdict(item) for item in made.accuracy],
        "latency_us": times(made.model, folder / f"{name}.npz"),
    }


def plain(folder: Path, work: Path, name: str) -> dict[str, Any]:
    """Build the fp32 graph with TensorRT's FP16 flag and nothing else, under the same profiles."""
    model = folder / f"{name}.onnx"
    (folder / f"{name}.toml").write_text(recipe(name, model, "fp16"))
    profiles = from_recipe(recipes.load(str(folder / f"{name}.toml")))
    free = dataclasses.replace(graph.read(onnx.load(model), {}), has_fp16=True)
    cache = work / ".cache" / "plain.timing"
    cache.parent.mkdir(parents=True, exist_ok=True)
    if not cache.exists():  # what the builds of other forms measured; they share most tactics
        shutil.copy(next(iter(cache.parent.glob("tensorrt-*.timing")), "/dev/null"), cache)
    request = BuildRequest(model=model, precisions=free, profiles=profiles, workspace_bytes=4 << 30, timing_cache=cache)
    built = build(request, lambda line: None)
    place = folder / f"{name}-plain.plan"
    place.write_bytes(built.plan)
    return {
        "build_s": round(built.seconds, 1),
        "cached_tactics_bytes": built.cached_tactics_bytes,
        "latency_us": times(place, folder / f"{name}.npz"),
    }


def times(plan_file: Path, samples: Path) -> dict[str, Any]:
    """Return the GPU's time of a plan by batch size, on real inputs, each in the profile that is tuned for it."""
    plan, found = Plan.load(plan_file), {}
    with np.load(samples) as data:
        values = {item.name: data[item.name] for item in plan.inputs}
    for size in batches(samples.stem):
        batch = {name: value[:size] for name, value in values.items()}
        session = Session(plan, choose(plan.profiles, {name: value.shape for name, value in batch.items()}) or 0)
        session(batch)  # its buffers hold real inputs from here on
        taken = Graph(session, size)
        found[str(size)] = latency_us(taken.alone, StreamClock(session.stream))
        session.stream.synchronize()
        taken.free()
        session.close()
    return found


def merge(results: Path, parts: list[Path]) -> None:
    """Put the networks of several files into one."""
    found: dict[str, Any] = {"schema": 2, "networks": {}}
    for part in ([results] if results.is_file() else []) + parts:
        found["networks"] |= json.loads(part.read_text())["networks"]
    results.write_text(json.dumps(found, indent=1) + "\n")


def made(folder: Path, work: Path, name: str, form: str) -> dict[str, Any]:
    """Return a row; one that fails says so, and the others go on."""
    try:
        return plain(folder, work, name) if form == PLAIN else row(folder, work, name, form)
    except Exception as error:  # TensorRT's, the inspector's, a file's
        return {"failed": f"{type(error).__name__}: {str(error)[:400]}"}


def main() -> None:
    """Measure until the time is up; the file is whole after every row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--merge", type=Path)
    parser.add_argument("--torch", type=Path)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--build", type=Path, help="folder of builds, repository and timing cache")
    parser.add_argument("arguments", nargs="+")
    asked = parser.parse_args()
    if asked.merge:
        merge(asked.merge, [Path(item) for item in asked.arguments])
        return
    folder, results, *networks = asked.arguments
    end = time.monotonic() + asked.seconds
    work = asked.build or Path(folder) / "build"
    found: dict[str, Any] = {"schema": 2, "networks": {}}
    for entry in networks or sorted(path.stem for path in Path(folder).glob("*.onnx")):
        name, _, only = entry.partition("/")
        rows = found["networks"].setdefault(name, gpu_facts.head())
        for form in only.split("+") if only else [*FORMS, PLAIN]:
            if time.monotonic() > end:
                return
            rows[form] = made(Path(folder), work, name, form)
            if asked.torch and asked.torch.is_file():
                rows["torch"] = json.loads(asked.torch.read_text()).get(name)
            Path(results).write_text(json.dumps(found, indent=1))
            print(name, form, json.dumps(rows[form])[:700], flush=True)


if __name__ == "__main__":
    main()
