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
from onnx import helper, numpy_helper

from repo_builder import recipes
from repo_builder.core import artifacts, files
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.details import OnnxDetails
from repo_builder.core.errors import MissingDependency, ModelError, OutputError, RecipeError
from repo_builder.export import qdq
from repo_builder.flows import build as building
from repo_builder.flows.build import BuildOptions, BuildResult
from repo_builder.report import choice


def options(folder: Path, *settings: str, recipe: str = "jsc-tiny") -> BuildOptions:
    """Every layer as asked: whether int8 pays for so small a network is this machine's to say."""
    return BuildOptions(
        recipe=recipes.load(recipe, ("quantize.keep=all", *settings)),
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
    assert [item.form for item in result.engine.accuracy] == ["fp32", "exported", "placed", "onnxruntime"]
    assert {item.samples for item in result.engine.accuracy} == {4000}
    assert result.engine.accuracy[1].agreement == 1
    assert result.engine.accuracy[3].agreement is not None
    assert result.engine.accuracy[3].agreement >= 0.999
    for folder, forms in ((exported.path, ("fp32", "exported")), (result.engine.path, ("placed", "engine"))):
        with np.load(folder / "outputs.npz") as saved:
            assert {name: saved[name].shape for name in saved} == {f"{form}/logits": (4000, 5) for form in forms}
    for layer in result.engine.layers:
        assert layer.asked == layer.got == "int8"
        assert layer.sqnr_db is not None
        assert 25 < layer.sqnr_db < 70
    assert [item.got for item in result.engine.details.precisions] == ["int8"] * len(result.engine.layers)


def test_what_is_up_to_date_is_skipped_without_torch(built: tuple[Path, BuildResult]) -> None:
    folder, _ = built
    code = f"""
        import sys
        from pathlib import Path
        from repo_builder import recipes
        from repo_builder.flows import build as building
        options = building.BuildOptions(
            recipe=recipes.load("jsc-tiny", ("quantize.keep=all",)), work=Path({str(folder / "build")!r}),
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
    for name in ("model.fp32.onnx",):
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
    untold = OnnxDetails()
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
    samples = {"features": features[:2]}
    made = export(net, inputs=(features_in,), outputs=(logits_out,), opset=17, path=tmp_path, samples=samples)
    onnx.save(made.model, tmp_path / "mine.onnx")
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
    assert sorted(item.asked for item in result.engine.layers) == ["fp16", "int8"]
    assert sorted(qdq.layer_precisions(onnx.load(result.engine.placed)).values()) == ["fp16", "int8"]
    assert all(item.sqnr_db is not None for item in result.engine.layers)


def test_a_file_that_is_no_onnx_model_is_told_with_what_to_do(project: Path) -> None:
    (project / "mine.onnx").write_bytes((project / "mine.onnx").read_bytes()[:100])
    recipe = project / "mine.toml"
    recipe.write_text(RECIPE.format(source="mine.onnx", checkpoint="", last="*3*"))
    with pytest.raises(ModelError, match=r"mine\.onnx: is not an ONNX model .* → export or copy it again"):
        building.build(options(project, recipe=str(recipe)))


def test_a_changed_precision_does_not_calibrate_again(
    built: tuple[Path, BuildResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from repo_builder.quantize import calibrate

    shutil.copytree(built[0], tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(calibrate, "stream", lambda *_, **__: pytest.fail("the graph ran"))
    result = building.build(options(tmp_path, "quantize.layers.0.precision=fp16"))
    assert {item.asked for item in result.engine.layers} == {"fp16"}


def test_rules_cannot_change_where_an_artifact_is_compiled(built: tuple[Path, BuildResult], tmp_path: Path) -> None:
    folder, _ = built
    shutil.copytree(folder / "build/jsc-tiny/onnx", tmp_path / "build/jsc-tiny/onnx")
    exported = building.load_exported(tmp_path / "build/jsc-tiny")
    other = recipes.change(exported.recipe, ("quantize.layers.0.precision=fp32",))
    with pytest.raises(RecipeError, match="the rules are not those that the artifact was calibrated for"):
        building.compile_artifact(exported, dataclasses.replace(options(tmp_path), recipe=other))


def test_a_model_of_which_nothing_is_asked_is_built_as_it_came(project: Path) -> None:
    scale = [numpy_helper.from_array(np.float32(0.03), "s"), numpy_helper.from_array(np.int8(0), "z")]
    weight = numpy_helper.from_array(33 * np.eye(6, 3, dtype=np.int8), "codes")
    nodes = [
        helper.make_node("QuantizeLinear", ["features", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["w"]),
        helper.make_node("MatMul", ["d", "w"], ["logits"], name="head"),
    ]
    infos = [helper.make_tensor_value_info(*item) for item in (("features", 1, ["n", 6]), ("logits", 1, ["n", 3]))]
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [*scale, weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, project / "mine.onnx")
    recipe = project / "mine.toml"
    text = RECIPE.format(source="mine.onnx", checkpoint="", last="*")
    recipe.write_text(text.partition("[[quantize")[0])
    result = building.build(options(project, recipe=str(recipe)))
    assert result.exported.details.as_it_came
    made = onnx.load(result.engine.model)
    assert made.graph.node == model.graph.node
    assert made.graph.initializer == model.graph.initializer
    (row,) = result.engine.layers
    assert (row.name, row.rule, row.asked, row.got) == ("head", "as it came", "int8", "int8")
    assert result.engine.details.tried == ()  # there is no fp32 form to weigh it against
    assert choice.verdict(result.engine)[0].startswith("Verdict: serve it as it came, int8: no rule asks for anything.")


def test_a_function_that_gives_its_weights_needs_no_checkpoint(project: Path) -> None:
    recipe = project / "mine.toml"
    recipe.write_text(RECIPE.format(source="users_net:make", checkpoint="", last="3"))
    result = building.build(options(project, recipe=str(recipe)))
    assert result.exported.details.weights.startswith("the weights that ")
    again = building.build(options(project, recipe=str(recipe)))
    assert again.skipped == ("export", "compile", "place")


def test_inputs_go_by_the_names_of_forward(project: Path) -> None:
    (project / "two_inputs.py").write_text(
        textwrap.dedent("""
        from torch import nn
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)
            def forward(self, left, right):
                return self.a(left) - 3 * self.b(right)
        make = Net
        """)
    )
    draw = np.random.default_rng(0).standard_normal((2, 60, 6)).astype(np.float32)
    np.savez(project / "samples.npz", left=draw[0], right=draw[1])
    text = RECIPE.format(source="two_inputs:make", checkpoint="", last="b").partition("[[quantize")[0]
    one = '{ name = "features", dtype = "fp32", shape = [6] }'
    two = ", ".join(one.replace("features", name) for name in ("right", "left"))
    recipe = project / "mine.toml"
    recipe.write_text(text.replace(one, two) + '[measure]\ntask = "other"\n')
    result = building.build(options(project, recipe=str(recipe)))
    graph = onnx.load(result.engine.model).graph
    assert [item.name for item in graph.input] == ["left", "right"]
    assert result.engine.accuracy[1].max_abs_diff == pytest.approx(0, abs=1e-5)
