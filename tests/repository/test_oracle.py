"""``validate`` and the real tritonserver agree on every model of the matrix.

What the server said stands in ``oracle.json``; ``make_oracle.py`` asks it again.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from repo_builder.core import environment
from repo_builder.repository.checks.findings import Finding
from repo_builder.repository.checks.target import Target
from repo_builder.repository.validate import validate

HERE = Path(__file__).parent
ORACLE: dict[str, Any] = json.loads((HERE / "oracle.json").read_text(encoding="utf-8"))
TABLE: dict[str, dict[str, Any]] = ORACLE["models"]
# What depends on the machine and not on the repository: the server that was asked had no GPU.
OF_THE_MACHINE = {"instance_group.gpu", "instance_group.gpu_named"}


def _matrix() -> ModuleType:
    folder = HERE / "oracle_matrix"
    spec = importlib.util.spec_from_file_location(
        "oracle_matrix", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["oracle_matrix"] = module  # its modules and their dataclasses look it up
    spec.loader.exec_module(module)
    return module


matrix = _matrix()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Finding]]:
    """Model → what validate finds for the embedded server."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    repository = tmp_path_factory.mktemp("matrix")
    matrix.write(repository, matrix.CASES)
    by_model: dict[str, list[Finding]] = {name: [] for name in matrix.CASES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "gpus", lambda: ())
        for item in validate(repository, target=Target(runtime="embedded")):
            by_model[item.path.partition("/")[0]].append(item)
    return by_model


def test_every_model_of_the_matrix_was_asked_about() -> None:
    assert set(TABLE) == set(matrix.CASES)
    assert sum(row["loads"] for row in TABLE.values()) > 100
    assert sum(not row["loads"] for row in TABLE.values()) > 100


def test_every_model_is_still_the_one_that_was_asked_about() -> None:
    changed = sorted(name for name, row in TABLE.items() if row.get("of") != matrix.digest(name))
    assert not changed, f"run tests/repository/make_oracle.py {' '.join(changed)}"


def test_the_server_that_was_asked_is_the_one_of_today() -> None:
    pytest.importorskip("pytriton", reason="the embedded Triton is not installed")
    found = environment.version("nvidia-pytriton")
    assert found == ORACLE["pytriton"], "run tests/repository/make_oracle.py without names"


@pytest.mark.parametrize("name", matrix.CASES)
def test_validate_says_what_the_server_said(found: dict[str, list[Finding]], name: str) -> None:
    errors = [str(item) for item in found[name] if item.level == "error"]
    if name in OF_THE_MACHINE:
        assert [item.level for item in found[name]] == ["warning"]
        assert not TABLE[name]["loads"]
    elif TABLE[name]["loads"]:
        assert not errors, "Triton loads it"
    else:
        assert errors, f"Triton does not load it: {TABLE[name]['words']}"
