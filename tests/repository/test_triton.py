"""The real tritonserver and `validate` agree, and it loads what `place` writes."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.repository import config, layout
from repo_builder.repository.validate import validate

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(importlib.util.find_spec("pytriton") is None, reason="nvidia-pytriton is not installed"),
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="tritonserver needs Linux x86-64"
    ),
]

BACKEND = '''
import json
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    """Answers zeros, in the shapes of the configuration."""

    @staticmethod
    def auto_complete_config(config):
        return config

    def initialize(self, args):
        self.config = json.loads(args["model_config"])

    def execute(self, requests):
        outputs = self.config["output"]
        return [pb.InferenceResponse([self.zeros(item, request) for item in outputs]) for request in requests]

    def zeros(self, output, request):
        batch = request.inputs()[0].shape()[:1] if self.config["max_batch_size"] else []
        shape = [abs(size) for size in output.get("reshape", {"shape": output["dims"]})["shape"]]
        dtype = pb.triton_string_to_numpy(output["data_type"])
        return pb.Tensor(output["name"], np.zeros([*batch, *shape], dtype))
'''


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backend folder in which `onnxruntime` answers zeros."""
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.origin is not None
    server = Path(spec.origin).parent / "tritonserver"
    folder = tmp_path_factory.mktemp("triton")
    shutil.copytree(server / "backends" / "python", folder / "backends" / "python")
    stub = f"python_backend_stubs/{sys.version_info[0]}.{sys.version_info[1]}/triton_python_backend_stub"
    shutil.copy(server / stub, folder / "backends" / "python")
    shutil.copy(server / "bin" / "tritonserver", folder)
    for program in (folder / "tritonserver", folder / "backends" / "python" / "triton_python_backend_stub"):
        program.chmod(0o755)
    (folder / "backends" / "onnxruntime").mkdir()
    (folder / "backends" / "onnxruntime" / "model.py").write_text(BACKEND)
    return folder


@contextmanager
def _serving(triton: Path, repository: Path) -> Iterator[dict[str, dict[int, str]]]:
    """Start tritonserver, wait until every model has loaded or failed, and yield model → version → state."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(triton / "tritonserver"), f"--model-repository={repository}", f"--backend-directory={triton / 'backends'}",
        f"--http-port={port}", "--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false",
        "--exit-on-error=false", "--strict-readiness=false",
    ]  # fmt: skip
    libraries = Path(importlib.util.find_spec("pytriton").origin).parents[1] / "nvidia_pytriton.libs"  # type: ignore[union-attr,arg-type]
    # Triton's stub finds its Python by PATH: this one has what the backend imports
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PATH": path}
    with (triton / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        yield _states(server, port, triton / "log")
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(timeout=300)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _states(server: subprocess.Popen[bytes], port: int, log: Path) -> dict[str, dict[int, str]]:
    deadline = time.monotonic() + 300
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/repository/index", method="POST")
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 - a loopback address
                rows: list[dict[str, Any]] = json.load(response)
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
            continue
        found: dict[str, dict[int, str]] = {}
        for row in rows:
            found.setdefault(row["name"], {})[int(row.get("version") or 0)] = row.get("state", "")
        return found
    raise AssertionError(f"tritonserver did not answer: {log.read_text(errors='replace')[-2000:]}")


CONFIG = """
backend: "onnxruntime"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""
GROUP = "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
WARMUP = 'model_warmup [ { name: "w" batch_size: 1 inputs { key: "x" value: { data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } } } ]\n'  # noqa: E501
ENSEMBLE = """
platform: "ensemble"
max_batch_size: 4
input [ { name: "in" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "out" data_type: TYPE_FP32 dims: [ 4 ] } ]
ensemble_scheduling { step [
  { model_name: "sound" model_version: -1 input_map { key: "x" value: "in" } output_map { key: "y" value: "mid" } },
  { model_name: "sound" model_version: -1 input_map { key: "x" value: "mid" } output_map { key: "y" value: "out" } }
] }
"""

