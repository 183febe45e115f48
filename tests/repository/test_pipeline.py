"""The configurations of a pipeline's models around a plan, which no GPU is needed for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.pipelines import PartRecord, Pipeline
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.flows.build import BuildOptions, joining, piping
from repo_builder.repository import config, pipeline, validate

RAW = TensorSpec(name="raw", dtype=DType.UINT8, shape=(4,))
X = TensorSpec(name="x", dtype=DType.FP32, shape=(4,))
Y = TensorSpec(name="y", dtype=DType.FP32, shape=(4,))
P = TensorSpec(name="probabilities", dtype=DType.FP32, shape=(4,))


def test_steps_run_on_the_cpu_beside_a_plan_and_the_ensemble_has_the_labels(
    make_engine: Callable[..., EngineArtifact], tmp_path: Path
) -> None:
    engine = make_engine(target="tensorrt")
    steps = PartRecord(
        kind="steps", folder="1.steps", inputs=(RAW,), outputs=(X,), takes={"raw": "raw"}, gives={"x": "x.2"}
    )
    network = PartRecord(kind="network", inputs=(X,), outputs=(Y,), takes={"x": "x.2"}, gives={"y": "y"})
    after = PartRecord(
        kind="steps", folder="3.steps", inputs=(Y,), outputs=(P,), takes={"y": "y"},
        gives={"probabilities": "probabilities"},
    )  # fmt: skip
    made = Pipeline(
        path=tmp_path, key="k", name="toy", steps="s", apart="the target is tensorrt", max_batch_size=64,
        inputs=(RAW,), outputs=(P,), classes=("a", "b", "c", "d"), parts=(steps, network, after), engine_sha256="e",
    )  # fmt: skip
    found = {name: config.parse_text(text, name) for name, text in pipeline.texts(made, engine, "b").items()}
    assert list(found) == ["toy.b1.steps", "toy.b2.network", "toy.b3.steps", "toy"]
    assert [item.backend for item in found.values()] == ["onnxruntime", "tensorrt", "onnxruntime", ""]
    kinds = [item.instance_group[0].kind for item in found.values() if item.instance_group]
    assert kinds[0] == kinds[2] != kinds[1]
    ensemble = found["toy"]
    assert ensemble.platform == "ensemble"
    assert [dict(step.output_map) for step in ensemble.ensemble_scheduling.step] == [
        {"x": "x.2"}, {"y": "y"}, {"probabilities": "probabilities"},
    ]  # fmt: skip
    assert ensemble.output[0].label_filename == "labels.txt"
    assert ensemble.parameters["repo_builder_build_key"].string_value == "k"
    assert not any("repo_builder_build_key" in item.parameters for name, item in found.items() if name != "toy")


@pytest.mark.parametrize(("batch", "sizes"), [(8, (1, 8, 8)), (0, (2, 2, 2))])
def test_a_pipeline_around_a_plan_is_made_placed_and_valid_without_a_gpu(
    make_engine: Callable[..., EngineArtifact], tmp_path: Path, batch: int, sizes: tuple[int, ...]
) -> None:
    profile = {"x": {key: [size, 4] for key, size in zip(("min", "opt", "max"), sizes, strict=True)}}
    steps: dict[str, Any] = {
        "inputs": [{"name": "x", "dtype": "fp32", "shape": [4]}],
        "before": [{"step": "normalise", "mean": [1.0], "std": [3.0]}],
        "after": [{"step": "softmax"}, {"step": "top_k", "k": 2}],
    }
    engine = make_engine(target="tensorrt", pipeline=steps, details={"max_batch_size": batch, "profiles": [profile]})
    options = BuildOptions(recipe=engine.recipe, work=tmp_path / "work", repository=tmp_path / "repository")
    piped = piping.begin(options)
    assert piped is not None
    target: Any = None  # nothing is run where there is no data
    made, _ = joining.run(piped, engine, target, options, None)
    assert [part.kind for part in made.parts] == ["steps", "network", "steps"]
    placed = pipeline.place(made, engine, options.repository)
    assert pipeline.is_placed(made, engine, options.repository)
    found = config.parse_text((placed / "config.pbtxt").read_text(), "toy")
    assert (found.max_batch_size, list(found.input[0].dims)) == ((8, [4]) if batch else (0, [2, 4]))
    assert [item for item in validate.validate(options.repository) if item.level == "error"] == []
