from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from repo_builder.core import artifacts
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.details import OnnxDetails, OnnxRuntimeDetails, SpeedRecord, TensorRTDetails
from repo_builder.core.errors import RepositoryError
from repo_builder.core.recipe import parse
from repo_builder.core.records import AccuracyRecord, LayerRecord, OutputRecord, Verdict
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
    (folder / "model.fp32.onnx").write_bytes(b"model")
    recipe = parse(DOCUMENT)
    artifact = OnnxArtifact(
        path=folder,
        key="key",
        recipe=recipe,
        inputs=recipe.model.inputs,
        outputs=recipe.model.outputs,
        classes=("a", "b"),
        files=artifacts.hashes(folder),
        layers=(LayerRecord(name="conv", type="Conv2d", asked="int8", input_amax=1.5),),
        accuracy=(
            AccuracyRecord(form="fp32", samples=10, top1=0.9, low=0.6, high=0.98),
            AccuracyRecord(form="onnx", samples=10, outputs=(OutputRecord(name="logits", cosine=0.99),)),
        ),
        details=OnnxDetails(data="digits", calibration_samples=8),
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
    with pytest.raises(RepositoryError, match="holds 'onnx' of schema 2, not 'engine'"):
        artifacts.read(EngineArtifact, tmp_path)
    manifest = tmp_path / artifacts.MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text(encoding="utf-8")), "schema": 0}))
    with pytest.raises(RepositoryError, match="schema 0"):
        artifacts.read(OnnxArtifact, tmp_path)
    for text in ("{", "[]", '{"kind": "onnx", "schema": 2}', '{"kind": "onnx", "schema": 2, "key": "", "recipe": 3}'):
        manifest.write_text(text)
        with pytest.raises(RepositoryError):
            artifacts.read(OnnxArtifact, tmp_path)


def test_an_artifact_is_whole_when_its_files_are_those_of_the_manifest(tmp_path: Path) -> None:
    artifact = written(tmp_path)
    (tmp_path / "notes.txt").write_text("someone's own")
    artifact.require_whole()
    with pytest.raises(
        RepositoryError, match=r"model\.fp32\.onnx: is not the file that manifest\.json lists → copy all of"
    ):
        dataclasses.replace(artifact, files={}).require_whole()
    with pytest.raises(
        RepositoryError, match=r"outputs\.npz: cannot be read \(No such file or directory\) → copy all of"
    ):
        dataclasses.replace(artifact, files={**artifact.files, "outputs.npz": ""}).require_whole()
    artifact.model.write_bytes(b"mod")
    with pytest.raises(RepositoryError, match=r"model\.fp32\.onnx: is not the file"):
        artifact.require_whole()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": None}, "the key 'key' is missing"),
        ({"key": 3}, "key: expected a string, found 3"),
        ({"inputs": [{"name": "x", "dtype": "fp33", "shape": []}]}, r"inputs\[0\]\.dtype: 'fp33' is no data type"),
        ({"layers": [{"nam": "conv"}]}, r"layers\[0\]\.nam: unknown key 'nam'"),
        ({"accuracy": {}}, "accuracy: expected an array"),
        ({"files": {"model.onnx": 7}}, r"files\.model\.onnx: expected a string"),
        ({"details": []}, r"details: expected a table, found \[\]"),
        ({"details": {"layer_precisions": {}}}, r"details\.layer_precisions: unknown key"),
        ({"details": {"calibration_samples": "8"}}, r"details\.calibration_samples: expected a whole number"),
        ({"layers": [{"name": "a", "type": "b", "asked": "int7"}]}, r"layers\[0\]\.asked: 'int7' is not one of"),
        ({"recipe": {**DOCUMENT, "seed": -1}}, "seed"),
        ({"environment": {"a": 10**400}}, r"environment\.a: a number of about 401 digits is too large"),
    ],
)
def test_what_is_damaged_in_a_manifest_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    written(tmp_path)
    manifest = tmp_path / artifacts.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text(encoding="utf-8")) | change))
    with pytest.raises(RepositoryError, match=rf"manifest\.json: is damaged \(.*{message}"):
        artifacts.read(OnnxArtifact, tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"key": ' + "1" * 5000 + "}", '{"a": ' * 900 + "1" + "}" * 900])
def test_a_manifest_that_python_cannot_hold_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / artifacts.MANIFEST).write_text(text)
    with pytest.raises(RepositoryError, match=r"manifest\.json: (is damaged|holds None)"):
        artifacts.read(OnnxArtifact, tmp_path)


def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("")
    with pytest.raises(RepositoryError, match="afile: is a file, not a folder → name the folder") as caught:
        artifacts.read(OnnxArtifact, tmp_path / "afile" / "onnx")
    assert caught.value.where == str(tmp_path / "afile")


def engine_of(folder: Path, details: OnnxRuntimeDetails | TensorRTDetails) -> EngineArtifact:
    base = written(folder)
    values = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    return EngineArtifact(**{**values, "details": details})


def test_an_engine_names_its_file_by_target(tmp_path: Path) -> None:
    assert engine_of(tmp_path, TensorRTDetails(max_batch_size=1)).model.name == "model.plan"
    assert engine_of(tmp_path, OnnxRuntimeDetails(max_batch_size=1)).model.name == "model.onnx"


PROFILE = {"image": ShapeProfile(min=(1, 4), opt=(2, 4), max=(8, 4))}
VERDICT = Verdict(layer="conv", node="conv", asked="int8", got="fp32", tactic="sm80")
SPEED = SpeedRecord(batch_size=1, reference_us=2.0, candidate_us=1.0)


@pytest.mark.parametrize(
    "details",
    [
        OnnxRuntimeDetails(max_batch_size=0, notes=("a",), speed=(SPEED,)),
        TensorRTDetails(max_batch_size=8, profiles=(PROFILE,), precisions=(VERDICT,), precision_counts={"fp32": 1}),
    ],
)
def test_each_targets_details_are_read_as_they_were_written(
    tmp_path: Path, details: OnnxRuntimeDetails | TensorRTDetails
) -> None:
    engine = engine_of(tmp_path, details)
    artifacts.write_manifest(engine)
    found = artifacts.read(EngineArtifact, tmp_path)
    assert found == engine
    assert found.profiles == getattr(details, "profiles", ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "rocket"}, r"details\.target: 'rocket' is not one of onnxruntime, tensorrt"),
        ({"target": None}, r"details\.target: None is not one of"),
        ({"profiles": 3}, r"details\.profiles: expected an array"),
        ({"profiles": [{"image": 3}]}, r"details\.profiles\[0\]\.image: expected a table"),
        ({"profiles": [{"image": {"min": [1]}}]}, r"profiles\[0\]\.image: the key 'opt' is missing"),
        ({"profiles": [{"image": {"min": [2], "opt": [1], "max": [1]}}]}, "profile shapes are not min <= opt <= max"),
        ({"profiles": [{}]}, "inputs, or dimensions of them, are missing"),
    ],
)
def test_details_that_no_target_wrote_are_damaged(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    artifacts.write_manifest(engine_of(tmp_path, TensorRTDetails(max_batch_size=8)))
    manifest = tmp_path / artifacts.MANIFEST
    document = json.loads(manifest.read_text(encoding="utf-8"))
    manifest.write_text(json.dumps(document | {"details": document["details"] | change}))
    with pytest.raises(RepositoryError, match=message):
        artifacts.read(EngineArtifact, tmp_path)
