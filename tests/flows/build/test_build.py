"""The stages in their order, on the smallest built-in network."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import onnx
import pytest

from repo_builder import recipes
from repo_builder.core import artifacts, files
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.details import OnnxDetails
from repo_builder.core.errors import MissingDependency, ModelError, OutputError, RecipeError
from repo_builder.flows import build as building
from repo_builder.flows.build import BuildOptions, BuildResult


def options(folder: Path, *settings: str, recipe: str = "jsc-tiny") -> BuildOptions:
    return BuildOptions(
        recipe=recipes.load(recipe, settings),
        work=folder / "build",
        repository=folder / "model_repository",
        target="onnxruntime",
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildResult]:
    folder = tmp_path_factory.mktemp("built")
    return folder, building.build(options(folder))


def test_a_build_makes_every_artifact(built: tuple[Path, BuildResult]) -> None:
    folder, result = built
    assert result.skipped == ()
    assert result.model_folder == folder / "model_repository" / "jsc-tiny"
    assert (result.model_folder / "1/model.onnx").read_bytes() == result.engine.model.read_bytes()
    exported = artifacts.read(OnnxArtifact, folder / "build/jsc-tiny/onnx")
    assert exported == result.exported
    onnx.checker.check_model(onnx.load(exported.model), full_check=True)
    assert [item.form for item in result.engine.accuracy] == ["fp32", "fake-quantized", "onnx", "onnxruntime"]
    assert {item.samples for item in result.engine.accuracy} == {4000}
    assert result.engine.accuracy[2].agreement is not None
    assert result.engine.accuracy[2].agreement >= 0.999
    with np.load(exported.path / "outputs.npz") as saved:
        assert {name: saved[name].shape for name in saved} == dict.fromkeys(
            ("fp32", "fake_quantized", "onnx"), (4000, 5)
        )


def test_what_is_up_to_date_is_skipped_without_torch(built: tuple[Path, BuildResult]) -> None:
    folder, _ = built
    code = f"""
        import sys
        from pathlib import Path
        from repo_builder import recipes
        from repo_builder.flows import build as building
        options = building.BuildOptions(
            recipe=recipes.load("jsc-tiny"), work=Path({str(folder / "build")!r}),
            repository=Path({str(folder / "model_repository")!r}), target="onnxruntime",
        )
        assert building.build(options).skipped == ("export", "compile", "place")
        assert "torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("setting", "skipped"),
    [
        ("repository.max_queue_delay_us=777", ("export", "compile")),
        ("repository.max_batch_size=300", ("export",)),
        ("compile.onnxruntime.intra_op_thread_count=2", ("export",)),
    ],
)
def test_a_change_runs_just_the_stages_that_it_concerns(
    built: tuple[Path, BuildResult], tmp_path: Path, setting: str, skipped: tuple[str, ...]
) -> None:
    shutil.copytree(built[0], tmp_path, dirs_exist_ok=True)
    result = building.build(options(tmp_path, setting))
    assert result.skipped == skipped
    config = (result.model_folder / "config.pbtxt").read_text(encoding="utf-8")
    number = setting.rpartition("=")[2]
    assert number in config
    assert artifacts.read(EngineArtifact, tmp_path / "build/jsc-tiny/engine").recipe == result.engine.recipe


def test_damage_is_noticed_and_mended(built: tuple[Path, BuildResult], tmp_path: Path) -> None:
    shutil.copytree(built[0], tmp_path, dirs_exist_ok=True)
    model = tmp_path / "model_repository/jsc-tiny/1/model.onnx"
    whole = model.read_bytes()
    model.write_bytes(b"damaged")
    assert building.build(options(tmp_path)).skipped == ("export", "compile")
    assert model.read_bytes() == whole


def test_two_builds_with_one_seed_are_the_same_bytes(built: tuple[Path, BuildResult], tmp_path: Path) -> None:
    again = building.build(options(tmp_path))
    for name in ("model.onnx", "model.fp32.onnx"):
        assert again.exported.files[name] == built[1].exported.files[name]
    assert again.engine.files["model.onnx"] == built[1].engine.files["model.onnx"]
    assert again.exported.key == built[1].exported.key


def test_a_build_that_fails_leaves_what_was_there(built: tuple[Path, BuildResult], tmp_path: Path) -> None:
    shutil.copytree(built[0], tmp_path, dirs_exist_ok=True)
    before = artifacts.hashes(tmp_path)
    with pytest.raises(RecipeError, match="matches no layer"):
        building.build(options(tmp_path, "quantize.layers.0.name=nothing.like.it"))
    assert artifacts.hashes(tmp_path) == before


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        building.build(dataclasses.replace(options(tmp_path), repository=tmp_path / "file" / "repository"))
    assert not (tmp_path / "build").exists()


