"""The whole way on a real tritonserver: build, validate, serve, perf, for an image and a jet classifier."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repo_builder import datasets, serve
from repo_builder.core import artifacts
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.serve import Server
from tests.conftest import dropped

pytestmark = [pytest.mark.server, pytest.mark.slow]

MODELS = ("vgg", "jsc")
HEAVY = ("torch", "tensorrt", "modelopt")


@dataclass(frozen=True)
class Deployment:
    folder: Path
    server: Server

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return command(self.folder, *arguments)

    def engine(self, model: str) -> EngineArtifact:
        return artifacts.read(EngineArtifact, self.folder / "build" / model / "engine")


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run repo-builder as a user would; light verbs import no heavy library, and do without ONNX Runtime."""
    gate = f"""
import sys
class Gate:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'", name=name)
        if name.partition(".")[0] in {HEAVY!r}:
            raise AssertionError("imports " + name)
if sys.argv[1] in ("perf", "validate", "config"):
    sys.meta_path.insert(0, Gate())
from repo_builder.cli import main
main()
"""
    return subprocess.run(
        [sys.executable, "-c", gate, *arguments], cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("e2e")
    for model in MODELS:
        done = command(folder, "build", model, "--target", "onnxruntime")
        assert done.returncode == 0, done.stderr
    done = command(folder, "validate", "model_repository")
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def deployment(built: Path) -> Iterator[Deployment]:
    repository = built / "model_repository"
    with dropped(serve.start(repository, runtime="embedded", http_port=0, grpc_port=0, metrics_port=0)) as server:
        server.wait_ready(timeout_s=300)
        yield Deployment(built, server)


@pytest.mark.parametrize("model", MODELS)
def test_accuracy_through_the_server_is_that_of_onnxruntime(deployment: Deployment, model: str) -> None:
    done = deployment.run(
        "perf", model, "--url", deployment.server.grpc_url, "--json", "--concurrency", "1", "--batch-size", "1",
        "--window-ms", "100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    engine = {item.form: item for item in deployment.engine(model).accuracy}["onnxruntime"]
    assert document["accuracy"]["top1"] == engine.top1
    assert document["accuracy"]["samples"] == engine.samples


@pytest.mark.parametrize("model", MODELS)
def test_int8_holds_the_accuracy_of_fp32(deployment: Deployment, model: str) -> None:
    forms = {item.form: item for item in deployment.engine(model).accuracy}
    assert forms["fp32"].top1 - forms["onnxruntime"].top1 <= 0.005  # type: ignore[operator]
    assert forms["exported"].agreement >= 0.999  # type: ignore[operator]
    assert forms["onnxruntime"].agreement >= 0.99  # type: ignore[operator]


@pytest.mark.parametrize("model", MODELS)
def test_outputs_through_the_server_are_those_of_onnxruntime(deployment: Deployment, model: str) -> None:
    import tritonclient.http as client

    engine = deployment.engine(model)
    recipe = engine.recipe
    samples = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed).split("test")
    spec, output = engine.inputs[0], engine.outputs[0].name
    with np.load(engine.path / "outputs.npz") as saved:
        expected = saved[f"engine/{output}"]
    with client.InferenceServerClient(deployment.server.http_url) as connection:
        for start in range(0, 256, 64):
            values = samples.inputs[spec.name][start : start + 64]
            tensor: Any = client.InferInput(spec.name, list(values.shape), "FP32")
            tensor.set_data_from_numpy(values)
            served = connection.infer(model, [tensor]).as_numpy(output)
            np.testing.assert_array_equal(served, expected[start : start + 64])


def test_kill_9_during_a_build_leaves_the_repository_loadable(built: Path, tmp_path: Path) -> None:
    """Builds of other weights into a served repository, killed at several moments of their way."""
    shutil.copytree(built / "model_repository", tmp_path / "model_repository")
    before = artifacts.hashes(tmp_path / "model_repository")
    arguments = ["build", "jsc", "--set", "seed=1", "--force"]
    started = time.monotonic()
    done = command(tmp_path, *arguments, "--output", "elsewhere")
    assert done.returncode == 0, done.stderr
    duration = time.monotonic() - started
    for share in (0.5, 0.95):  # the campaign kills at every moment
        build = subprocess.Popen(
            [sys.executable, "-m", "repo_builder", *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(share * duration)
        build.send_signal(signal.SIGKILL)
        build.wait()
        checked = command(tmp_path, "validate", "model_repository")
        assert checked.returncode == 0, checked.stdout
    after = artifacts.hashes(tmp_path / "model_repository")
    assert {name: value for name, value in after.items() if name.startswith("vgg/")} == {
        name: value for name, value in before.items() if name.startswith("vgg/")
    }
    with dropped(
        serve.start(tmp_path / "model_repository", runtime="embedded", http_port=0, grpc_port=0, metrics_port=0)
    ) as server:
        server.wait_ready(timeout_s=300)


def test_a_wrong_model_and_a_server_that_is_not_there_are_one_sentence(deployment: Deployment) -> None:
    done = deployment.run("perf", "vgg16", "--url", deployment.server.grpc_url)
    assert done.returncode == 11
    assert "vgg16" in done.stderr
    done = deployment.run("perf", "vgg", "--url", "127.0.0.1:9")
    assert done.returncode == 11
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
