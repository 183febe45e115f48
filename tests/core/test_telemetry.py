"""ONNX Runtime tells nobody of what it runs, in any process of this package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
CODE = "import repo_builder, onnxruntime; print(onnxruntime.get_available_providers())"


def left(tmp_path: Path) -> list[str]:
    values = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    values |= {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", CODE], env=values, check=True, capture_output=True)
    return [item.name for item in tmp_path.rglob("*")]


def test_nothing_is_written(tmp_path: Path) -> None:
    assert left(tmp_path) == []


def test_who_wants_it_can_have_it(tmp_path: Path) -> None:
    values = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    code = "import repo_builder, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], env=values, check=True, capture_output=True, text=True)
    assert done.stdout == "0\n"
