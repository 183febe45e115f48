"""Triton Model Analyzer's quick search in remote mode beside ``repo-builder tune``: the same models, bounds and limit.

    pip install --target analyzer triton-model-analyzer==1.58.0
    python benchmarks/model_analyzer.py vgg jsc resnet --analyzer analyzer --perf-analyzer pa/perf_analyzer \
        --output benchmarks/results/tune_vs_grid.json

Run ``benchmarks/tune_vs_grid.py`` first: its output gets one entry more for each model, ``model_analyzer``, and its
repository is what is searched, as ``repo-builder build`` wrote it. The server is ``repo-builder serve --open-control``
on it. What Model Analyzer chose and what tune chose are then measured in turns by the same client, since
perf_analyzer's figures and ours are not of one clock. Model Analyzer takes no bounds of delay, preferred sizes and
threads in this mode, and its default configuration may be loaded with more requests than it was asked for.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tune_vs_grid import CHOICES, CONCURRENCY, LIMITS_MS, PAIRED, ROUNDS, asked_of, level_of, open_bench, write

from repo_builder import serve
from repo_builder.core import codec
from repo_builder.core.errors import MeasureError
from repo_builder.flows.tune import finals
from repo_builder.measure.judge import estimates
from repo_builder.repository import serving
from repo_builder.results.tuning import Settings

_COLUMNS = {
    "configuration": "Model Config Path",
    "instances": "Instance Group",
    "max_batch_size": "Max Batch Size",
    "concurrency": "Concurrency",
    "infer_per_s": "Throughput (infer/sec)",
    "p99_ms": "p99 Latency (ms)",
    "within": "Satisfies Constraints",
}


def main() -> None:
    """Run Model Analyzer on each model, and write what it found beside what tune found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("models", nargs="+", choices=list(LIMITS_MS))
    options.add_argument("--analyzer", type=Path, required=True, help="folder that pip installed it to")
    options.add_argument("--perf-analyzer", type=Path, required=True)
    options.add_argument("--repository", type=Path, default=Path("model_repository"))
    options.add_argument("--work", type=Path, default=Path("build"))
    options.add_argument("--output", type=Path, required=True)
    options.add_argument("--timeout", type=float, default=400.0, help="seconds for one model's search")
    given = options.parse_args()
    result = json.loads(given.output.read_text())
    for model in given.models:
        one = result[model]
        found = _search(given, model)
        if found["best"] is not None:
            found["paired"] = _paired(given, model, one, found["best"])
        one["model_analyzer"] = found
        write(given.output, result)
        print(model, json.dumps({key: found[key] for key in ("seconds", "loads", "exit_code", "best", "error")}))


