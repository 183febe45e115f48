from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from repo_builder.core import artifacts
from repo_builder.core.artifacts import AccuracyRecord, EngineArtifact, LayerRecord, OnnxArtifact
from repo_builder.core.errors import RepositoryError
from repo_builder.core.recipe import parse
from repo_builder.core.tensors import ShapeProfile

DOCUMENT: dict[str, Any] = {
    "name": "net",
    "model": {
        "source": "vgg",
        "inputs": [{"name": "image", "dtype": "fp32", "shape": [3, 32, 32]}],
        "outputs": [{"name": "logits", "dtype": "fp32", "shape": [10]}],
    },
    "data": {"source": "digits"},
}


def written(folder: Path) -> OnnxArtifact:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(b"model")
    recipe = parse(DOCUMENT)
    artifact = OnnxArtifact(
        path=folder,
        key="key",
        recipe=recipe,
        inputs=recipe.model.inputs,
        outputs=recipe.model.outputs,
        classes=("a", "b"),
        files=artifacts.hashes(folder),
        layers=(LayerRecord(name="conv", type="Conv2d", rule="", precision="int8", input_amax=1.5),),
        accuracy=(AccuracyRecord(form="fp32", samples=10, top1=0.9, low=0.6, high=0.98),),
        details={"layer_precisions": {"conv": "int8"}},
    )
    artifacts.write_manifest(artifact)
    return artifact


def test_an_artifact_is_read_as_it_was_written(tmp_path: Path) -> None:
    artifact = written(tmp_path / "onnx")
    assert artifacts.read(OnnxArtifact, tmp_path / "onnx") == artifact


def test_up_to_date_means_the_same_key_and_whole_files(tmp_path: Path) -> None:
    artifact = written(tmp_path)
    assert artifacts.up_to_date(OnnxArtifact, tmp_path, "key") == artifact
    assert artifacts.up_to_date(OnnxArtifact, tmp_path, "other") is None
    artifact.model.write_bytes(b"damaged")
    assert artifacts.up_to_date(OnnxArtifact, tmp_path, "key") is None
    assert artifacts.up_to_date(OnnxArtifact, tmp_path / "nowhere", "key") is None


def test_what_is_not_such_an_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="there is no manifest"):
        artifacts.read(OnnxArtifact, tmp_path)
    written(tmp_path)
    with pytest.raises(RepositoryError, match="holds 'onnx' of schema 1, not 'engine'"):
        artifacts.read(EngineArtifact, tmp_path)
    manifest = tmp_path / artifacts.MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text(encoding="utf-8")), "schema": 0}))
    with pytest.raises(RepositoryError, match="schema 0"):
        artifacts.read(OnnxArtifact, tmp_path)
    for text in ("{", "[]", '{"kind": "onnx", "schema": 1}', '{"kind": "onnx", "schema": 1, "key": "", "recipe": 3}'):
        manifest.write_text(text)
        with pytest.raises(RepositoryError):
            artifacts.read(OnnxArtifact, tmp_path)


def test_an_artifact_is_whole_when_its_files_are_those_of_the_manifest(tmp_path: Path) -> None:
    artifact = written(tmp_path)
    (tmp_path / "notes.txt").write_text("someone's own")
    artifact.require_whole()
    with pytest.raises(RepositoryError, match=r"model\.onnx: is not the file that manifest\.json lists → copy all of"):
        dataclasses.replace(artifact, files={}).require_whole()
    with pytest.raises(
        RepositoryError, match=r"outputs\.npz: cannot be read \(No such file or directory\) → copy all of"
    ):
        dataclasses.replace(artifact, files={**artifact.files, "outputs.npz": ""}).require_whole()
    artifact.model.write_bytes(b"mod")
    with pytest.raises(RepositoryError, match=r"model\.onnx: is not the file"):
        artifact.require_whole()


@pytest.mark.parametrize("damaged", [{}, {"layer_precisions": ["int8"]}, {"layer_precisions": {"conv": 8}}])
def test_an_exported_artifact_says_what_each_layer_is(tmp_path: Path, damaged: dict[str, Any]) -> None:
    artifact = written(tmp_path)
    assert artifact.layer_precisions == {"conv": "int8"}
    with pytest.raises(RepositoryError, match=r"manifest\.json: the layer_precisions in it are damaged"):
        _ = dataclasses.replace(artifact, details=damaged).layer_precisions


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("")
    with pytest.raises(RepositoryError, match="afile: is a file, not a folder → name the folder") as caught:
        artifacts.read(OnnxArtifact, tmp_path / "afile" / "onnx")
    assert caught.value.where == str(tmp_path / "afile")


def test_an_engine_names_its_file_by_target(tmp_path: Path) -> None:
    base = written(tmp_path)
    values = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    engine = EngineArtifact(**{**values, "details": {"target": "tensorrt"}})
    assert engine.model.name == "model.plan"
    assert dataclasses.replace(engine, details={"target": "onnxruntime"}).model.name == "model.onnx"


@pytest.mark.parametrize("damaged", ["x", 3, [3], [{"image": 3}], [{"image": {"min": [1]}}]])
def test_an_engine_says_what_shapes_it_takes(tmp_path: Path, damaged: Any) -> None:
    base = written(tmp_path)
    values = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    profile = {"image": {"min": [1, 4], "opt": [2, 4], "max": [8, 4]}}
    engine = EngineArtifact(**{**values, "details": {"profiles": [profile]}})
    assert engine.profiles == ({"image": ShapeProfile(min=(1, 4), opt=(2, 4), max=(8, 4))},)
    assert dataclasses.replace(engine, details={}).profiles == ()
    with pytest.raises(RepositoryError, match="the profiles in it are damaged"):
        _ = dataclasses.replace(engine, details={"profiles": damaged}).profiles
