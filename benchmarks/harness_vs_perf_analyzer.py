"""This harness against NVIDIA's perf_analyzer, in turns on one server: throughput, latency, and what the client costs.

    repo-builder build vgg
    PERF_ANALYZER=/path/to/perf_analyzer python benchmarks/harness_vs_perf_analyzer.py --repository model_repository \\
        --output benchmarks/results/harness_vs_perf_analyzer.json

Every pair runs both tools one after the other, in turns first, each over three windows of the same length; a row is the
median over pairs of the tool's own figures, and of the ratios within pairs. CPU time is that of the tool's processes
between two moments in the middle of a run, over the requests that the server counted between them: start-up is in none
of the figures, and both are measured from outside alike. With ``--server-cpus`` and ``--client-cpus`` the server and
the tools have cores of their own; without, a tool that takes less CPU leaves more to the server, which answers faster.

The bars: built-in vgg at batch 1 and 8, concurrency 1 and 4, gRPC and HTTP: throughput within 3 %, p50 and p99 within
5 %. A do-nothing model at concurrency 16: at least 90 % of perf_analyzer's throughput. CPU per request at most twice
perf_analyzer's over HTTP and four times over gRPC. A figure that is off on the good side is called better, not met:
what a client takes itself is in the latencies that it measures, and in a closed loop in the throughput.
"""

from __future__ import annotations

import csv
import datetime
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from repo_builder import serve
from repo_builder.core import environment, files
from repo_builder.measure.load.server_stats import count
from repo_builder.measure.wire.control import Control, open_control
from repo_builder.measure.wire.transport import Endpoint, ProtocolName

THROUGHPUT, LATENCY, IDENTITY = 0.03, 0.05, 0.90
CPU = {"http": 2.0, "grpc": 4.0}
PROTOCOLS: tuple[ProtocolName, ...] = ("grpc", "http")
GRID = list(itertools.product(PROTOCOLS, (1, 8), (1, 4)))
TICK = os.sysconf("SC_CLK_TCK")
IDENTITY_CONFIG = """name: "identity"
backend: "python"
max_batch_size: 64
input [ { name: "x" data_type: TYPE_FP32 dims: [ 16 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 16 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
IDENTITY_MODEL = """import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        pairs = ((r, pb.get_input_tensor_by_name(r, "x").as_numpy()) for r in requests)
        return [pb.InferenceResponse([pb.Tensor("y", values)]) for _, values in pairs]
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What both tools are asked to do."""

    model: str
    protocol: ProtocolName
    batch: int
    concurrency: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one tool said in one run, and what it cost."""

    infer_per_s: float
    p50_us: float
    p99_us: float
    cpu_us_per_request: float


