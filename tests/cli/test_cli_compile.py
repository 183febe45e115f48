"""``repo-builder compile``: an artifact that was exported elsewhere, copied whole or not."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from repo_builder import cli


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    place = ["--work", str(folder / "build"), "--output", str(folder / "repository")]
    assert cli.run(["build", "jsc-tiny", "--target", "onnxruntime", *place]) == 0
    return folder / "build/jsc-tiny/onnx"


@pytest.fixture
def copied(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(built, tmp_path / "build/jsc-tiny/onnx")


def compiled(*more: str) -> int:
    return cli.run(["compile", "build/jsc-tiny", "--target", "onnxruntime", *more])


def test_a_copy_is_compiled_and_placed_with_its_provenance(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compiled("--json") == 0
    placed = Path(json.loads(capsys.readouterr().out)["model_folder"])
    details = json.loads((placed / "1/manifest.json").read_text(encoding="utf-8"))["details"]
    assert details["onnx_sha256"] == hashlib.sha256((copied / "model.fp32.onnx").read_bytes()).hexdigest()
    assert compiled("--json") == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == ["export", "compile", "place"]


@pytest.mark.parametrize("name", ["model.fp32.onnx", "ranges.npz", "outputs.npz"])
@pytest.mark.parametrize("damage", ["absent", "cut short", "another"])
def test_a_copy_that_is_not_whole_is_refused(
    copied: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = copied / name
    if damage == "absent":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(file.read_bytes()[:200])
    else:
        other = "ranges.npz" if name == "model.fp32.onnx" else "model.fp32.onnx"
        shutil.copyfile(copied / other, file)
    assert compiled("--force") == 9
    told = capsys.readouterr().err
    assert f"error: build/jsc-tiny/onnx/{name}: " in told
    assert told.endswith("→ copy all of build/jsc-tiny/onnx again, or build it again\n")
    assert not Path("model_repository").exists()


@pytest.mark.parametrize("damaged", [{"layers.0": "int7"}, "yes"])
def test_a_manifest_whose_details_are_damaged_is_refused(
    copied: Path, damaged: object, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = copied / "manifest.json"
    value = json.loads(manifest.read_text(encoding="utf-8"))
    value["details"]["as_it_came"] = damaged
    manifest.write_text(json.dumps(value), encoding="utf-8")
    assert compiled() == 9
    assert "build/jsc-tiny/onnx/manifest.json: is damaged (details" in capsys.readouterr().err
    assert not Path("model_repository").exists()


def test_what_is_no_artifact_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("afile").write_text("")
    assert cli.run(["compile", "afile"]) == 9
    told = "afile: is a file, not a folder → name the folder that repo-builder build made, as build/vgg"
    assert told in capsys.readouterr().err
    assert cli.run(["compile", "nowhere"]) == 9
    assert "nowhere/onnx: there is no manifest.json" in capsys.readouterr().err


@pytest.fixture
def naming_code(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copied artifact whose manifest names a module that leaves a file behind when it is imported."""
    manifest = json.loads((copied / "manifest.json").read_text(encoding="utf-8"))
    for value in (manifest["recipe"]["model"], manifest["recipe"]["data"]):
        value.update(source="planted_code:read", arguments={})
    manifest["recipe"].setdefault("measure", {})["metric"] = "planted_code:score"
    (copied / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    Path("planted_code.py").write_text("open('was_run', 'w').close()\ndef read(): raise ValueError('read')\n")
    monkeypatch.delitem(sys.modules, "planted_code", raising=False)
    return Path("was_run")


def test_code_that_a_copied_manifest_names_is_not_imported(
    naming_code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compiled("--json") == 0
    captured = capsys.readouterr()
    assert not naming_code.exists()
    assert "'planted_code:read' is code that" in captured.err
    assert "--trust-code" in captured.err
    assert [item["form"] for item in json.loads(captured.out)["accuracy"]][-1] != "onnxruntime"


def test_whoever_trusts_the_manifest_or_names_the_code_runs_it(
    naming_code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine_instead.py").write_text("def read(): raise ValueError('mine')\n")
    assert compiled("--set", "data.source=mine_instead:read") == 0  # data that cannot be had scores nothing
    assert "raised ValueError: mine" in capsys.readouterr().err
    assert not naming_code.exists()
    assert compiled("--trust-code") == 0
    assert "raised ValueError: read" in capsys.readouterr().err
    assert naming_code.exists()
