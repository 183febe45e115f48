"""A whole measurement, from a recipe: the ladder, metrics of one's own, models whose outputs are not classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from repo_builder import serve
from repo_builder.core import artifacts, kept
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.details import OnnxDetails, OnnxRuntimeDetails
from repo_builder.core.errors import MeasureError
from repo_builder.core.recipe import Recipe, parse
from repo_builder.core.records import LayerRecord
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.flows import perf as measuring
from repo_builder.measure.load.course import Pace
from repo_builder.measure.wire.control import GrpcControl
from repo_builder.measure.wire.transport import Endpoint
from repo_builder.report.verdict import verdict
from repo_builder.results import Level, PerfRun

pytestmark = pytest.mark.server

SAMPLES = 100


def values() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).random((SAMPLES, 4)).astype(np.float32)
    return x, x.argmax(axis=1)


def recipe(folder: Path, **measure: object) -> Recipe:
    x, y = values()
    np.savez(folder / "data.npz", x=x, y=y)
    return parse(
        {
            "name": "identity",
            "model": {
                "source": "identity.onnx",
                "inputs": [{"name": "x", "dtype": "fp32", "shape": [4]}],
                "outputs": [{"name": "y", "dtype": "fp32", "shape": [4]}],
            },
            "data": {"source": str(folder / "data.npz"), "arguments": {"split": "test"}},
            "measure": {"batch_sizes": [1, 4, 64], "concurrency": [2], **measure},
        }
    )


def build(folder: Path, made: Recipe, **forms: np.ndarray) -> None:
    """Leave what a build leaves: manifests and every form's outputs."""
    layers = (LayerRecord(name="fc", type="Linear", asked="int8", calibrator="max", input_amax=1.0, sqnr_db=40.0),)
    made_by = {
        "onnx": {name: {"y": value} for name, value in forms.items() if name != "engine"},
        "engine": {"engine": {"y": forms["engine"]}},
    }
    for kind, name in ((OnnxArtifact, "onnx"), (EngineArtifact, "engine")):
        place = folder / "build" / made.name / name
        place.mkdir(parents=True)
        kept.save(place, made_by[name])
        details = OnnxDetails() if name == "onnx" else OnnxRuntimeDetails(max_batch_size=64)
        artifact = kind(
            path=place,
            key="k",
            recipe=made,
            inputs=made.model.inputs,
            outputs=made.model.outputs,
            layers=layers,
            files={"model.onnx": "e" * 64},
            details=details,
        )
        artifacts.write_manifest(artifact)


def measured(triton: serve.Server, folder: Path, **changes: object) -> PerfRun:
    options = measuring.PerfOptions(
        model="identity",
        endpoint=Endpoint.parse(triton.grpc_url, "grpc"),
        work=folder / "build",
        pace=Pace(warmup_s=0.05, window_s=0.1, window_requests=3, most_windows=3),
    )
    collected = measuring.Collected()
    measuring.perf(replace(options, **changes), collected)  # type: ignore[arg-type]
    assert collected.run is not None
    return collected.run


def test_the_ladder_reaches_from_the_build_to_the_server(triton: serve.Server, tmp_path: Path) -> None:
    right = values()[0]
    wrong = right.copy()
    wrong[:7] = np.roll(wrong[:7], 1, axis=1)
    build(tmp_path, recipe(tmp_path), fp32=right, exported=right, placed=wrong, engine=wrong)
    run = measured(triton, tmp_path)
    assert run.ladder is not None
    assert [item.form for item in run.ladder.rungs] == ["fp32", "exported", "placed", "engine", "served"]
    assert run.ladder.culprit == "placed"
    assert [item.top1 for item in run.ladder.rungs] == [1, 1, 0.93, 0.93, 1]
    assert run.ladder.rungs[4].agreement == 0.93
    assert run.accuracy is not None
    assert run.accuracy.top1 == 1
    assert run.recipe.startswith("identity (")
    assert [item.name for item in run.layers] == ["fc"]
    assert [item.level.batch_size for item in run.levels] == [1, 4]  # 64 is more than the model takes