# name → (config.pbtxt, version folders); the names say what is wrong with them
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sound": (CONFIG + GROUP + WARMUP, ("1",)),
    "odd.näme+1": (CONFIG + GROUP, ("1",)),
    "latest-of-three": (CONFIG + GROUP, ("1", "2", "10")),
    "stray-folder": (CONFIG + GROUP, ("1", "old")),
    "other-name": ('name: "another"' + CONFIG + GROUP, ("1",)),
    "misspelt": (CONFIG + GROUP + "max_batchsize: 3", ("1",)),
    "byte-order-mark": ("\ufeff" + CONFIG + GROUP, ("1",)),
    "negative-batch": (CONFIG.replace("max_batch_size: 4", "max_batch_size: -1") + GROUP, ("1",)),
    "wrong-platform": ('platform: "tensorrt_plan"' + CONFIG + GROUP, ("1",)),
    "preferred-above": (CONFIG + GROUP + "dynamic_batching { preferred_batch_size: [ 8 ] }", ("1",)),
    "no-version": (CONFIG + GROUP, ()),
    "leading-zero": (CONFIG + GROUP, ("01",)),
    "policy-of-none": (CONFIG + GROUP + "version_policy { specific { versions: [ 7 ] } }", ("1",)),
    "cpu-with-gpus": (CONFIG + GROUP.replace("count: 1", "gpus: [ 0 ]"), ("1",)),
    "profile": (CONFIG + GROUP.replace("count: 1", 'profile: [ "0" ]'), ("1",)),
    "dimension-of-zero": (CONFIG.replace("[ 4 ]", "[ 0 ]", 1) + GROUP, ("1",)),
    "no-dims": (CONFIG.replace("dims: [ 4 ]", "", 1) + GROUP, ("1",)),
    "no-labels": (CONFIG.replace("output [ {", 'output [ { label_filename: "l.txt"') + GROUP, ("1",)),
    "warmup-name": (CONFIG + GROUP + WARMUP.replace('"x"', '"z"'), ("1",)),
    "warmup-type": (CONFIG + GROUP + WARMUP.replace("FP32", "INT32"), ("1",)),
    "warmup-dims": (CONFIG + GROUP + WARMUP.replace("[ 4 ]", "[ 5 ]"), ("1",)),
    "warmup-varies": (CONFIG + GROUP + WARMUP.replace("[ 4 ]", "[ -1 ]"), ("1",)),
    "ensemble": (ENSEMBLE, ("1",)),
    "ensemble-model": (ENSEMBLE.replace('"sound"', '"gone"', 1), ("1",)),
    "ensemble-cycle": (ENSEMBLE.replace('value: "in"', 'value: "out"', 1), ("1",)),
    "ensemble-shape": (ENSEMBLE.replace("[ 4 ]", "[ 5 ]"), ("1",)),
    "ensemble-batch": (ENSEMBLE.replace("max_batch_size: 4", "max_batch_size: 8"), ("1",)),
    "ensemble-name": (ENSEMBLE.replace('key: "x"', 'key: "z"', 1), ("1",)),
    "ensemble-unused": (ENSEMBLE.replace('value: "out" } }', 'value: "end" } }'), ("1",)),
}


@pytest.mark.slow
def test_validate_finds_an_error_where_triton_fails(
    backends: Path, tmp_path: Path, write_onnx: Callable[..., Path]
) -> None:
    repository = tmp_path / "r"
    for name, (text, versions) in CASES.items():
        (repository / name).mkdir(parents=True)
        (repository / name / "config.pbtxt").write_text(text)
        for version in versions:
            if "ensemble" in name:
                (repository / name / version).mkdir()
            else:
                write_onnx(repository / name / version / "model.onnx")
    found = {name: [item for item in validate(repository, [name]) if item.level == "error"] for name in CASES}
    with _serving(backends, repository) as states:
        loaded = {name for name, versions in states.items() if "READY" in versions.values()}
        assert states["latest-of-three"] == {10: "READY"}
    assert {name for name, errors in found.items() if not errors} == loaded
    assert {"sound", "odd.näme+1", "latest-of-three", "stray-folder", "ensemble"} == loaded


def test_triton_loads_what_is_placed(
    backends: Path, tmp_path: Path, make_engine: Callable[..., EngineArtifact]
) -> None:
    repository = tmp_path / "r"
    tables = {"repository": {"warmup_batch_sizes": [1, 8], "preferred_batch_sizes": [4, 8], "response_cache": True}}
    for content in ("one", "two", "three"):
        layout.place(make_engine(content=content, **tables), repository, version="next", keep_versions=2)
    (tmp_path / ".r.staging" / ".toy.killed.new").mkdir(parents=True)
    names = ('blank "quoted" \\ back\tslash', "größe/1:0", "日本", "plain")
    spec = config.ModelConfigSpec(
        name="odd",
        backend="onnxruntime",
        max_batch_size=8,
        inputs=tuple(
            TensorSpec(name=item, dtype=DType.FP32, shape=shape)
            for item, shape in zip(names, ((), (2,), (3, -1), (1,)), strict=True)
        ),
        outputs=(TensorSpec(name="out\n", dtype=DType.INT64, shape=()),),
        dynamic_batching=True,
        warmup_batch_sizes=(1, 8),
        warmup_shapes={"日本": (3, 5)},
        parameters={'k"': "v\\"},
        notes=("a note\nof two lines, größer",),
    )
    (repository / "odd" / "1").mkdir(parents=True)
    (repository / "odd" / "1" / "model.onnx").write_bytes(b"never read here")
    (repository / "odd" / "config.pbtxt").write_text(config.render(spec), encoding="utf-8")
    with _serving(backends, repository) as states:
        log = (backends / "log").read_text(errors="replace")
        assert states == {"toy": {2: "READY", 3: "READY"}, "odd": {1: "READY"}}, log[-3000:]