def run_tool(command: list[str], control: Control, model: str, log: Path) -> float:
    """Run a tool to its end; return its CPU time per request in the middle of the run, µs."""
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        marks: list[tuple[int, int]] = []
        while process.poll() is None:
            marks.append((cpu_ticks(process.pid), count(control.statistics(model)).requests))
            time.sleep(0.1)
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)}\nended with {process.returncode}:\n{log.read_text()[-2000:]}")
    busy = [now for before, now in itertools.pairwise(marks) if now[1] > before[1] and now[0] >= before[0]]
    (cpu, requests), (cpu_end, requests_end) = busy[len(busy) // 5], busy[-2]
    return (cpu_end - cpu) / TICK * 1e6 / max(1, requests_end - requests)


def cpu_ticks(pid: int) -> int:
    """Return the CPU time of a process and its descendants, clock ticks."""
    total = 0
    for one in [pid, *descendants(pid)]:
        try:
            fields = Path(f"/proc/{one}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total


def descendants(pid: int) -> list[int]:
    """Return the processes below a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below = [int(item) for item in task.read_text(encoding="ascii").split()]
        except OSError:
            continue
        for child in below:
            found += [child, *descendants(child)]
    return found


def run_analyzer(program: Path, case: Case, url: str, control: Control, window_ms: int, folder: Path) -> Figures:
    """Run perf_analyzer."""
    out = folder / "analyzer.csv"
    out.unlink(missing_ok=True)
    command = [
        str(program), "-m", case.model, "-u", url, "-i", case.protocol, "-b", str(case.batch),
        "--concurrency-range", str(case.concurrency), "-p", str(window_ms), "-r", "3", "-s", "999",
        "-f", str(out), "--verbose-csv",
    ]  # fmt: skip
    cpu = run_tool(command, control, case.model, folder / "analyzer.log")
    row = next(csv.DictReader(out.open(encoding="utf-8")))
    return Figures(
        infer_per_s=float(row["Inferences/Second"]),
        p50_us=float(row["p50 latency"]),
        p99_us=float(row["p99 latency"]),
        cpu_us_per_request=cpu,
    )


def run_ours(case: Case, url: str, control: Control, window_ms: int, folder: Path) -> Figures:
    """Run this harness."""
    out = folder / "ours.json"
    command = [
        sys.executable, "-c", "from repo_builder.cli import main; main()", "perf", case.model, "--url", url,
        "--protocol", case.protocol, "--batch-size", str(case.batch), "--concurrency", str(case.concurrency),
        "--window-ms", str(window_ms), "--window-requests", "1", "--max-windows", "3", "--stability-percent", "999",
        "--data", "random", "--no-accuracy", "--json", str(out),
    ]  # fmt: skip
    cpu = run_tool(command, control, case.model, folder / "ours.log")
    level = json.loads(out.read_text(encoding="utf-8"))["levels"][0]
    return Figures(
        infer_per_s=level["infer_per_s"],
        p50_us=level["latency"]["p50_us"],
        p99_us=level["latency"]["p99_us"],
        cpu_us_per_request=cpu,
    )


def compare(
    case: Case, program: Path, server: serve.Server, pairs: int, window_ms: int, folder: Path
) -> dict[str, Any]:
    """Run pairs of one case, in turns first, and return medians and bars."""
    url = server.http_url if case.protocol == "http" else server.grpc_url
    control = open_control(Endpoint.parse(server.http_url, "http"), 10.0)
    theirs: list[Figures] = []
    ours: list[Figures] = []
    for place in range(pairs):
        if place % 2:
            ours.append(run_ours(case, url, control, window_ms, folder))
        theirs.append(run_analyzer(program, case, url, control, window_ms, folder))
        if not place % 2:
            ours.append(run_ours(case, url, control, window_ms, folder))
    control.close()
    names = ("infer_per_s", "p50_us", "p99_us", "cpu_us_per_request")
    ratios = {
        name: statistics.median(
            getattr(mine, name) / max(1e-9, getattr(other, name)) for mine, other in zip(ours, theirs, strict=True)
        )
        for name in names
    }
    medians = [
        {name: statistics.median(getattr(item, name) for item in runs) for name in names} for runs in (theirs, ours)
    ]
    return {
        **asdict(case),
        "perf_analyzer": medians[0],
        "ours": medians[1],
        "ratio": ratios,
        "bars": bars(case, ratios),
        "pairs": [
            {"perf_analyzer": asdict(other), "ours": asdict(mine)} for other, mine in zip(theirs, ours, strict=True)
        ],
    }


def bars(case: Case, ratio: dict[str, float]) -> dict[str, str]:
    """Return for every bar of a case whether it is ``met``, ``missed``, or ``better``: off on the good side."""
    found = {"cpu": "met" if ratio["cpu_us_per_request"] <= CPU[case.protocol] else "missed"}
    if case.model == "identity":
        return found | {"offered load": "met" if ratio["infer_per_s"] >= IDENTITY else "missed"}
    gains = {
        "throughput": (ratio["infer_per_s"] - 1, THROUGHPUT),
        "p50": (1 - ratio["p50_us"], LATENCY),
        "p99": (1 - ratio["p99_us"], LATENCY),
    }
    return found | {
        name: "met" if abs(gain) <= band else "better" if gain > 0 else "missed" for name, (gain, band) in gains.items()
    }


def show(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    heads = ["model", "protocol", "batch", "concurrency"]
    for name in ("inf/s", "p50 µs", "p99 µs", "CPU µs/request"):
        heads += [f"{name}, perf_analyzer", "ours"]
    click.echo(f"| {' | '.join([*heads, 'bars'])} |")
    click.echo(f"|{'---|' * (len(heads) + 1)}")
    for item in results:
        cells = []
        for name, form in (("infer_per_s", ".0f"), ("p50_us", ".0f"), ("p99_us", ".0f"), ("cpu_us_per_request", ".0f")):
            cells += [
                format(item["perf_analyzer"][name], form),
                f"{item['ours'][name]:{form}} ({item['ratio'][name]:.2f}×)",
            ]
        off = [f"{name} {how}" for name, how in item["bars"].items() if how != "met"]
        head = f"| {item['model']} | {item['protocol']} | {item['batch']} | {item['concurrency']} "
        click.echo(f"{head}| {' | '.join(cells)} | {', '.join(off) or 'met'} |")


def cpus(_context: click.Context, _option: click.Parameter, text: str | None) -> set[int]:
    """Read a set of cores, as in ``0-3,8``; empty where nothing is given."""
    found: set[int] = set()
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise click.BadParameter(f"'{text}' is no set of cores such as 0-3,8")
        found.update(range(int(first), int(last or first) + 1))
    if found - os.sched_getaffinity(0):
        raise click.BadParameter(f"this machine lends no cores {sorted(found - os.sched_getaffinity(0))}")
    return found


@click.command()
@click.option("--perf-analyzer", type=click.Path(path_type=Path), envvar="PERF_ANALYZER", required=True)
@click.option("--repository", type=click.Path(path_type=Path), default=Path("model_repository"), show_default=True)
@click.option("--pairs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--window-ms", type=click.IntRange(100), default=1000, show_default=True)
@click.option("--only", multiple=True, help="Cases to run, as in vgg:grpc:1:4; all where left out.")
@click.option("--server-cpus", callback=cpus, help="Cores of the server alone, as in 0-7; needs --client-cpus.")
@click.option("--client-cpus", callback=cpus, help="Cores of the tools alone, as in 8-15.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    perf_analyzer: Path,
    repository: Path,
    pairs: int,
    window_ms: int,
    only: tuple[str, ...],
    server_cpus: set[int],
    client_cpus: set[int],
    output: Path | None,
) -> None:
    """Run every case in pairs, print the table and say which bars are met; exit 1 where one is missed."""
    if bool(server_cpus) != bool(client_cpus) or server_cpus & client_cpus:
        raise click.UsageError("--server-cpus and --client-cpus go together and share no core")
    cases = [Case(model="vgg", protocol=p, batch=b, concurrency=c) for p, b, c in GRID]
    cases += [Case(model="identity", protocol=p, batch=1, concurrency=16) for p in PROTOCOLS]
    chosen = [
        item for item in cases if not only or f"{item.model}:{item.protocol}:{item.batch}:{item.concurrency}" in only
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(repository / "vgg", folder / "repository" / "vgg")
        files.write_text(folder / "repository" / "identity" / "config.pbtxt", IDENTITY_CONFIG)
        files.write_text(folder / "repository" / "identity" / "1" / "model.py", IDENTITY_MODEL)
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, server_cpus or everywhere)  # what is started from here on inherits it
        with serve.start(
            folder / "repository",
            runtime="embedded",
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            log=folder / "server.log",
        ) as server:
            server.wait_ready(120)
            os.sched_setaffinity(0, client_cpus or everywhere)
            results = []
            for case in chosen:
                results.append(compare(case, perf_analyzer, server, pairs, window_ms, folder))
                click.echo(f"{case}: {results[-1]['ratio']}", err=True)
    show(results)
    if output is not None:
        version = subprocess.run([perf_analyzer, "--version"], capture_output=True, text=True, check=False)
        document = {
            "benchmark": "harness_vs_perf_analyzer",
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "environment": environment.describe(),
            "perf_analyzer": (version.stdout + version.stderr).strip(),
            "pairs": pairs,
            "window_ms": window_ms,
            "cores": os.cpu_count(),
            "server_cpus": sorted(server_cpus),
            "client_cpus": sorted(client_cpus),
            "bars": {"throughput": THROUGHPUT, "latency": LATENCY, "offered_load": IDENTITY, "cpu": CPU},
            "results": results,
        }
        files.write_json(output, document)
    if any(how == "missed" for item in results for how in item["bars"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
