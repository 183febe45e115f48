"""``repo-builder validate``: one line a finding, exit codes, JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from repo_builder import cli
from repo_builder.core import environment
from repo_builder.core.tensors import DType, ShapeProfile

CONFIG = """
backend: "python"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of two sound models of the Python backend."""
    for name in ("one", "two"):
        (tmp_path / "r" / name / "1").mkdir(parents=True)
        (tmp_path / "r" / name / "1" / "model.py").write_text(
            "class TritonPythonModel:\n    def execute(self, requests): ..."
        )
        (tmp_path / "r" / name / "config.pbtxt").write_text(CONFIG)
    return tmp_path / "r"


def test_a_sound_repository(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["validate", str(repository)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"ok       {repository}: no errors and no warnings in 2 models\n"
    assert captured.err == ""


def test_errors_are_one_line_each_and_exit_with_1(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "two" / "config.pbtxt").write_text(CONFIG.replace("dims", "dim"))
    (repository / "one" / "1" / "model.py").unlink()
    assert cli.run(["validate", str(repository)]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "error    one/1/model.py: is missing",
        'error    two/config.pbtxt:3:42: is not a model configuration: Message type "inference.ModelInput" has no '
        "field named \"dim\" → did you mean 'dims'?",
    ]
    assert captured.err == f"error: {repository}: 2 errors and no warnings in 2 models\n"
    assert cli.run(["validate", str(repository), "--model", "one"]) == 1
    assert capsys.readouterr().err == f"error: {repository}: 1 error and no warnings in 1 model\n"


def test_warnings_count_where_asked(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "one" / "config.pbtxt").write_text(CONFIG + "dynamic_batching { }")
    assert cli.run(["validate", str(repository)]) == 0
    assert "no errors and 1 warning in 2 models" in capsys.readouterr().out
    assert cli.run(["validate", str(repository), "--strict"]) == 1


def test_the_engine_of_a_plan_without_a_manifest_is_asked(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = repository / "two"
    (model / "1" / "model.py").rename(model / "1" / "model.plan")
    (model / "config.pbtxt").write_text(CONFIG.replace("python", "tensorrt") + "max_batch_size: 8")
    assert cli.run(["validate", str(repository)]) == 0
    assert "only its engine can tell" in capsys.readouterr().out
    profile = {"x": ShapeProfile(min=(1, 4), opt=(2, 4), max=(4, 4))}
    tensors = [SimpleNamespace(name=name, dtype=DType.FP32, shape=(-1, 4)) for name in ("x", "z")]
    plan = SimpleNamespace(load=lambda _: SimpleNamespace(inputs=tensors[:1], outputs=tensors[1:], profiles=(profile,)))
    gpu = environment.Gpu(name="NVIDIA H200", compute_capability="9.0", memory_mib=143771, driver="580.159.04")
    monkeypatch.setattr(environment, "gpus", lambda: (gpu,))
    monkeypatch.setattr(environment, "version", lambda _: "8.5.3.1")
    monkeypatch.setitem(sys.modules, "repo_builder.compile.tensorrt.plan", SimpleNamespace(Plan=plan))
    assert cli.run(["validate", str(repository)]) == 1
    told = capsys.readouterr().out
    assert "two/config.pbtxt: max_batch_size is 8, and the plan's profiles end at 4" in told
    assert "two/config.pbtxt: output 'y' is not in the plan → there are: z" in told
    assert cli.run(["validate", str(repository), "--model", "one"]) == 0


def test_json(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "one" / "config.pbtxt").write_text('name: "x"' + CONFIG)
    assert cli.run(["validate", str(repository), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["models"], document["error"], document["warning"]) == (["one", "two"], 1, 0)
    assert document["findings"] == [
        {
            "level": "error",
            "path": "one/config.pbtxt",
            "message": "name is 'x' and the folder 'one'",
            "hint": "make both the same",
        }
    ]


def test_no_repository_exits_with_9(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["validate"]) == 9
    assert (
        capsys.readouterr().err == "error: model_repository: there is no such folder → repo-builder build makes one\n"
    )
    (tmp_path / "model_repository").mkdir()
    assert cli.run(["validate"]) == 9
    assert "is empty" in capsys.readouterr().err
