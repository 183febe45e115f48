"""Plans that are really built: what layers become, what is refused, and that they compute what ONNX Runtime does."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from repo_builder.compile import CompileOptions
from repo_builder.core import codec
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.details import TensorRTDetails
from repo_builder.core.errors import CompileError
from repo_builder.core.recipe import ProfileSpec, Recipe
from repo_builder.export import qdq

NAMES = ("fp16", "fp32", "int8", "mixed")
MAX_BATCH = 16
Asked = dict[str, dict[str, str]]
Compiled = tuple[OnnxArtifact, Path, TensorRTDetails]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def without_kept_plans(recipe: Recipe) -> Recipe:
    """Return a recipe whose plans are built each time."""
    spec = dataclasses.replace(recipe.compile.tensorrt, plan_cache=False)
    return dataclasses.replace(recipe, compile=dataclasses.replace(recipe.compile, tensorrt=spec))


def compile_to(folder: Path, artifact: OnnxArtifact, cache: Path, **changes: Any) -> TensorRTDetails:
    from repo_builder.compile.tensorrt.target import TensorRTTarget

    precisions = changes.pop("layer_precisions", None) or qdq.layer_precisions(onnx.load(artifact.model))
    options = CompileOptions(
        recipe=without_kept_plans(artifact.recipe),
        graph=artifact.model,
        layer_precisions=precisions,
        cache_folder=cache,
        **changes,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return TensorRTTarget().compile(artifact, folder, options=options)


@pytest.fixture(scope="module", params=NAMES)
def compiled(
    request: pytest.FixtureRequest,
    make_artifact: Callable[..., OnnxArtifact],
    tmp_path_factory: pytest.TempPathFactory,
    cache: Path,
) -> Compiled:
    artifact = make_artifact(request.param)
    folder = tmp_path_factory.mktemp("plan")
    return artifact, folder, compile_to(folder, artifact, cache)


def run_plan(folder: Path, images: np.ndarray) -> np.ndarray:
    from repo_builder.compile.tensorrt.plan import PlanRunner

    with PlanRunner(folder / "model.plan") as run:
        return run({"image": images})["logits"]


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    ort = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime to compare with")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": images[k : k + 64]})[0] for k in range(0, len(images), 64)])


def test_every_layer_runs_in_the_precision_that_was_asked(compiled: Compiled, asked: Asked) -> None:
    artifact, _, details = compiled
    told = {item.layer: item for item in details.precisions}
    assert {name: item.asked for name, item in told.items()} == asked[artifact.recipe.name]
    assert not [str(item) for item in told.values() if item.departs]
    # Where a float layer is small, TensorRT may find more bits than asked to be faster; then a note says so.
    wider = [str(item) for item in told.values() if not item.holds]
    assert all(item.asked == "fp16" and item.got == "fp32" for item in told.values() if not item.holds)
    assert sorted(details.notes) == sorted(wider)


def test_int8_runs_int8_kernels(compiled: Compiled, asked: Asked) -> None:
    artifact, _, details = compiled
    kernels = {item.layer: item.tactic for item in details.precisions}
    for name, kind in asked[artifact.recipe.name].items():
        assert bool(re.search("i8|int8", kernels[name])) == (kind == "int8"), kernels[name]


def test_no_layer_with_weights_is_untold(compiled: Compiled) -> None:
    from repo_builder.compile.tensorrt import inspector as trt_inspector
    from repo_builder.compile.tensorrt import plan as trt_plan

    _, folder, _ = compiled
    layers = trt_inspector.parse(trt_plan.Plan.load(folder / "model.plan").inspect())
    told = {item.precision for item in layers if item.kind in ("CaskConvolution", "CaskGemmConvolution")}
    assert told
    assert told <= {"int8", "fp16", "fp32"}


def test_outputs_are_those_of_onnx_runtime(compiled: Compiled, images: np.ndarray) -> None:
    artifact, folder, _ = compiled
    expected = run_onnx(artifact.model, images)
    found = run_plan(folder, images)
    assert np.abs(found - expected).max() <= 0.02 * np.abs(expected).max()


def test_every_batch_size_up_to_the_largest(compiled: Compiled, images: np.ndarray) -> None:
    _, folder, _ = compiled
    whole = run_plan(folder, images)
    for count in range(1, MAX_BATCH + 1):
        # each profile has kernels of its own, and TF32 ones round products to 11 bits
        np.testing.assert_allclose(run_plan(folder, images[:count]), whole[:count], rtol=5e-3, atol=5e-3)


def test_provenance_is_told(compiled: Compiled) -> None:
    from repo_builder.core import environment

    _, folder, details = compiled
    gpu = environment.gpus()[0]
    assert (details.gpu, details.driver, details.compute_capability) == (
        gpu.name,
        gpu.driver,
        gpu.compute_capability,
    )
    assert details.tensorrt_version.split(".")[0].isdigit()
    spans = [(shape.min[0], shape.opt[0], shape.max[0]) for item in details.profiles for shape in item.values()]
    assert spans == [(1, 16, 16)]
    assert details.plan_bytes == (folder / "model.plan").stat().st_size
    json.dumps(codec.plain(details))


def test_a_second_build_reads_the_timing_cache(
    make_artifact: Callable[..., OnnxArtifact], tmp_path: Path, cache: Path
) -> None:
    artifact = make_artifact("int8")
    compile_to(tmp_path / "first", artifact, tmp_path / "cache")
    again = compile_to(tmp_path / "second", artifact, tmp_path / "cache")
    assert again.cached_tactics_bytes > 0
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(b"not a cache")
    damaged = compile_to(tmp_path / "third", artifact, tmp_path / "cache")
    assert damaged.cached_tactics_bytes == 0
    assert "timing cache" in damaged.notes[0]


def test_another_precision_than_asked_is_refused(
    make_artifact: Callable[..., OnnxArtifact], tmp_path: Path, cache: Path
) -> None:
    artifact = make_artifact("fp32")
    wanted = {**qdq.layer_precisions(onnx.load(artifact.model)), "conv2": "int8"}
    with pytest.raises(CompileError, match="conv2 was asked as int8 and runs in fp32"):
        compile_to(tmp_path / "refused", artifact, cache, layer_precisions=wanted)
    allowed = compile_to(tmp_path / "allowed", artifact, cache, layer_precisions=wanted, allow_precision_mismatch=True)
    assert "conv2 was asked as int8" in allowed.notes[0]


def test_what_the_parser_refuses_is_named(
    make_artifact: Callable[..., OnnxArtifact], tmp_path: Path, cache: Path
) -> None:
    artifact = make_artifact("fp32")
    model = onnx.load(str(artifact.model))
    model.graph.node.append(onnx.helper.make_node("Det", ["image"], ["determinant"], name="the_culprit"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("determinant", onnx.TensorProto.FLOAT, ["n", 3]))
    changed = tmp_path / "onnx"
    changed.mkdir()
    onnx.save(model, changed / "model.fp32.onnx")
    with pytest.raises(CompileError, match=r"the_culprit.*Det"):
        compile_to(tmp_path / "plan", dataclasses.replace(artifact, path=changed), cache)


def test_two_profiles(
    make_artifact: Callable[..., OnnxArtifact], tmp_path: Path, cache: Path, images: np.ndarray
) -> None:
    artifact = make_artifact("int8")
    profiles = (
        ProfileSpec(min_batch=1, opt_batch=1, max_batch=2),
        ProfileSpec(min_batch=3, opt_batch=16, max_batch=16),
    )
    spec = dataclasses.replace(artifact.recipe.compile.tensorrt, profiles=profiles)
    compile_spec = dataclasses.replace(artifact.recipe.compile, tensorrt=spec)
    changed = dataclasses.replace(artifact, recipe=dataclasses.replace(artifact.recipe, compile=compile_spec))
    details = compile_to(tmp_path / "plan", changed, cache)
    assert len(details.profiles) == 2
    expected = run_onnx(artifact.model, images)
    for count in (1, 2, 3, 16, 64):
        found = run_plan(tmp_path / "plan", images[:count])
        assert np.abs(found - expected[:count]).max() <= 0.02 * np.abs(expected).max()


def test_a_plan_cut_short_is_refused(compiled: Compiled, tmp_path: Path) -> None:
    _, folder, _ = compiled
    path = tmp_path / "model.plan"
    path.write_bytes((folder / "model.plan").read_bytes()[:-5000])
    command = [sys.executable, "-m", "repo_builder", "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert done.returncode == CompileError.exit_code
    assert "cannot load the plan" in done.stderr


@pytest.mark.parametrize("damage", ["garbage", "header"])
def test_a_plan_that_cannot_be_loaded_is_refused(compiled: Compiled, tmp_path: Path, damage: str) -> None:
    from repo_builder.compile.tensorrt.plan import Plan

    _, folder, _ = compiled
    data = bytearray((folder / "model.plan").read_bytes())
    if damage == "garbage":
        data = bytearray(b"this is no plan at all" * 100)
    else:
        data[0:24] = bytes(24)
    path = tmp_path / "model.plan"
    path.write_bytes(bytes(data))
    with pytest.raises(CompileError, match="cannot load the plan") as caught:
        Plan.load(path)
    assert caught.value.hint is not None
    assert "repo-builder compile" in caught.value.hint


def test_accuracy_of_vgg7_is_that_of_onnx_runtime(cache: Path, tmp_path: Path) -> None:
    """Within 0.2 points on the 8,000 test images."""
    from repo_builder import datasets
    from repo_builder.core import artifacts
    from repo_builder.measure.judge import accuracy

    variants, data_dir = os.environ.get("REPO_BUILDER_VARIANTS"), os.environ.get("REPO_BUILDER_CIFAR10")
    if not variants or not data_dir:
        pytest.skip("needs REPO_BUILDER_VARIANTS (see benchmarks/precision_variants.py) and REPO_BUILDER_CIFAR10")
    artifact = artifacts.read(OnnxArtifact, Path(variants) / "vgg7" / "int8-percentile-99.99")
    recipe = artifact.recipe
    dataset = datasets.load(recipe.data, inputs=recipe.model.inputs, seed=recipe.seed, data_dir=Path(data_dir))
    held_out = dataset.split("test")
    assert held_out.labels is not None
    compile_to(tmp_path, artifact, cache)
    values = held_out.inputs["image"]
    ours = accuracy.score(run_plan(tmp_path, values), held_out.labels, dataset.classes)
    theirs = accuracy.score(run_onnx(artifact.model, values), held_out.labels, dataset.classes)
    assert len(values) >= 8000
    assert abs(ours.top1 - theirs.top1) <= 0.002


def test_compile_and_inspect_from_the_command_line(
    make_artifact: Callable[..., OnnxArtifact], tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: Asked
) -> None:
    from repo_builder.cli import run
    from repo_builder.core import artifacts

    artifact = make_artifact("mixed")
    repository = tmp_path / "repository"
    build = str(artifact.path.parent)
    assert run(["compile", build, "--target", "tensorrt", "--output", str(repository), "--json"]) == 0
    capsys.readouterr()
    engine = artifacts.read(EngineArtifact, repository / "mixed" / "1")
    assert engine.target == "tensorrt"
    assert run(["inspect", str(repository / "mixed"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["source"] == "manifest, engine"
    assert {item["layer"]: item["asked"] for item in told["verdicts"]} == asked["mixed"]
    assert all(item["got"] in (item["asked"], "fp32") for item in told["verdicts"])  # fp32 may be faster than fp16
    assert all(item["got"] == "int8" for item in told["verdicts"] if item["asked"] == "int8")
    bare = tmp_path / "bare.plan"
    bare.write_bytes((repository / "mixed" / "1" / "model.plan").read_bytes())
    assert run(["inspect", str(bare)]) == 0
    assert "linear1" in capsys.readouterr().out


def test_pieces_tell_what_each_node_takes_and_regions_lose_none_of_it(
    make_artifact: Callable[..., OnnxArtifact], tmp_path: Path, cache: Path
) -> None:
    from repo_builder.compile.tensorrt import regions
    from repo_builder.compile.tensorrt.target import TensorRTTarget

    sides, graphs = [], []
    images = np.zeros((MAX_BATCH, *make_artifact("fp16").inputs[0].shape), np.float32)
    for name in ("int8", "fp16"):
        artifact = make_artifact(name)
        compile_to(tmp_path / name, artifact, cache)
        graphs.append(onnx.load(artifact.model))
        nodes = [node.name for node in graphs[-1].graph.node]
        feeds = {size: {"image": images[:size]} for size in (1, MAX_BATCH)}
        sides.append(TensorRTTarget().pieces(tmp_path / name / "model.plan", nodes, feeds))
        assert {"conv1", "conv2"} <= {node for item in sides[-1] for node in item.nodes}
    common = set.intersection(*({node.name for node in graph.graph.node} for graph in graphs))
    owner = regions.owners(graphs[1], common) | regions.owners(graphs[0], common)
    found = regions.compare(*sides, owner)
    for place, told in enumerate(("first_us", "second_us")):
        known = sum(item.us[1] for item in sides[place] if item.nodes)
        assert sum(getattr(item, told)[1] for item in found) == pytest.approx(known)
        assert known > 0.5 * regions.totals(sides[place])[1]


def test_two_plans_are_timed_in_turns_on_the_gpus_clock(
    make_artifact: Callable[..., OnnxArtifact], tmp_path: Path, cache: Path
) -> None:
    from repo_builder.compile.tensorrt.target import TensorRTTarget

    for name in ("fp32", "int8"):
        compile_to(tmp_path / name, make_artifact(name), cache)
    images = np.zeros((MAX_BATCH, *make_artifact("fp32").inputs[0].shape), np.float32)
    feeds = {size: {"image": images[:size]} for size in (1, MAX_BATCH)}
    plans = [tmp_path / name / "model.plan" for name in ("fp32", "int8")]
    rows = TensorRTTarget().in_turns(*plans, feeds, seconds=0.01)
    assert {row.launched for row in rows} == {("CUDA graph", "CUDA graph")}
    assert [row.batch_size for row in rows] == [1, MAX_BATCH]
    for row in rows:
        assert row.reference_us > 0
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.speedup <= row.high
    same = TensorRTTarget().in_turns(plans[0], plans[0], feeds, seconds=0.01)
    assert all(0.5 < row.speedup < 2 for row in same)
