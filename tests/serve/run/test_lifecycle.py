"""Servers that start, fail to start, are stopped and are killed: nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from repo_builder import serve
from repo_builder.core.errors import ServeError
from repo_builder.serve.run import detached, health

pytestmark = pytest.mark.server
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
FREE_PORTS = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
QUICKLY = [*FREE_PORTS, "--", "--disable-auto-complete-config"]


def members(group: int) -> list[str]:
    """Return the processes of a group that run."""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "stat=,args=", "-g", str(group)], capture_output=True, text=True, check=False
    )
    return [line for line in listed.stdout.splitlines() if not line.startswith("Z")]


def gone(group: int, seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not members(group)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_and_its_server_cleanly(
    cli: Callable[..., Any], small: Path, sent: signal.Signals
) -> None:
    command = cli(small, "--runtime", "embedded", "--json", *QUICKLY)
    told = command.told()
    assert health.ready(told["http"], ["linear"])
    assert len(members(told["pid"])) == 2
    command.process.send_signal(sent)
    code, errors = command.end()
    assert code == 0, errors
    assert "successfully loaded 'linear'" in errors
    assert members(told["pid"]) == []


def test_killing_the_command_takes_the_server_along(cli: Callable[..., Any], small: Path) -> None:
    command = cli(small, "--runtime", "embedded", "--json", *QUICKLY)
    told = command.told()
    command.process.kill()
    assert gone(told["pid"])


def test_a_server_that_dies_is_told_and_leaves_no_children(cli: Callable[..., Any], small: Path) -> None:
    command = cli(small, "--runtime", "embedded", "--json", *QUICKLY)
    told = command.told()
    words = [word for line in members(told["pid"]) for word in line.split() if "_shm_region_" in word]
    regions = [SHARED_MEMORY / word for word in words]
    assert [region.exists() for region in regions] == [True]
    os.kill(told["pid"], signal.SIGKILL)
    code, errors = command.end()
    assert code == 10
    assert "error: Triton ended unasked by SIGKILL" in errors
    assert gone(told["pid"], 1)
    assert not regions[0].exists()


def test_detached_servers_are_found_again_and_stopped(cli: Callable[..., Any], small: Path) -> None:
    started = cli(small, "--runtime", "embedded", "--detach", "--json", *QUICKLY)
    told = started.told()
    assert started.end()[0] == 0
    (found,) = serve.running(small)
    assert (found.pid, detached.state(found).told, found.runtime) == (told["pid"], "ready", "embedded")
    assert "successfully loaded 'linear'" in Path(told["log"]).read_text()

    code, errors = cli(small, "--runtime", "embedded", "--detach", *FREE_PORTS).end()
    assert code == 10
    assert "is already served" in errors
    port = told["http"].rpartition(":")[2]
    other = small.parent / "other"
    (other / "linear").mkdir(parents=True)
    code, errors = cli(other, "--runtime", "embedded", "--http-port", port).end()
    assert code == 10
    assert f"port {port} is in use by the detached server of {small}" in errors

    status = cli("--status", "--json")
    (shown,) = json.loads(status.process.communicate()[0])
    assert (shown["pid"], shown["ready"], shown["repository"]) == (told["pid"], True, str(small))
    assert "ready" in cli("--status").process.communicate()[0]
    assert cli("--stop", small).end()[0] == 0
    assert members(told["pid"]) == []
    assert serve.running(small) == []
    code, errors = cli("--stop", small).end()
    assert code == 0
    assert "no detached server is running" in errors


def test_each_model_that_does_not_load_is_named_with_the_reason(
    tmp_path: Path, make: SimpleNamespace, any_ports: dict[str, int]
) -> None:
    repository = tmp_path / "repository"
    model = make.linear(tmp_path / "model.onnx").read_bytes()
    broken = {
        "corrupt": (b"not an onnx file", make.LINEAR),
        "absent": (None, make.LINEAR),
        "other_type": (model, make.LINEAR.replace("TYPE_FP32 dims: [ 4 ]", "TYPE_INT32 dims: [ 4 ]")),
        "other_name": (model, make.LINEAR.replace('"x"', '"image"')),
        "other_shape": (model, make.LINEAR.replace("dims: [ 4 ]", "dims: [ 5 ]")),
        "wants_openvino": (
            model,
            make.LINEAR
            + 'optimization { execution_accelerators { cpu_execution_accelerator [ { name: "openvino" } ] } }',
        ),
        "threads": (
            model,
            make.LINEAR + 'parameters { key: "intra_op_thread_count" value: { string_value: "many" } }',
        ),
        "nonsense": (model, "input {"),
    }
    for name, (content, text) in broken.items():
        make.config(repository / name, text)
        (repository / name / "1").mkdir()
        if content is not None:
            (repository / name / "1" / "model.onnx").write_bytes(content)
    log = tmp_path / "log"
    with serve.start(repository, runtime="embedded", log=log, **any_ports) as server:
        with pytest.raises(ServeError, match="did not load"):
            server.wait_ready(300)
        reasons = health.failed_models(server.tail())
    assert server.exit_code is not None
    expected = {
        "corrupt": "cannot load the model",
        "absent": "model.onnx: there is no such file",
        "other_type": "the input 'x' is TYPE_INT32 in config.pbtxt and TYPE_FP32 in the model",
        "other_name": "the model has no input 'image' (it has x)",
        "other_shape": "the input 'x' has the shape [-1, 5] in config.pbtxt and [-1, 4] in the model",
        "wants_openvino": "asks for OpenVINOExecutionProvider",
        "threads": "parameter 'intra_op_thread_count' is 'many'",
        "nonsense": "failed to read text proto",
    }
    assert set(reasons) == set(expected)
    for name, words in expected.items():
        assert words in reasons[name]
        assert "Error" not in reasons[name].partition(":")[0]
        assert "\n" not in reasons[name]
        assert "\\n" not in reasons[name]


def test_the_command_says_why_a_model_did_not_load(cli: Callable[..., Any], small: Path) -> None:
    (small / "linear" / "1" / "model.onnx").write_bytes(b"\0" * 100)
    code, errors = cli(small, "--runtime", "embedded", "--detach", *FREE_PORTS).end()
    assert code == 10
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    assert "the model 'linear' did not load" in last
    assert "repo-builder validate" in last
    assert str(detached.log_file(small)) in last
    assert "model_lifecycle.cc" in errors  # the end of the log, which went to a file
    assert "+---" not in errors
    assert "Traceback" not in errors
    assert serve.running(small) == []


def test_a_model_that_takes_for_ever_meets_the_deadline(tmp_path: Path, any_ports: dict[str, int]) -> None:
    version = tmp_path / "repository" / "slow" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(
        "import time\nclass TritonPythonModel:\n    def initialize(self, args):\n        time.sleep(600)\n"
    )
    (version.parent / "config.pbtxt").write_text(
        'backend: "python"\ninput [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]\ninstance_group [ { kind: KIND_CPU } ]'
    )
    with serve.start(tmp_path / "repository", runtime="embedded", log=tmp_path / "log", **any_ports) as server:
        with pytest.raises(ServeError, match=r"not ready after 3 s \(still loading slow\)"):
            server.wait_ready(3)
        assert gone(server.pid, 1)


def test_options_after_the_dashes_reach_tritonserver_and_models_are_chosen(
    small: Path, make: SimpleNamespace, any_ports: dict[str, int]
) -> None:
    make.config(small / "unwanted", "input {")
    options = ["--id=chosen", "--disable-auto-complete-config"]
    with serve.start(
        small, runtime="embedded", models=["linear"], options=options, log=small / "log", **any_ports
    ) as server:
        server.wait_ready(300)
        assert any("chosen" in line for line in server.tail())
        http = infer_http(server, np.ones((1, 4), np.float32))
    assert http == (1, 3)
    assert server.exit_code == 0


def infer_http(server: serve.Server, x: np.ndarray) -> tuple[int, ...]:
    from tritonclient import http

    with http.InferenceServerClient(server.http_url) as client:
        (item,) = [http.InferInput("x", list(x.shape), "FP32")]
        item.set_data_from_numpy(x)
        shape: tuple[int, ...] = client.infer("linear", [item]).as_numpy("y").shape
        return shape


def test_a_port_in_use_is_named_before_anything_starts(small: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"port {port} on 127.0.0.1 is in use") as caught:
            serve.start(small, runtime="embedded", http_port=0, grpc_port=port, metrics_port=0)
    assert caught.value.where == "--grpc-port"