def test_a_target_that_is_not_here_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delitem(sys.modules, "repo_builder.compile.tensorrt.target", raising=False)
    with pytest.raises(MissingDependency, match="the target 'tensorrt' needs the library 'tensorrt'"):
        building.build(dataclasses.replace(options(tmp_path), target="tensorrt"))
    assert not (tmp_path / "build").exists()


def test_the_engine_tells_what_it_was_made_of(built: tuple[Path, BuildResult], tmp_path: Path) -> None:
    folder, result = built
    details = artifacts.read(EngineArtifact, folder / "model_repository/jsc-tiny/1").details
    assert details.onnx_sha256 == files.sha256_of(result.exported.model)
    assert details.calibration_samples == result.exported.recipe.data.calibration
    assert details.weights_sha256 == result.exported.details.weights_sha256
    untold = OnnxDetails(layer_precisions=result.exported.details.layer_precisions)
    exported = dataclasses.replace(result.exported, details=untold)
    again = building.compile_artifact(exported, options(tmp_path))
    assert (again.engine.details.calibration_samples, again.engine.details.weights_sha256) == (None, None)


def test_an_exported_folder_is_compiled_where_nothing_else_is(built: tuple[Path, BuildResult], tmp_path: Path) -> None:
    folder, result = built
    shutil.copytree(folder / "build/jsc-tiny/onnx", tmp_path / "build/jsc-tiny/onnx")
    exported = building.load_exported(tmp_path / "build/jsc-tiny")
    again = building.compile_artifact(exported, dataclasses.replace(options(tmp_path), recipe=exported.recipe))
    assert again.engine.files["model.onnx"] == result.engine.files["model.onnx"]
    assert again.model_folder == tmp_path / "model_repository/jsc-tiny"


RECIPE = """
name = "mine"
[model]
source = "{source}"
{checkpoint}
inputs = [{{ name = "features", dtype = "fp32", shape = [6] }}]
outputs = [{{ name = "logits", dtype = "fp32", shape = [3] }}]
[data]
source = "samples.npz"
calibration = 64
[[quantize.layers]]
type = "Linear"
precision = "int8"
[[quantize.layers]]
name = "{last}"
precision = "fp16"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a network in a module of its own, its weights, and samples that it tells apart."""
    import safetensors.torch
    import torch

    from repo_builder.core.tensors import DType, TensorSpec
    from repo_builder.export.torch_onnx import export

    monkeypatch.chdir("/")  # everything is found from the recipe's folder
    (tmp_path / "users_net.py").write_text(
        textwrap.dedent("""
        from torch import nn
        def make():
            return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
        """)
    )
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 600)
    features = random.normal(0, 0.4, (600, 6)).astype(np.float32)
    features[np.arange(600), labels] += 2
    np.savez(tmp_path / "samples.npz", features=features, labels=labels)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    with torch.no_grad():  # the identity in the first three features: right by construction
        net[0].weight.copy_(torch.eye(16, 6))
        net[0].bias.zero_()
        net[3].weight.copy_(torch.eye(3, 16))
        net[3].bias.zero_()
    net.eval()
    safetensors.torch.save_file(net.state_dict(), tmp_path / "mine.safetensors")
    features_in = TensorSpec(name="features", dtype=DType.FP32, shape=(6,))
    logits_out = TensorSpec(name="logits", dtype=DType.FP32, shape=(3,))
    export(net, inputs=(features_in,), outputs=(logits_out,), opset=17, path=tmp_path / "mine.onnx")
    return tmp_path


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_a_users_own_model_and_data_go_the_same_way(project: Path, kind: str) -> None:
    recipe = project / "mine.toml"
    values = {
        "torch": {"source": "users_net:make", "checkpoint": 'checkpoint = "mine.safetensors"', "last": "3"},
        "onnx": {"source": "mine.onnx", "checkpoint": "", "last": "*3*"},
    }[kind]
    recipe.write_text(RECIPE.format(**values))
    result = building.build(options(project, recipe=str(recipe)))
    by_form = {item.form: item for item in result.engine.accuracy}
    assert by_form["fp32"].top1 is not None
    assert by_form["fp32"].top1 > 0.95
    assert by_form["onnxruntime"].top1 == pytest.approx(by_form["fp32"].top1, abs=0.02)
    assert sorted(item.precision for item in result.engine.layers) == ["fp16", "int8"]
    assert sorted(result.exported.details.layer_precisions.values()) == ["fp16", "int8"]


def test_a_file_that_is_no_onnx_model_is_told_with_what_to_do(project: Path) -> None:
    (project / "mine.onnx").write_bytes((project / "mine.onnx").read_bytes()[:100])
    recipe = project / "mine.toml"
    recipe.write_text(RECIPE.format(source="mine.onnx", checkpoint="", last="*3*"))
    with pytest.raises(ModelError, match=r"mine\.onnx: is not an ONNX model .* → export or copy it again"):
        building.build(options(project, recipe=str(recipe)))
