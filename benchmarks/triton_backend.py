"""Serving figures of the embedded tensorrt backend beside a naive one, by perf_analyzer over gRPC.

    python benchmarks/triton_backend.py ARTIFACT --perf-analyzer .perf_analyzer/perf_analyzer --output RESULTS.json \\
        --instances 1 2 3 4 --mps-instances 2 3 4 6 8 --naive-instances 1 2 --delay-us 0 --window-ms 1000

ARTIFACT is a folder with model.onnx and its manifest, as ``precision_variants.py`` writes them (int8 VGG7 at full
width). The plan is built here, the repository is the one that repo-builder writes. The targets are shares of what a
native backend gave on an H200 in an earlier run: 17.0 k, 180 k and 488 k inferences a second. RESULTS.json keeps a run
for each ``--run NAME``; the others that it has stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_facts import head
from placed_graph import options_for

from repo_builder import serve
from repo_builder.compile.tensorrt.target import TensorRTTarget
from repo_builder.core import artifacts, codec, files
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.recipe import ProfileSpec
from repo_builder.repository import layout
from repo_builder.serve.run import embedded

WARM_UP = (1, 2, 4, 8, 16, 64, 128, 256)
# Kernels for few samples and for many: what is best for 64 takes as long for one.
PROFILES = (
    ProfileSpec(min_batch=1, opt_batch=8, max_batch=16),
    ProfileSpec(min_batch=1, opt_batch=64, max_batch=256),
)
_PAUSE_SECONDS = 0.3  # the backend tells its times after a pause
_SHARED = ("--output-shared-memory-size", "65536", "--shared-memory")


@dataclasses.dataclass(frozen=True)
class Load:
    """One load: options of perf_analyzer, and the target in inferences a second."""

    name: str
    options: tuple[str, ...]
    native: float
    share: float


LOADS = (
    Load("1 x 16", ("-b", "1", "--concurrency-range", "16"), 17_000, 0.85),
    Load("64 x 4, system shared memory", ("-b", "64", "--concurrency-range", "4", *_SHARED, "system"), 180_000, 0.85),
    Load("256 x 4, CUDA shared memory", ("-b", "256", "--concurrency-range", "4", *_SHARED, "cuda"), 488_000, 0.60),
)


def main() -> None:
    """Build, serve and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--perf-analyzer", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("triton_backend.json"))
    parser.add_argument("--run", default="final", help="name of this run in the results")
    parser.add_argument("--instances", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument(
        "--mps-instances", type=int, nargs="*", default=[], help="ours with CUDA MPS, which must be there"
    )
    parser.add_argument("--naive-instances", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--loads", type=int, nargs="*", default=list(range(len(LOADS))), help="which loads, by number")
    parser.add_argument("--delay-us", type=int, default=100)
    parser.add_argument("--window-ms", type=int, default=1500)
    parser.add_argument("--log-folder", type=Path)
    parser.add_argument("--engine", type=Path, help="folder in which the plan is kept for the next run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        engine = build(options.artifact, options.engine or Path(temporary) / "engine")
        rows = list(measure(engine, options, Path(temporary)))
    details = {
        name: codec.plain(getattr(engine.details, name))
        for name in ("tensorrt_version", "gpu", "driver", "precision_counts", "profiles")
    }
    kept = json.loads(options.output.read_text(encoding="utf-8")) if options.output.exists() else {"runs": {}}
    run = {**head(), "engine": details, "rows": rows, "targets": targets(rows)}
    kept["runs"][options.run] = {"about": " ".join(sys.argv[1:]), **run}
    files.write_json(options.output, kept)
    for item in run["targets"]:
        print(item)


def build(folder: Path, target: Path) -> EngineArtifact:
    """Compile the artifact, or take what an earlier run made of it."""
    if (target / artifacts.MANIFEST).exists():
        return artifacts.read(EngineArtifact, target)
    exported = artifacts.read(OnnxArtifact, folder)
    spec = dataclasses.replace(exported.recipe.compile.tensorrt, profiles=PROFILES)
    compiled = dataclasses.replace(exported.recipe.compile, tensorrt=spec)
    exported = dataclasses.replace(exported, recipe=dataclasses.replace(exported.recipe, compile=compiled))
    target.mkdir(parents=True)
    compiler = TensorRTTarget()
    options = options_for(exported, compiler, target, target.parent / "cache")
    details = compiler.compile(exported, target, options=options)
    engine = EngineArtifact(
        path=target,
        key="",
        recipe=exported.recipe,
        inputs=exported.inputs,
        outputs=exported.outputs,
        classes=exported.classes,
        files=artifacts.hashes(target),
        details=details,
    )
    artifacts.write_manifest(engine)
    return engine


def measure(engine: EngineArtifact, options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Serve with each backend and number of instances, and put each load on it."""
    cases = [("repo-builder", count, False) for count in options.instances]
    cases += [("repo-builder", count, True) for count in options.mps_instances]
    cases += [("naive", count, False) for count in options.naive_instances]
    for backend, count, mps in cases:
        settings = dataclasses.replace(
            engine.recipe.repository,
            instance_count=count,
            max_queue_delay_us=options.delay_us,
            preferred_batch_sizes=(),
            warmup_batch_sizes=WARM_UP,
        )
        recipe = dataclasses.replace(engine.recipe, repository=settings)
        case = f"{backend}-{count}{'-mps' if mps else ''}"
        repository = folder / case
        placed = layout.place(dataclasses.replace(engine, recipe=recipe), repository)
        extra = []
        if backend == "naive":
            extra = [f"--backend-directory={naive_backends(folder)}"]
            config = placed / "config.pbtxt"  # it reads host memory only, as the Python backend gives it by default
            files.write_text(config, config.read_text(encoding="utf-8").replace('"no"', '"yes"'))
        log = (options.log_folder or folder) / f"triton-{case}.log"
        rows = []
        with serve.start(
            repository, http_port=0, grpc_port=0, metrics_port=0, log=log, options=extra, mps=mps
        ) as server:
            server.wait_ready(120)
            for load in (LOADS[number] for number in options.loads):
                time.sleep(_PAUSE_SECONDS)
                found = analyze(options, recipe.name, server.grpc_url, load.options)
                rows.append({
                    "backend": backend, "instances": count, "mps": mps, "delay_us": options.delay_us,
                    "load": load.name, **found,
                })  # fmt: skip
        stages = stage_times(log.read_text(encoding="utf-8", errors="replace"))
        for place, row in enumerate(rows):
            row["stages"] = stages[place * count : (place + 1) * count]
            print(case, row["load"], row["inferences_per_s"], row["p50_us"], row["server_us"], flush=True)
            yield row


def naive_backends(folder: Path) -> Path:
    """Return a backend directory in which ``tensorrt`` is the naive backend."""
    target = folder / "naive-backends"
    if not target.exists():
        ours = embedded.assemble(embedded.find_wheel())
        shutil.copytree(ours / "python", target / "python")
        (target / "tensorrt").mkdir()
        shutil.copy(Path(__file__).with_name("naive_model.py"), target / "tensorrt" / "model.py")
    return target


def analyze(options: argparse.Namespace, model: str, url: str, load: Sequence[str]) -> dict[str, Any]:
    """Run perf_analyzer and read what it printed."""
    program = [str(options.perf_analyzer.absolute()), "-m", model, "-u", url, "-i", "grpc"]
    program += ["-p", str(options.window_ms), "-s", "25", "-r", "6", *load]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    text = done.stdout + done.stderr

    def number(pattern: str) -> float | None:
        found = re.search(pattern, text)
        return float(found[1]) if found else None

    parts = ("overhead", "queue", "compute input", "compute infer", "compute output")
    found = {
        "inferences_per_s": number(r"Throughput: ([\d.]+) infer/sec"),
        **{f"p{rank}_us": number(rf"p{rank} latency: (\d+) usec") for rank in (50, 90, 95, 99)},
        "server_us": {part: number(rf"{part} (\d+) usec") for part in parts},
    }
    if found["inferences_per_s"] is None:
        found["printed"] = text[-800:]
    return found


def stage_times(log: str) -> list[dict[str, float]]:
    """Return the backend's own account of its time, microseconds a batch: all instances of a load, then of the next."""
    pattern = r"tensorrt backend: (\d+) batches of ([\d.]+) requests, microseconds a batch: ([^\"]+)"
    found = []
    for count, requests, stages in re.findall(pattern, log):
        times = dict(item.rsplit(" ", 1) for item in stages.split(", "))
        row = {"batches": float(count), "requests_a_batch": float(requests)}
        found.append(row | {f"{name}_us": float(value) for name, value in times.items()})
    return [row for row in found if row["batches"] > len(WARM_UP)]


def targets(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the best of each backend with the target."""
    found = []
    for load in LOADS:
        item: dict[str, Any] = {"load": load.name, "native": load.native, "target": load.native * load.share}
        for backend in ("repo-builder", "naive"):
            mine = [
                row
                for row in rows
                if row["backend"] == backend and row["load"] == load.name and row["inferences_per_s"]
            ]
            best = max(mine, key=lambda row: row["inferences_per_s"], default=None)
            item[backend] = best and {key: best[key] for key in ("inferences_per_s", "instances", "mps")}
        reached = item["repo-builder"] and item["repo-builder"]["inferences_per_s"]
        found.append({**item, "share_of_native": reached and round(reached / load.native, 3)})
    return found


if __name__ == "__main__":
    main()