def _search(given: argparse.Namespace, model: str) -> dict[str, Any]:
    """Run one search on a server of its own, and return what it measured."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        here = Path(folder)
        server = serve.start(
            given.repository, runtime="embedded", http_port=0, grpc_port=0, metrics_port=0, models=(model,),
            open_control=True, log=here / "triton.log",
        )  # fmt: skip
        try:
            server.wait_ready(120)
            (here / "config.json").write_text(json.dumps(_config(given, model, here, server)))  # JSON is YAML
            started = time.monotonic()
            code = _profile(given, here, log)
            seconds = time.monotonic() - started
        finally:
            server.stop()
        log.seek(0)
        said = log.read()
        rows = _rows(here / "export" / "results" / "metrics-model-inference.csv")
    held = [row for row in rows if row["within"] == "Yes" and row["max_batch_size"] is not None]
    best = max(held, key=lambda row: row["infer_per_s"], default=None)
    errors = [line for line in said.splitlines() if "ERROR" in line or "Exception" in line]
    return {
        "version": next(given.analyzer.glob("triton_model_analyzer-*.dist-info"))
        .name.split("-")[1]
        .removesuffix(".dist"),
        "mode": "quick, remote",
        "seconds": round(seconds, 1),
        "exit_code": code,
        "configurations": len({row["configuration"] for row in rows}),
        "loads": len(rows),
        "best": best,
        "error": errors[-1][:300] if errors else "",
        "rows": rows,
    }


def _config(given: argparse.Namespace, model: str, folder: Path, server: serve.Server) -> dict[str, Any]:
    return {
        "model_repository": str(given.repository.resolve()),
        "output_model_repository_path": str(folder / "out"),
        "export_path": str(folder / "export"),
        "checkpoint_directory": str(folder / "checkpoints"),
        "triton_launch_mode": "remote",
        "client_protocol": "grpc",
        "triton_grpc_endpoint": server.grpc_url.removeprefix("grpc://"),
        "triton_http_endpoint": server.http_url.removeprefix("http://"),
        "triton_metrics_url": server.metrics_url,
        "perf_analyzer_path": str(given.perf_analyzer.resolve()),
        "run_config_search_mode": "quick",
        "run_config_search_max_instance_count": max(CHOICES["instances"]),
        "run_config_search_max_model_batch_size": max(CHOICES["max_batch_size"]),
        "run_config_search_min_concurrency": min(CONCURRENCY),
        "run_config_search_max_concurrency": max(CONCURRENCY),
        "profile_models": {
            model: {
                "cpu_only": True,
                "constraints": {"perf_latency_p99": {"max": int(LIMITS_MS[model])}},
            }
        },
    }


def _profile(given: argparse.Namespace, folder: Path, log: Any) -> int | None:  # noqa: ANN401 - a text file
    """Run it with no packages but its own; return its exit code, None where it took too long."""
    environment = {**os.environ, "PYTHONPATH": str(given.analyzer.resolve())}
    program = str((given.analyzer / "bin" / "model-analyzer").resolve())
    command = [sys.executable, "-S", program, "profile", "-f", "config.json"]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=given.timeout
        )
    except subprocess.TimeoutExpired:
        return None
    return done.returncode


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return every load of its table."""
    if not path.is_file():
        return []
    found = []
    with path.open(newline="") as text:
        for row in csv.DictReader(text):
            item: dict[str, Any] = {name: row[title] for name, title in _COLUMNS.items()}
            item["instances"] = int(item["instances"].split(":")[0])
            item["max_batch_size"] = int(item["max_batch_size"]) if item["max_batch_size"].isdigit() else None
            item |= {"concurrency": int(item["concurrency"]), "infer_per_s": float(item["infer_per_s"])}
            item["p99_ms"] = float(item["p99_ms"])
            found.append(item)
    return found


def _settings(given: argparse.Namespace, model: str, best: dict[str, Any]) -> Settings:
    """Return its choice as ours: what it does not search stays as the repository has it, the batcher as it sets it."""
    path = given.repository / model / "config.pbtxt"
    present = serving.settings_of(serving.of_text(path.read_text(), str(path)))
    changed = {"instances": best["instances"], "max_batch_size": best["max_batch_size"]}
    if not best["configuration"].endswith("_default"):
        changed |= {"max_queue_delay_us": 0, "preferred_batch_sizes": ()}
    return dataclasses.replace(present, **changed)


def _paired(given: argparse.Namespace, model: str, one: dict[str, Any], best: dict[str, Any]) -> dict[str, Any]:
    """Measure tune's choice and Model Analyzer's in turns, by the same client."""
    settings = (_settings(given, model, best), codec.build(Settings, one["tune"]["best"]))
    loads = (best["concurrency"], one["tune"]["concurrency"])
    bench = open_bench(dataclasses.replace(asked_of(model, given.repository, given.work), pace=PAIRED))
    try:
        pair = [finals.Entry(settings=item, level=level_of(line)) for item, line in zip(settings, loads, strict=True)]
        found = finals.in_turns(bench, pair, ROUNDS // 2, 1.0)
    finally:
        bench.close()
    if len(found) < 2:
        raise MeasureError("one of the two could not be measured again", where=model)
    ratios = sorted(ours / theirs for theirs, ours in zip(*(item.infer_per_s for item in found), strict=True))
    middle = estimates.quantile(ratios, 50.0)
    return {
        "model_analyzer": f"{settings[0]} at concurrency {loads[0]}",
        "tune": f"{settings[1]} at concurrency {loads[1]}",
        "tune_over_model_analyzer": round(statistics.median(ratios), 4),
        "interval": [round(middle.low, 4), round(middle.high, 4)],
        "p99_us": {
            name: round(statistics.median(item.p99_us))
            for name, item in zip(("model_analyzer", "tune"), found, strict=True)
        },
    }


if __name__ == "__main__":
    main()
