"""``repo-builder perf`` as users call it: options, outputs and exit codes; the server is a real one."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from repo_builder import cli, serve
from repo_builder.core import files
from tests.conftest import dropped

CONFIG = """name: "linear"
backend: "python"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
MODEL = """import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        inputs = [pb.get_input_tensor_by_name(item, "x").as_numpy() for item in requests]
        return [pb.InferenceResponse([pb.Tensor("y", np.ascontiguousarray(x[:, :3]))]) for x in inputs]
"""
WRONG = [
    ("timeout", "0"),
    ("duration", "nan"),
    ("duration", "-1"),
    ("max-p99-ms", "inf"),
    ("stability-percent", "0"),
    ("accuracy-tolerance", "nan"),
    ("latency-tolerance", "-5"),
    ("seed", "-1"),
]
QUICK = ["--window-ms", "100", "--window-requests", "3", "--max-windows", "3", "--concurrency", "1,2"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[serve.Server]:
    repository = tmp_path_factory.mktemp("perf") / "repository"
    files.write_text(repository / "linear" / "config.pbtxt", CONFIG)
    files.write_text(repository / "linear" / "1" / "model.py", MODEL)
    log = repository.parent / "log"
    with dropped(
        serve.start(repository, runtime="embedded", http_port=0, grpc_port=0, metrics_port=0, log=log)
    ) as started:
        started.wait_ready(300)
        yield started


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 samples whose class is the largest of the first three values; 6 labels are wrong."""
    generator = np.random.default_rng(0)
    x = generator.random((60, 4)).astype(np.float32)
    y = x[:, :3].argmax(axis=1)
    y[:6] = (y[:6] + 1) % 3
    path = tmp_path / "data.npz"
    np.savez(path, x=x, y=y)
    return path


def perf(server: serve.Server, *arguments: str, model: str = "linear") -> int:
    return cli.run(["perf", model, "--url", server.grpc_url, *QUICK, *arguments])


@pytest.mark.server
def test_tables_and_every_file(
    server: serve.Server, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    outputs = ["--json", f"{out}/run.json", "--csv", f"{out}/run.csv", "--report", f"{out}/run.html"]
    assert perf(server, "--data", str(data), "--explain", *outputs) == 0
    shown = capsys.readouterr()
    assert "top-1 90.00 %" in shown.out
    assert "concurrency 2 × batch 1" in shown.out
    assert "accuracy" in shown.err
    run = json.loads((out / "run.json").read_text())
    assert run["accuracy"]["top1"] == 0.9
    assert [item["level"]["concurrency"] for item in run["levels"]] == [1, 2]
    assert run["levels"][0]["explanation"]["largest"]
    rows = list(csv.DictReader((out / "run.csv").read_text().splitlines()))
    assert [row["Concurrency"] for row in rows] == ["1", "2"]
    assert "<svg" in (out / "run.html").read_text()


@pytest.mark.server
@pytest.mark.parametrize("order", [["linear", "--json"], ["--json", "linear"]])
def test_json_on_stdout_is_json_alone(
    server: serve.Server, order: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["perf", "--url", server.grpc_url, *QUICK, "--raw", *order]) == 0
    run = json.loads(capsys.readouterr().out)
    assert run["accuracy"] is None
    assert "no recipe is known" in run["accuracy_skipped"]
    assert len(run["levels"][0]["raw_latencies_us"]) == run["levels"][0]["requests"]


@pytest.mark.server
def test_a_run_is_compared_with_a_baseline(
    server: serve.Server, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = tmp_path / "monday.json"
    assert perf(server, "--data", str(data), "--json", str(baseline)) == 0
    relaxed = ["--baseline", str(baseline), "--latency-tolerance", "100000"]
    assert perf(server, "--data", str(data), *relaxed) == 0
    assert "Nothing is worse" in capsys.readouterr().out
    better = json.loads(baseline.read_text())
    better["accuracy"]["top1"] = 1.0
    better["accuracy"]["correct"] = "1" * 60
    baseline.write_text(json.dumps(better))
    assert perf(server, "--data", str(data), *relaxed) == 1
    shown = capsys.readouterr()
    assert "worse than the baseline: top-1" in shown.err
    assert "6 lost, 0 won on the same 60 samples" in shown.out


@pytest.mark.server
def test_the_knee_is_searched(server: serve.Server, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["perf", "linear", "--url", server.grpc_url, "--window-ms", "50", "--max-windows", "3", "--json"]
    assert cli.run([*arguments, "--max-p99-ms", "10000"]) == 0
    run = json.loads(capsys.readouterr().out)
    assert run["knee"] is not None
    chosen = run["levels"][run["knee"]]
    alike = [item for item in run["levels"] if item["stable"] == chosen["stable"]]
    assert chosen["infer_per_s"] == max(item["infer_per_s"] for item in alike)
    assert chosen["stable"] or not any(item["stable"] for item in run["levels"])
    assert cli.run([*arguments, "--max-p99-ms", "0.0001"]) == 0
    run = json.loads(capsys.readouterr().out)
    assert run["knee"] is None
    assert "no level keeps its p99 under" in run["notes"][0]


@pytest.mark.server
def test_a_full_disk_loses_no_figures(
    server: serve.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace = files.os.replace

    def full(source: str, target: Path) -> None:
        if str(target).endswith("run.json"):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    outputs = ["--json", str(tmp_path / "run.json"), "--csv", str(tmp_path / "run.csv")]
    assert perf(server, *outputs) == 12
    shown = capsys.readouterr()
    assert "No space left on device" in shown.err
    assert "concurrency 2 × batch 1" in shown.out
    assert (tmp_path / "run.csv").is_file()
    assert not (tmp_path / "run.json").exists()


@pytest.mark.server
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_loses_no_file(server: serve.Server, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "repo_builder", "perf", "linear", "--url", server.grpc_url, *QUICK]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--json", str(path)], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=300
        )
    assert done.returncode == 12
    assert "error: stdout: cannot be written (No space left on device)" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(path.read_text())["levels"]


@pytest.mark.server
def test_a_closed_pipe_loses_no_file(server: serve.Server, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "repo_builder", "perf", "linear", "--url", server.grpc_url, *QUICK]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*command, "--json", str(path)], stdout=writing, stderr=subprocess.PIPE, text=True, check=False, timeout=300
        )
    finally:
        os.close(writing)
    assert "Traceback" not in done.stderr
    assert done.returncode
    assert json.loads(path.read_text())["levels"]


@pytest.mark.server
def test_ctrl_c_prints_what_there_is(server: serve.Server, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    command = [
        sys.executable,
        "-c",
        "from repo_builder.cli import main; main()",
        "perf",
        "linear",
        "--url",
        server.grpc_url,
    ]
    with subprocess.Popen(
        [*command, "--window-ms", "200", "--concurrency", "1,2,3", "--json", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stderr is not None
            line = process.stderr.readline()  # the first level is done
            while line and "concurrency 1" not in line:
                line = process.stderr.readline()
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            shown, errors = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert "concurrency 1 × batch 1" in shown
    assert "ended early: interrupted" in shown
    assert json.loads(path.read_text())["stopped"] == "interrupted"


@pytest.mark.server
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--concurrency", "x"], 11, "--concurrency: 'x' is neither numbers"),
        (["--batch-size", "99"], 11, "batch 99 is more than the model's max_batch_size 8"),
        (["--data", "nothing.npz"], 4, "nothing.npz"),
        (["--recipe", "nothing"], 3, "no built-in recipe and no file 'nothing'"),
        (["--baseline", "nothing.json"], 11, "nothing.json: cannot be read"),
        (["--json", "/proc/run.json"], 12, "/proc"),
        (["--shape", "x:4,4"], 11, r"does not fit the input x fp32[4]"),
        (["--version", "7"], 11, "not ready"),
        (["--metrics-url", "x:y"], 11, "--metrics-url: 'x:y' is not host:port"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    server: serve.Server, arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert perf(server, *arguments) == code
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["m", "--url", "127.0.0.1:9"], 11, "cannot be reached (connection refused)"),
        (["m", "--url", "127.0.0.1:9", "--protocol", "http"], 11, "cannot be reached (connection refused)"),
        (["m", "--url", "ftp://x"], 11, "'ftp://' is not supported"),
        (["m", "--header", "no colon"], 2, "'no colon' is no header"),
        (["m", "--header", "a: b\r\nc: d"], 2, "is no header"),
        (["m", "--key-file", "k.pem"], 2, "--key-file needs --cert-file"),
        (["m", "--url", "127.0.0.1:9", "--ca-file", "none.pem"], 11, "--ca-file none.pem: there is no such file"),
        (["m", "--poisson"], 2, "--poisson needs --request-rate"),
        (["m", "--duration", "1", "--requests", "9"], 2, "different ends"),
        (["m", "--concurrency", "1", "--request-rate", "5"], 2, "different loads"),
        *((["m", f"--{option}", value], 2, f"Invalid value for '--{option}'") for option, value in WRONG),
        (["m", "--report", "/"], 12, "/: is a folder → name a file"),
        (["m", "--csv", ""], 12, ".: is a folder → name a file"),
        (["m", "--json", "/"], 12, "/: is a folder → name a file"),
        (["m", "--concurrency", "nan"], 11, "--concurrency: 'nan' is neither numbers"),
        (["m", "--request-rate", "1:inf:x2"], 11, "--request-rate: '1:inf:x2' is neither numbers"),
        ([], 2, "Missing argument 'MODEL'"),
        (["--json", "run.json"], 2, "Missing argument 'MODEL'"),
    ],
)
def test_misuse(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["perf", *arguments]) == code
    assert message in capsys.readouterr().err
