from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from repo_builder import __version__
from repo_builder.core import environment


@pytest.fixture(autouse=True)
def fresh_cache() -> Any:
    environment.gpus.cache_clear()
    yield
    environment.gpus.cache_clear()


def test_versions_are_read_without_importing() -> None:
    assert environment.version("numpy") is not None
    assert environment.version("no-such-distribution") is None


def test_tensorrt_is_known_by_the_names_of_its_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(name: str) -> str:
        if name != "tensorrt-cu12":
            raise environment.importlib.metadata.PackageNotFoundError(name)
        return "10.13.3.9"

    monkeypatch.setattr(environment.importlib.metadata, "version", look_up)
    assert environment.version("tensorrt") == "10.13.3.9"
    assert environment.version("numpy") is None
    assert environment.describe()["libraries"]["repo-builder"] == __version__


def test_the_description_is_plain_json() -> None:
    described = environment.describe()
    assert json.loads(json.dumps(described)) == described
    assert "numpy" in described["libraries"]


def fake_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def test_gpus_are_what_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, monkeypatch, "echo 'NVIDIA H200, 9.0, 143771, 580.159.04'")
    gpu = environment.Gpu(name="NVIDIA H200", compute_capability="9.0", memory_mib=143771, driver="580.159.04")
    assert environment.gpus() == (gpu,)


def test_a_driver_that_does_not_answer_means_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path, monkeypatch, "echo 'NVIDIA-SMI has failed'; exit 9")
    assert environment.gpus() == ()


def test_no_driver_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert environment.gpus() == ()


def test_a_driver_that_hangs_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(environment.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(subprocess, "run", hang)
    assert environment.gpus() == ()


@pytest.mark.parametrize("asked", ["", "0"])
def test_onnx_runtime_reports_nothing_unless_the_user_says_so(tmp_path: Path, asked: str) -> None:
    """The package's own modules are the first to import it; whoever sets the variable decides."""
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    kept |= {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    kept |= {"ORT_DISABLE_TELEMETRY": asked} if asked else {}
    code = "import repo_builder.compile.onnxruntime.target, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (asked or "1")  # what a server started from here inherits
    if not asked:
        assert not [item for item in tmp_path.rglob("*") if item.is_file()]
