from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from repo_builder import recipes
from repo_builder.cli import run
from repo_builder.compile import inspection
from repo_builder.core import artifacts
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.details import TensorRTDetails
from repo_builder.core.errors import CompileError
from repo_builder.core.records import Verdict

VERDICTS = [
    {"layer": "first", "node": "first", "asked": "int8", "got": "int8", "engine_layer": "first + relu"},
    {"layer": "last", "node": "last", "asked": "int8", "got": "fp32", "kind": "CaskConvolution", "tactic": "sm80_f32"},
]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection.environment, "gpus", lambda: ())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder with two versions; the newer has a plan and its manifest."""
    folder = tmp_path / "repository" / "net"
    for version in ("2", "10"):
        (folder / version).mkdir(parents=True)
        (folder / version / "model.plan").write_bytes(version.encode())
    recipe = recipes.load("vgg")
    precisions = tuple(Verdict(**item) for item in VERDICTS)
    details = TensorRTDetails(max_batch_size=8, tensorrt_version="8.5.3.1", gpu="NVIDIA H200", precisions=precisions)
    artifacts.write_manifest(
        EngineArtifact(
            path=folder / "10",
            key="k",
            recipe=recipe,
            inputs=recipe.model.inputs,
            outputs=recipe.model.outputs,
            files=artifacts.hashes(folder / "10"),
            details=details,
        )
    )
    return folder


def test_a_models_newest_version_is_told_by_its_manifest(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(model), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == str(model / "10" / "model.plan")
    assert told["source"] == "manifest"
    assert told["facts"] == {"tensorrt_version": "8.5.3.1", "gpu": "NVIDIA H200"}
    assert [(item["layer"], item["asked"], item["got"]) for item in told["verdicts"]] == [
        ("first", "int8", "int8"),
        ("last", "int8", "fp32"),
    ]


def test_people_see_what_is_not_as_asked(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("gpu: NVIDIA H200" in line for line in lines)
    assert [("not as asked" in line) for line in lines if line.startswith(("first", "last"))] == [False, True]


def test_a_manifest_of_another_plan_is_not_believed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "10" / "model.plan").write_bytes(b"another")
    assert run(["inspect", str(model)]) == 9
    told = capsys.readouterr().err
    assert f"{model / '10' / 'manifest.json'}: is about another model.plan (its sha256 differs)" in told
    assert "tensorrt" in told.lower()


@pytest.mark.parametrize("changed", [{"files": {}}, {"details": []}, {"kind": "onnx"}])
def test_the_engine_alone_is_shown_with_why_the_manifest_is_not(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    layers = {"Layers": ["conv"]}
    plan = SimpleNamespace(load=lambda _: SimpleNamespace(profiles=(), inspect=lambda: layers))
    monkeypatch.setitem(sys.modules, "repo_builder.compile.tensorrt.plan", SimpleNamespace(Plan=plan))
    manifest = model / "10" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changed))
    assert run(["inspect", str(model), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"warning: {manifest}: ")
    told = json.loads(captured.out)
    assert (told["source"], told["ignored"] != "") == ("engine", True)


@pytest.mark.parametrize(
    "precisions", [[{"of": "another version"}], 3, ["x"], [{"layer": 3, "node": "", "asked": "int8", "got": "int8"}]]
)
def test_a_manifest_whose_layers_are_damaged_is_not_believed(
    model: Path, capsys: pytest.CaptureFixture[str], precisions: Any
) -> None:
    rewrite(model, precisions=precisions)
    assert run(["inspect", str(model)]) == 9
    assert "is damaged (details.precisions" in capsys.readouterr().err


def test_a_manifest_without_layers_is_still_where_it_is_from(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(model, precisions=[])
    assert run(["inspect", str(model)]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("model.plan  (manifest)")


def test_a_plan_for_another_gpu_is_told_by_its_manifest(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plan:
        @staticmethod
        def load(path: Path) -> Any:
            raise CompileError("TensorRT 10.0.1 cannot load the plan")

    monkeypatch.setattr(inspection.environment, "gpus", lambda: ("one",))
    monkeypatch.setitem(sys.modules, "repo_builder.compile.tensorrt.plan", SimpleNamespace(Plan=Plan))
    assert run(["inspect", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "manifest"
    (model / "10" / "manifest.json").unlink()
    assert run(["inspect", str(model)]) == CompileError.exit_code
    assert "cannot load the plan" in capsys.readouterr().err


def test_a_damaged_manifest_is_none(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = model / "10" / "manifest.json"
    document = json.loads(manifest.read_text())
    del document["key"]
    manifest.write_text(json.dumps(document))
    assert run(["inspect", str(model)]) == 9
    told = capsys.readouterr().err
    assert "is damaged (the key 'key' is missing)" in told
    assert "tensorrt" in told.lower()


def rewrite(model: Path, **details: Any) -> None:
    manifest = model / "10" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["details"] |= details
    manifest.write_text(json.dumps(document))


def test_an_onnx_file_tells_its_own_precisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT16, [2, 2], [1.0, 0.0, 0.0, 1.0])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")], "g", ends[:1], ends[1:])
    graph.initializer.append(weight)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    assert run(["inspect", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (layer,) = told["layers"]
    assert {key: layer[key] for key in ("layer", "operator", "precision")} == {
        "layer": "layer",
        "operator": "MatMul",
        "precision": "fp16",
    }
    assert told["source"] == "graph, onnxruntime"
    assert layer["runs_as"] in ("MatMul", "Gemm")
    assert layer["got"] in ("fp16", "fp32")


@pytest.mark.parametrize(("name", "said"), [("nothing", "no such file or folder"), ("empty", "no model.plan")])
def test_what_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["inspect", str(tmp_path / name)]) == 9
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff\xff no onnx")
    assert run(["inspect", str(tmp_path / "model.onnx")]) == 9
    told = capsys.readouterr().err
    assert "is not an ONNX model" in told
    assert "→ copy it again" in told


def test_a_file_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.pbtxt").write_text("")
    assert run(["inspect", str(tmp_path / "config.pbtxt")]) == 9
    assert "→ name a .plan or an .onnx file, or a model's folder" in capsys.readouterr().err


def test_compile_needs_an_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compile", str(tmp_path)]) == 9
    assert "there is no manifest.json" in capsys.readouterr().err