def test_outputs_of_other_samples_are_not_compared(triton: serve.Server, tmp_path: Path) -> None:
    few = values()[0][:50]
    build(tmp_path, recipe(tmp_path), fp32=few, onnx=few, engine=few)
    run = measured(triton, tmp_path, levels=(Level(),))
    assert run.ladder is None
    assert "outputs are of other samples" in run.notes[0]


def test_outputs_of_as_many_other_samples_are_not_compared_either(triton: serve.Server, tmp_path: Path) -> None:
    right = values()[0]
    build(tmp_path, recipe(tmp_path), fp32=right, onnx=right, engine=right)
    manifest = tmp_path / "build/identity/onnx/manifest.json"
    recorded = json.loads(manifest.read_text())
    recorded["details"]["data_sha256"] = "of others"
    manifest.write_text(json.dumps(recorded))
    run = measured(triton, tmp_path, levels=(Level(),))
    assert run.ladder is None
    assert "outputs are of other samples" in run.notes[0]


def test_outputs_that_are_not_classes_are_held_to_the_tolerance(triton: serve.Server, tmp_path: Path) -> None:
    right = values()[0]
    build(
        tmp_path,
        recipe(tmp_path, task="other", output_tolerance=0.01),
        fp32=right,
        onnx=right + 0.001,
        engine=right + 0.5,
    )
    run = measured(triton, tmp_path, levels=(Level(),))
    assert run.accuracy is None
    assert "not classification" in run.accuracy_skipped
    assert run.ladder is not None
    assert run.ladder.culprit == "engine"
    assert run.ladder.rungs[1].agreement == 1


def test_a_metric_of_ones_own(triton: serve.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metric.py").write_text(
        "def error(outputs, labels):\n    return {'mean': outputs['y'].mean(), 'labels': len(labels)}\n"
        "def broken(outputs, labels):\n    return outputs['z']\n"
    )
    monkeypatch.chdir(tmp_path)
    right = values()[0]
    build(tmp_path, recipe(tmp_path, metric="own_metric:error"), fp32=right, onnx=right, engine=right)
    run = measured(triton, tmp_path, levels=(Level(),))
    assert run.metrics == {"mean": pytest.approx(float(right.mean())), "labels": SAMPLES}
    broken = tmp_path / "broken"
    broken.mkdir()
    build(broken, recipe(tmp_path, metric="own_metric:broken"), fp32=right, onnx=right, engine=right)
    with pytest.raises(MeasureError, match=r"measure.metric: 'own_metric:broken' failed: KeyError"):
        measured(triton, broken, levels=(Level(),))


