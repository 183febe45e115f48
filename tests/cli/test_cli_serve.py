"""``repo-builder serve`` without a Triton; tests/serve/test_serve_lifecycle.py has one."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from repo_builder import recipes
from repo_builder.cli import run
from repo_builder.core import artifacts, environment
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.details import TensorRTDetails
from repo_builder.core.tensors import ShapeProfile


@pytest.fixture(autouse=True)
def no_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "my repository"
    (folder / "vgg" / "1").mkdir(parents=True)
    (folder / "vgg" / "config.pbtxt").write_text('backend: "tensorrt"\n')
    (folder / "vgg" / "1" / "manifest.json").write_text('{"details": {"tensorrt_version": "8.5.3.1"}}')
    return folder


def test_the_command_is_printed_and_nothing_is_run(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    ports = ["--http-port", "9000", "--grpc-port", "9001", "--metrics-port", "9002"]
    assert run(["serve", str(repository), "--print-command", *ports, "--model", "vgg", "--", "--id=a b"]) == 0
    captured = capsys.readouterr()
    # this Triton is too old to be closed: it loads nothing by request, and sees the models named alone
    assert captured.err.startswith("warning: the Triton of nvcr.io/nvidia/tritonserver:23.03-py3 cannot close")
    assert captured.out == (
        "docker run --rm \\\n"
        "  --gpus all \\\n"
        "  --shm-size 1g \\\n"
        "  --publish 127.0.0.1:9000:8000 \\\n"
        "  --publish 127.0.0.1:9001:8001 \\\n"
        "  --publish 127.0.0.1:9002:8002 \\\n"
        f"  --mount 'type=bind,source={repository}/vgg,target=/models/vgg,readonly' \\\n"
        "  nvcr.io/nvidia/tritonserver:23.03-py3 tritonserver --model-repository=/models \\\n"
        "  '--id=a b'\n"
    )


def test_the_printed_command_is_closed_with_a_key_of_its_own(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["serve", str(repository), "--print-command", "--image", "mine:24.10", "--model", "vgg"]
    assert run(command) == 0
    closed = r"shared-memory,model-repository,trace,logging:repo-builder=([0-9a-f]{32})\s"
    printed = capsys.readouterr().out
    options = ("--grpc-restricted-protocol", "--http-restricted-api")
    keys = [key for option in options for key in re.findall(f"{option}={closed}", printed)]
    assert len(keys) == 2
    assert "--load-model=vgg" in printed
    assert run(command) == 0
    assert keys[0] not in capsys.readouterr().out
    assert run([*command, "--open-control"]) == 0
    assert "restricted" not in capsys.readouterr().out


def test_another_image_may_be_named(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(repository), "--print-command", "--image", "mine:7"]) == 0
    assert "\n  mine:7 tritonserver" in capsys.readouterr().out


def test_where_nothing_runs_status_and_stop_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--status"]) == 0
    assert run(["serve", "--stop", "--all"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("no detached server is running") == 2
    assert run(["serve", "--status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 10, "nowhere: there is no model repository → run repo-builder build first"),
        (["nowhere", "--print-command"], 10, "there is no model repository"),
        (["one", "two"], 2, "unexpected argument 'two'"),
        (["--runtime", "magic"], 2, "magic"),
        (["--http-port", "x"], 2, "not a valid integer"),
        (["--mps", "--print-command"], 10, "--mps: is for the embedded Triton"),
        (["--mps", "--runtime", "container"], 10, "→ leave --mps out, or use --runtime embedded"),
        (["--mps", "--image", "mine:7"], 10, "--mps: is for the embedded Triton"),
        (["--backend-directory", "x", "--print-command"], 10, "--backend-directory: is for the embedded Triton"),
        (["--backend-directory", "nowhere", "--runtime", "embedded"], 10, "there is no model repository"),
        (["--all"], 2, "--all goes with --stop or --restart"),
        (["--stop", "--all", "one"], 2, "--all goes with --stop or --restart, and without a repository"),
    ],
)
def test_misuse_is_one_sentence(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # where nothing was built
    assert run(["serve", *arguments]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_a_port_in_use_is_named_with_its_option(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", str(repository), "--runtime", "embedded", "--http-port", str(port)]) == 10
    assert f"error: --http-port: port {port} on 127.0.0.1 is in use" in capsys.readouterr().err


def test_a_plan_for_another_gpu_is_refused_before_triton_starts(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = environment.Gpu(name="NVIDIA H200", compute_capability="9.0", memory_mib=143771, driver="580.159.04")
    monkeypatch.setattr(environment, "gpus", lambda: (gpu,))
    monkeypatch.setattr(environment, "version", lambda _: "8.5.3.1")
    recipe, version = recipes.load("vgg"), repository / "vgg" / "1"
    plan = version / "model.plan"
    plan.write_bytes(b"plan")
    profile = {"image": ShapeProfile(min=(2, 3, 32, 32), opt=(2, 3, 32, 32), max=(8, 3, 32, 32))}
    details = TensorRTDetails(
        max_batch_size=8, tensorrt_version="8.4.0.1", compute_capability="1.0", gpu="8800", profiles=(profile,)
    )
    inputs, outputs = recipe.model.inputs, recipe.model.outputs
    artifacts.write_manifest(
        EngineArtifact(
            path=version,
            key="",
            recipe=recipe,
            inputs=inputs,
            outputs=outputs,
            files=artifacts.hashes(version),
            details=details,
        )
    )
    (repository / "vgg" / "config.pbtxt").write_text('backend: "tensorrt"\nmax_batch_size: 8\n')
    assert run(["serve", str(repository), "--runtime", "embedded"]) == 10
    again = "→ repo-builder compile build/vgg --target tensorrt, on this machine"
    config = repository / "vgg" / "config.pbtxt"
    lines = capsys.readouterr().err.splitlines()[1:]
    assert f"also: {config}: Triton may send image [1, 3, 32, 32], and the plan's profiles do not" in lines.pop(1)
    assert lines == [
        f"also: {plan}: was built by TensorRT 8.4.0.1, and 8.5.3.1 is installed here {again}",
        f"error: {plan}: was built for 8800 (compute capability 1.0), and here is NVIDIA H200 (9.0) {again}",
    ]
    assert run(["serve", str(repository), "--runtime", "container"]) == 10
    captured = capsys.readouterr()
    assert f"error: {plan}: was built for 8800" in captured.err
    assert "TensorRT" not in captured.err
    assert "docker" not in captured.err
    # another model of the repository may be served all the same; here it is not even there
    assert run(["serve", str(repository), "--runtime", "container", "--model", "other"]) == 10
    assert "there is no model 'other'" in capsys.readouterr().err


def test_a_missing_tensorrt_is_a_missing_dependency(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = environment.Gpu(name="NVIDIA H200", compute_capability="9.0", memory_mib=143771, driver="580.159.04")
    monkeypatch.setattr(environment, "gpus", lambda: (gpu,))
    monkeypatch.setattr(environment, "version", lambda _: None)
    (repository / "vgg" / "1" / "model.plan").write_bytes(b"plan")
    assert run(["serve", str(repository), "--runtime", "embedded"]) == 13
    told = capsys.readouterr().err.splitlines()[-1]
    assert "needs TensorRT, which is not installed → pip install 'repo-builder[tensorrt]'" in told


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "\n  repo-builder serve --print-command" in shown
    assert "TRITON OPTIONS" in shown


def test_asking_for_the_status_imports_nothing_heavy() -> None:
    code = (
        "import sys; from repo_builder.cli import run; run(['serve', '--status']); run(['serve', '--help']);"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'tritonclient', 'numpy', 'pytriton'}; print(heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.splitlines()[-1] == "set()"
