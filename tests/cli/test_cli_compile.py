"""``repo-builder compile``: an artifact that was exported elsewhere, copied whole or not."""

from __future__ import annotations

import hashlib
import json
import shutil
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
