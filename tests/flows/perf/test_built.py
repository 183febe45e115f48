"""The engine alone is timed as the server runs it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.details import OnnxRuntimeDetails
from repo_builder.core.recipe import Recipe, parse
from repo_builder.flows.perf import built
from repo_builder.flows.perf.built import Build, EngineClock
from repo_builder.results import BuildIdentity


def recipe(name: str = "m") -> Recipe:
    tensor = {"dtype": "fp32", "shape": [4]}
    return parse(
        {
            "name": name,
            "model": {
                "source": "m.onnx",
                "inputs": [{"name": "x", **tensor}],
                "outputs": [{"name": "y", **tensor}],
            },
            "data": {"source": "data.npz"},
        }
    )


def engine(folder: Path) -> EngineArtifact:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
    made = recipe()
    return EngineArtifact(
        path=folder, key="k", recipe=made, inputs=made.model.inputs, outputs=made.model.outputs,
        files={"model.onnx": "e" * 64}, details=OnnxRuntimeDetails(max_batch_size=8),
    )  # fmt: skip


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_session_has_the_served_threads_optimization_and_provider(
    tmp_path: Path, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, Any, list[Any]]] = []

    class Session(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, path: str, options: ort.SessionOptions, providers: list[Any]) -> None:
            made.append((options.intra_op_num_threads, options.graph_optimization_level, providers))
            super().__init__(path, options, providers=providers)

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(built, "_LEAST_S", 0.0)
    config = {
        "parameters": {"intra_op_thread_count": {"string_value": threads}},
        "optimization": {"graph": {"level": 2}},
        "instance_group": [{"kind": "KIND_CPU", "count": 2, "gpus": []}],
    }
    clock = EngineClock(engine(tmp_path), config)
    assert clock.median_us(3, {"x": np.ones((2, 4), np.float32)})
    assert clock.median_us(3, {"x": np.ones((2, 4), np.float32)})  # known by now
    assert made == [
        (int(threads), ort.GraphOptimizationLevel.ORT_DISABLE_ALL, [("CPUExecutionProvider", {})]),
    ]


def test_a_provider_that_is_not_here_is_said_and_not_replaced(tmp_path: Path) -> None:
    clock = EngineClock(engine(tmp_path), {"instance_group": [{"kind": "KIND_GPU", "gpus": [0]}]})
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this machine has it")
    assert clock.median_us(1, {"x": np.ones((1, 4), np.float32)}) is None
    assert "CUDAExecutionProvider" in clock.missing


def test_a_build_is_served_where_all_of_its_identity_agrees(tmp_path: Path) -> None:
    build = Build(recipe=recipe(), engine=engine(tmp_path))
    mine = BuildIdentity(engine_sha256="e" * 64, build_key="k", recipe="m")
    assert build.not_served(mine) == ""
    assert Build().not_served(None) == ""
    assert "not at hand" in Build().not_served(mine)
    for other in (
        BuildIdentity(engine_sha256="f" * 64, build_key="k", recipe="m"),
        BuildIdentity(engine_sha256="e" * 64, build_key="l", recipe="m"),
        BuildIdentity(engine_sha256="e" * 64, build_key="k", recipe="n"),
        None,
    ):
        said = build.not_served(other)
        assert "not the build" in said
        told = re.search(r"\((engine|build) (\w+), not \1 (\w+)\)", said)
        assert told is None or told[2] != told[3], "what differs is what is named"
    assert build.without_artifacts().layers == ()
    assert build.without_artifacts().outputs() == {}


def test_a_search_is_pointed_to_where_it_chose_what_runs(tmp_path: Path) -> None:
    """Not where a later build, without a search, lies beside the page of an earlier one."""
    (tmp_path / "engine").mkdir()
    made = engine(tmp_path / "engine")
    chosen = replace(made, details=replace(made.details, searched=True))
    assert Build(engine=chosen).searched is None  # no page
    page = tmp_path / "search" / "search.html"
    page.parent.mkdir()
    page.write_text("<p>tried</p>")
    build = Build(engine=chosen)
    assert build.searched == page.resolve()
    assert build.without_artifacts().searched is None  # another model runs
    assert Build(engine=made).searched is None