def test_an_engine_that_cannot_run_here_is_said(triton: serve.Server, tmp_path: Path) -> None:
    right = values()[0]
    build(tmp_path, recipe(tmp_path), fp32=right, onnx=right, engine=right)
    run = measured(triton, tmp_path, levels=(Level(),), with_explanation=True)
    assert run.levels[0].explanation is not None
    assert "compute" in [item.name for item in run.levels[0].explanation.terms]
    assert "the engine alone was not timed: " in run.notes[0]
    assert "model.onnx" in run.notes[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "of another build"}, "built anew, and the server still runs the one before"),
        ({"files": {"model.onnx": "f" * 64}}, "built anew, and the server still runs the one before"),
        ({"recipe.name": "other"}, "was built from the recipe 'identity', and that from 'other'"),
        ({"kind": "onnx"}, "that was never compiled"),
    ],
)
def test_nothing_of_a_build_is_said_of_another_model(
    triton: serve.Server, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    right = values()[0]
    build(tmp_path, recipe(tmp_path), fp32=right, onnx=right, engine=right)
    manifest = tmp_path / "build/identity/engine/manifest.json"
    recorded = json.loads(manifest.read_text())
    for key, value in changes.items():
        place = recorded["recipe"] if key == "recipe.name" else recorded
        place[key.rpartition(".")[2]] = value
    manifest.write_text(json.dumps(recorded))
    run = measured(triton, tmp_path, levels=(Level(),), with_explanation=True)
    assert words in run.not_the_build
    assert (run.layers, run.ladder) == ((), None)
    assert run.identity is not None
    assert run.identity.engine_sha256 == "e" * 64
    assert run.accuracy is not None  # of the model that runs, on the recipe's data
    assert run.levels[0].explanation is not None
    assert not {"engine", "backend"} & {item.name for item in run.levels[0].explanation.terms}
    assert words in " ".join(item.text for item in verdict(run))


@pytest.mark.parametrize("share", [1, 2])
def test_a_run_in_which_requests_failed_ends_in_an_error(triton: serve.Server, tmp_path: Path, share: int) -> None:
    """Every one, or every second: what was measured stays, and is no success."""
    x = np.zeros((4, 4), np.float32)
    x[::share, 3] = 1  # the mood that refuses
    np.savez(tmp_path / "data.npz", x=x)
    collected = measuring.Collected()
    options = measuring.PerfOptions(
        model="moody",
        endpoint=Endpoint.parse(triton.grpc_url, "grpc"),
        work=tmp_path,
        input_data=tmp_path / "data.npz",
        levels=(Level(),),
        pace=Pace(warmup_s=0.05, window_s=0.1, window_requests=3, most_windows=3),
    )
    with pytest.raises(MeasureError, match=r"requests failed: .*too large|refuses every request: .*too large"):
        measuring.perf(options, collected)
    assert collected.run is not None
    assert collected.run.stopped
    assert collected.run.levels[0].failures
    assert not [item for item in verdict(collected.run) if item.tone == "good"]


def test_a_comparison_of_nothing_ends_in_an_error(triton: serve.Server, tmp_path: Path) -> None:
    before = measured(triton, tmp_path, levels=(Level(concurrency=3),))
    with pytest.raises(MeasureError, match="nothing could be compared with the baseline"):
        measured(triton, tmp_path, levels=(Level(concurrency=2),), reference=before)


def test_statistics_that_are_not_to_be_had_are_said(
    triton: serve.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MeasureError("the server says: This protocol is restricted")

    monkeypatch.setattr(GrpcControl, "statistics", refuse)
    run = measured(triton, tmp_path, levels=(Level(),), with_explanation=True)
    assert "statistics are not to be had (the server says: This protocol is restricted)" in run.notes[0]
    assert "--explain has nothing to explain" in run.notes[0]
    assert run.levels[0].explanation is None


def test_a_model_that_names_no_build_is_none(triton: serve.Server, tmp_path: Path) -> None:
    right = values()[0]
    build(tmp_path, recipe(tmp_path), fp32=right, onnx=right, engine=right)
    (tmp_path / "build/identity").rename(tmp_path / "build/moody")
    run = measured(triton, tmp_path, model="moody", levels=(Level(),))
    assert "it names no build" in run.not_the_build
    assert (run.layers, run.ladder, run.identity) == ((), None, None)


def test_the_build_that_runs_is_named(triton: serve.Server, tmp_path: Path) -> None:
    right = values()[0]
    build(tmp_path, recipe(tmp_path), fp32=right, onnx=right, engine=right)
    run = measured(triton, tmp_path, levels=(Level(),))
    assert run.not_the_build == ""
    assert "is the build at hand: recipe 'identity', sha256 eeeeeeeeeeee" in " ".join(i.text for i in verdict(run))
    bare = measured(triton, tmp_path / "nowhere", levels=(Level(),))
    assert "of a build that is not at hand (recipe 'identity')" in bare.not_the_build


def test_shapes_that_vary_are_explained_too(triton: serve.Server, tmp_path: Path) -> None:
    levels = (Level(shapes={"x": (3,)}), Level(shapes={"x": (9,)}))
    run = measured(triton, tmp_path, model="flexible", levels=levels, with_explanation=True)
    assert all(item.explanation and item.explanation.suggestion for item in run.levels)


def test_what_ends_the_run_is_kept_with_what_was_measured(triton: serve.Server, tmp_path: Path) -> None:
    collected = measuring.Collected()
    options = measuring.PerfOptions(
        model="identity",
        endpoint=Endpoint.parse(triton.grpc_url, "grpc"),
        work=tmp_path,
        levels=(Level(), Level(batch_size=9)),
        pace=Pace(warmup_s=0.05, window_s=0.1, window_requests=3, most_windows=3),
    )
    with pytest.raises(MeasureError, match="batch 9 is more"):
        measuring.perf(options, collected)
    assert collected.run is not None
    assert len(collected.run.levels) == 1
    assert "batch 9 is more" in collected.run.stopped


@pytest.mark.parametrize("shape", [(4,), ()])
def test_a_model_that_is_not_batched_is_scored_by_sample(
    triton: serve.Server, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """Its tensors are one sample of four numbers, or four samples of one; the last request of these is filled up."""
    made = recipe(tmp_path, task="other")
    tensor = {"dtype": DType.FP32, "shape": shape}
    model = replace(made.model, inputs=(TensorSpec(name="x", **tensor),), outputs=(TensorSpec(name="y", **tensor),))  # type: ignore[arg-type]
    made = replace(made, name="unbatched", model=model)
    values = np.random.default_rng(0).random((6, *shape)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=values)
    build(tmp_path, made, exported=values, engine=values)
    run = measured(triton, tmp_path, model="unbatched", levels=(Level(),))
    assert run.ladder is not None
    assert [item.samples for item in run.ladder.rungs] == [6, 6, 6]
    assert run.ladder.rungs[2].max_abs_diff == 0
    assert run.levels[0].requests


def test_one_number_a_sample_is_what_the_server_has_to_call_a_shape_of_one() -> None:
    from repo_builder.flows.perf.accuracy import _shaped

    number, other = TensorSpec(name="y", dtype=DType.FP32, shape=()), TensorSpec(name="z", dtype=DType.FP32, shape=(1,))
    values = {"y": np.zeros((5, 1)), "z": np.zeros((5, 1)), "more": np.zeros((5, 2))}
    assert {name: item.shape for name, item in _shaped(values, [number, other]).items()} == {
        "y": (5,),
        "z": (5, 1),
        "more": (5, 2),
    }
    assert _shaped({"y": np.zeros(5)}, [replace(number, shape=(1,))])["y"].shape == (5, 1)


def test_every_output_and_limit_is_held_in_the_ladder(triton: serve.Server, tmp_path: Path) -> None:
    right = values()[0]
    build(tmp_path, recipe(tmp_path, task="other"), fp32=right, exported=right, engine=-right)
    run = measured(triton, tmp_path, levels=(Level(),))
    assert run.ladder is not None
    assert run.ladder.culprit == "engine"
    assert run.ladder.rungs[2].worst == "y"
    assert "dB, under 10 dB" in run.ladder.rungs[2].outputs[0].departs
    said = " ".join(item.text for item in verdict(run) if item.tone == "bad")
    assert "'engine' departs from 'exported'" in said
    assert "output 'y': signal to noise is" in said


def test_a_scalar_that_counts_no_samples_travels_as_the_server_calls_it() -> None:
    """A rate beside samples: ``[]`` in the model, ``[1]`` in config.pbtxt, which knows no scalars."""
    from types import SimpleNamespace

    from repo_builder.flows.perf.accuracy import _batches, _shaped

    def tensor(name: str, *shape: int, axis: int = 0) -> TensorSpec:
        return TensorSpec(name=name, dtype=DType.FP32, shape=shape, batch_axis=axis)

    spec = SimpleNamespace(
        inputs=(tensor("x", 3), tensor("rate", axis=-1)),
        outputs=(tensor("y", 3),),
        pipeline=SimpleNamespace(some=False),
    )
    served = (tensor("x", 1, 3), tensor("rate", 1))
    session = SimpleNamespace(model=SimpleNamespace(batch_axis=False, inputs=served, outputs=(tensor("y", 1, 3),)))
    batches = _batches(SimpleNamespace(recipe=spec, engine=spec, exported=None), session)  # type: ignore[arg-type]
    assert batches is not None
    requests = batches.requests({"x": np.ones((2, 3), np.float32), "rate": np.full(2, 16.0, np.float32)})
    assert {name: item.shape for name, item in _shaped(requests, served).items()} == {"x": (2, 1, 3), "rate": (2, 1)}
