"""What departs is not placed, and what is placed is what was asked for: builds of small graphs."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import helper

from repo_builder.core import artifacts, servers
from repo_builder.core.errors import DepartureError, ModelError, RecipeError

if TYPE_CHECKING:
    from tests.flows.build.conftest import Project

NEG = [helper.make_node("Neg", ["x"], ["y"])]
X = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)


def test_a_second_output_that_departs_keeps_the_old_repository(two_heads: Callable[..., Project]) -> None:
    project = two_heads(broken=False)
    good = project.build()
    assert good.departures == ()
    assert {item.name for item in good.engine.accuracy[-1].outputs} == {"first", "second"}
    before = artifacts.hashes(project.folder / "model_repository")
    broken = two_heads(broken=True)
    with pytest.raises(
        DepartureError, match=r"'placed' departs from 'fp32' \('second': .* dB, under 10 dB\).* two "
    ) as at:
        broken.build()
    assert "--accept-departure" in str(at.value)
    assert artifacts.hashes(project.folder / "model_repository") == before
    with pytest.raises(DepartureError, match="'second'"):  # what is up to date is held all the same
        broken.build()
    accepted = broken.build(accept_departure=True)
    assert accepted.skipped == ("export", "compile")
    assert len(accepted.departures) == 1
    assert artifacts.hashes(project.folder / "model_repository") != before


def test_another_limit_scores_again_and_exports_nothing_again(two_heads: Callable[..., Project]) -> None:
    project = two_heads(broken=True)
    with pytest.raises(DepartureError):
        project.build()
    project.document["measure"] |= {"output_sqnr_db": -50.0, "concurrency": [7]}
    loose = project.build()
    assert "export" in loose.skipped  # what is compiled may follow the limit: which layers keep their precision does
    assert loose.departures == ()
    project.document["measure"] |= {"output_sqnr_db": 150.0, "output": "second"}
    with pytest.raises(DepartureError, match="under 150 dB"):
        project.build()


def test_a_change_of_measure_alone_makes_nothing_again(two_heads: Callable[..., Project]) -> None:
    project = two_heads(broken=False)
    project.build()
    project.document["measure"] |= {"batch_sizes": [3], "output": "second"}
    again = project.build()
    assert again.skipped == ("export", "compile", "place")
    assert [item.output for item in again.engine.accuracy] == ["second"] * 3
    read = artifacts.read(type(again.engine), again.engine.path)
    assert read.accuracy == again.engine.accuracy


@pytest.mark.parametrize(
    ("shape", "asked", "batch", "dims"),
    [(["N", 3], 16, 16, "[ 3 ]"), ([1, 3], 16, 0, "[ 1, 3 ]"), ([4, 3], 1, 0, "[ 4, 3 ]"), ([3], 8, 0, "[ 3 ]")],
)
def test_batching_is_switched_on_where_the_model_takes_it(
    project: Project, shape: list[object], asked: int, batch: int, dims: str
) -> None:
    project.write(
        nodes=NEG,
        graph=({"x": shape}, {"y": shape}),
        recipe=([{"name": "x", "shape": [3]}], [{"name": "y", "shape": [3]}]),
        data={"x": X},
        stored={},
        repository={"max_batch_size": asked, "preferred_batch_sizes": [1], "warmup_batch_sizes": [1]},
    )
    result = project.build()
    assert result.engine.accuracy[-1].samples == 40
    config = (result.model_folder / "config.pbtxt").read_text()
    assert f"max_batch_size: {batch}\n" in config
    assert f"dims: {dims}\n" in config
    assert ("# max_batch_size 0, not" in config) == (batch != asked)
    assert ("dynamic_batching" in config) == bool(batch)


def test_rows_that_depend_on_each_other_are_not_batched(project: Project) -> None:
    project.write(
        nodes=[helper.make_node("CumSum", ["x", "axis"], ["y"])],
        graph=({"x": ["N", 3]}, {"y": ["N", 3]}),
        recipe=([{"name": "x", "shape": [3]}], [{"name": "y", "shape": [3]}]),
        data={"x": X},
        stored={"axis": np.int64(0)},
    )
    result = project.build()
    assert result.engine.details.max_batch_size == 0
    assert "depends on the samples that run together" in (result.model_folder / "config.pbtxt").read_text()


def test_a_state_on_another_axis_is_calibrated_and_placed_as_it_is(project: Project) -> None:
    random = np.random.default_rng(1)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("ReduceSum", ["state", "axes"], ["sum"], keepdims=0),
        helper.make_node("Add", ["h", "sum"], ["y"]),
        helper.make_node("Neg", ["state"], ["next"]),
    ]
    project.write(
        nodes=nodes,
        graph=({"x": ["N", 8], "state": [2, "N", 4]}, {"y": ["N", 4], "next": [2, "N", 4]}),
        recipe=(
            [{"name": "x", "shape": [8]}, {"name": "state", "shape": [2, 4], "batch_axis": 1}],
            [{"name": "y", "shape": [4]}, {"name": "next", "shape": [2, 4], "batch_axis": 1}],
        ),
        data={
            "x": random.normal(size=(100, 8)).astype(np.float32),
            "state": random.normal(size=(100, 2, 4)).astype(np.float32),
        },
        stored={"w": random.normal(size=(8, 4)).astype(np.float32), "axes": np.array([0])},
        rules=[{"name": "fc", "precision": "int8"}],
    )
    result = project.build()
    assert result.engine.details.max_batch_size == 0
    assert [(item.asked, item.sqnr_db is not None) for item in result.engine.layers] == [("int8", True)]
    last = {item.name: item for item in result.engine.accuracy[1].outputs}
    assert last["next"].max_abs_diff == 0
    assert last["y"].sqnr_db is not None
    assert 25 < last["y"].sqnr_db < 80
    config = (result.model_folder / "config.pbtxt").read_text()
    assert "dims: [ 2, -1, 4 ]" in config
    assert "dims: [ -1, 8 ]" in config


@pytest.mark.parametrize("key", ["model.source", "data.source", "measure.metric"])
def test_code_that_is_nowhere_is_refused_before_any_work(
    two_heads: Callable[..., Project], key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    project = two_heads(broken=False)
    table, name = key.split(".")
    project.document[table][name] = "nowhere_at_all:function"
    with pytest.raises(RecipeError, match=f"{key}: there is no Python module 'nowhere_at_all'"):
        project.build()
    assert "load data" not in capsys.readouterr().err


def test_an_output_of_no_samples_is_refused_before_any_work(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project.write(
        nodes=[helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=0)],
        graph=({"x": ["N", 3]}, {"y": [3]}),
        recipe=([{"name": "x", "shape": [3]}], [{"name": "y", "shape": [3]}]),
        data={"x": X},
        stored={},
    )
    with pytest.raises(ModelError, match="no axis counts samples"):
        project.build()
    assert not (project.folder / "model_repository" / "small").exists()


def test_a_name_that_another_model_has_is_told(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    def write(name: str) -> None:
        project.write(
            nodes=[helper.make_node("Neg", [name], ["y"])],
            graph=({name: ["N", 3]}, {"y": ["N", 3]}),
            recipe=([{"name": name, "shape": [3]}], [{"name": "y", "shape": [3]}]),
            data={name: X},
            stored={},
        )

    write("x")
    project.build()
    project.build()
    assert "taken" not in capsys.readouterr().err
    write("z")
    project.build()
    said = capsys.readouterr().err
    assert "the name 'small' is taken" in said
    assert "another model (x fp32[3] → y fp32[3])" in said


def test_servers_that_serve_the_model_of_before_are_named(
    two_heads: Callable[..., Project],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    project = two_heads(broken=False)
    project.build()
    here = servers.Process.of(os.getpid())
    repository = (project.folder / "model_repository").resolve()
    note = servers.ServerNote(
        server=here, keeper=here, detached=True, since=0.0, loaded=time.time() + 1, runtime="embedded",
        repository=repository, endpoints=servers.Endpoints(http=18000),
    )  # fmt: skip
    servers.write(servers.folder_of(repository) / servers.DETACHED, note)
    project.build()
    assert "18000" not in capsys.readouterr().err
    servers.write(servers.folder_of(repository) / servers.DETACHED, dataclasses.replace(note, loaded=0.0))
    project.build()
    said = capsys.readouterr().err
    assert "the server on 127.0.0.1:18000 serves the 'small' that lay there before" in said
    assert "--restart" in said


def test_a_file_that_the_models_code_reads_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from repo_builder.core.recipe import parse
    from repo_builder.flows import build as building

    monkeypatch.chdir(tmp_path)
    (tmp_path / "reads_a_file.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    with open('act.txt') as stream:\n"
        "        act = getattr(nn, stream.read())()\n"
        "    return nn.Sequential(nn.Linear(3, 4), act)\n"
    )
    np.savez("data.npz", x=X)
    tensor = {"dtype": "fp32"}
    recipe = parse({
        "name": "reads",
        "model": {
            "source": "reads_a_file:make",
            "inputs": [{**tensor, "name": "x", "shape": [3]}],
            "outputs": [{**tensor, "name": "y", "shape": [4]}],
        },
        "data": {"source": "data.npz"},
        "measure": {"task": "other"},
    })  # fmt: skip
    options = building.BuildOptions(recipe=recipe, work=Path("build"), repository=Path("models"), target="onnxruntime")
    Path("act.txt").write_text("Tanh")
    first = building.build(options)
    assert {"act.txt", "reads_a_file.py"} <= set(first.exported.details.read)  # pytest may look up sources of its own
    assert building.build(options).skipped == ("export", "compile", "place")
    Path("act.txt").write_text("Sigmoid")
    again = building.build(options)
    assert again.skipped == ()
    assert again.exported.files != first.exported.files
    assert dataclasses.replace(again.exported.details, read={}) == dataclasses.replace(first.exported.details, read={})
