"""A pipeline's models in a repository: placed together, exchanged together, and nobody else's touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from repo_builder.core import files, pipelines
from repo_builder.core.errors import MissingDependency, RecipeError, RepositoryError
from repo_builder.flows.build import BuildOptions, BuildResult, compile_artifact, load_exported, piping
from repo_builder.pipeline import shipping
from repo_builder.repository import pipeline as placing
from repo_builder.repository import validate

CODE = "import numpy as np\n\ndef double(x):\n    return (x * 2).astype(np.float32)\n"
AFTER = [{"step": "softmax"}, {"step": "top_k", "k": 2}]


@pytest.fixture
def small(project: Any) -> Any:
    """A classifier of rows of four numbers, with the network between a normalisation and the best classes."""
    random = np.random.default_rng(0)
    values = random.normal(size=(90, 4)).astype(np.float32)
    weight = random.normal(size=(4, 3)).astype(np.float32)
    project.write(
        nodes=[helper.make_node("MatMul", ["x", "w"], ["logits"], name="one")],
        graph=({"x": ["N", 4]}, {"logits": ["N", 3]}),
        recipe=([{"name": "x", "shape": [4]}], [{"name": "logits", "shape": [3]}]),
        data={"x": (values * 3 + 1).astype(np.float32), "y": (values @ weight).argmax(1), "classes": ["a", "b", "c"]},
        stored={"w": weight},
        pipeline={
            "inputs": [{"name": "x", "dtype": "fp32", "shape": [4]}],
            "before": [{"step": "normalise", "mean": [1.0], "std": [3.0]}],
            "after": AFTER,
        },
        measure={},
    )
    (project.folder / "mine.py").write_text(CODE)
    return project


def called(project: Any) -> dict[str, Any]:
    gives = [{"name": "x", "dtype": "fp32", "shape": [4]}]
    return {"step": "call", "function": f"{project.folder / 'mine.py'}:double", "gives": gives}


def models(result: BuildResult) -> list[str]:
    return sorted(item.name for item in result.model_folder.parent.iterdir())


def test_all_steps_in_one_graph_are_one_model(small: Any) -> None:
    small.document["pipeline"]["fuse"] = True
    result = small.build()
    assert models(result) == ["small"]
    assert result.pipeline is not None
    assert [item.form for item in result.accuracy][-2:] == ["onnxruntime", "pipeline"]
    assert result.accuracy[-1].top1 == result.accuracy[-2].top1 == 1.0
    assert result.accuracy[-1].agreement == 1.0
    text = (result.model_folder / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in text
    assert result.to_dict()["pipeline"]["fused"] is True
    # the network inside is as it was compiled: its nodes and weights, under their names
    inside = onnx.load(result.model_folder / "1" / "model.onnx")
    alone = onnx.load(result.engine.model)
    assert {item.name for item in alone.graph.node} <= {item.name for item in inside.graph.node}
    assert {item.name: item.raw_data for item in alone.graph.initializer}.items() <= {
        item.name: item.raw_data for item in inside.graph.initializer
    }.items()


def test_an_ensemble_is_exchanged_as_a_whole(small: Any) -> None:
    small.document["pipeline"]["before"].append(called(small))
    first = small.build()
    assert models(first) == ["small", "small.a1.steps", "small.a2.call", "small.a3.network"]
    assert not [item for item in validate.validate(first.model_folder.parent) if item.level != "info"]
    again = small.build()
    assert {"join steps", "place"} <= set(again.skipped)
    assert models(again) == models(first)
    # something of a user's whose name begins alike, and something that a killed build left
    repository = first.model_folder.parent
    (repository / "small.a1.mine" / "1").mkdir(parents=True)
    left = repository / "small.b9.call"
    (left / "1").mkdir(parents=True)
    pipelines.mark(left / "1", pipeline="small", key="", models=())
    small.document["pipeline"]["before"].pop(0)
    second = small.build()
    assert models(second) == ["small", "small.a1.mine", "small.b1.call", "small.b2.network"]
    # without a pipeline its models go
    del small.document["pipeline"]
    assert models(small.build()) == ["small", "small.a1.mine"]


def test_a_user_s_own_model_in_the_way_is_not_replaced(small: Any) -> None:
    small.document["pipeline"]["fuse"] = False
    taken = small.folder / "model_repository" / "small.a1.steps" / "1"
    taken.mkdir(parents=True)
    (taken / "model.onnx").write_bytes(b"mine")
    with pytest.raises(RepositoryError, match=r"small.a1.steps: is in the way"):
        small.build()
    assert [item.name for item in taken.parents[1].iterdir()] == ["small.a1.steps"]
    assert (taken / "model.onnx").read_bytes() == b"mine"


def test_a_build_that_fails_while_it_places_leaves_what_was_there(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small.document["pipeline"]["fuse"] = False
    first = small.build()
    before = {path: path.read_bytes() for path in first.model_folder.parent.rglob("*") if path.is_file()}

    def fails(*_: Any, **__: Any) -> None:
        raise RepositoryError("no")

    monkeypatch.setattr(placing.pipelines, "mark", fails)
    with pytest.raises(RepositoryError):
        small.build(force=True)
    assert before == {path: path.read_bytes() for path in first.model_folder.parent.rglob("*") if path.is_file()}


def test_what_is_wrong_is_said_before_any_work(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = small.document["pipeline"]
    steps["before"].append(called(small))
    for change, said in (
        ({"version": "next"}, "--version: a pipeline has one version"),
        ({}, "pipeline.fuse: true is impossible: pipeline.before[1] (call) is Python"),
    ):
        steps["fuse"] = None if change else True
        with pytest.raises(RecipeError) as error:
            small.build(**change)
        assert said in str(error.value)
    steps["before"][1] = {"step": "decode_image", "inputs": ["x"]}
    steps["fuse"] = None
    with pytest.raises(RecipeError, match="takes an encoded image"):
        small.build()
    assert not (small.folder / "build" / "small" / "onnx").exists()
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    small.document["pipeline"] = {
        "before": [{"step": "decode_image"}, {"step": "call", **called(small)}],
        "after": AFTER,
    }
    with pytest.raises(MissingDependency, match=r"decode_image\) needs"):
        small.build()


def test_labels_and_scores_that_cannot_be(small: Any) -> None:
    small.document["pipeline"]["after"] = [{"step": "softmax"}, {"step": "top_k", "labels": ["a", "b", "c", "d"]}]
    with pytest.raises(RecipeError, match="4 labels"):
        small.build()
    small.document["pipeline"]["after"] = [{"step": "unit_length"}, {"step": "cast", "dtype": "int32"}]
    with pytest.raises(RecipeError, match="nothing can be scored"):
        small.build()


def test_a_pipeline_that_was_copied_is_compiled_with_the_steps_that_came_along(small: Any) -> None:
    small.document["pipeline"]["before"].append(called(small))
    built = small.build()
    (small.folder / "mine.py").unlink()
    folder = small.folder / "build" / "small"
    options: BuildOptions = small.options(repository=small.folder / "elsewhere", recipe=built.exported.recipe)
    untrusted = compile_artifact(load_exported(folder), options)
    assert untrusted.pipeline is not None
    assert len(untrusted.pipeline.parts) == 3
    assert (small.folder / "elsewhere" / "small.a2.call" / "1" / "code" / "mine.py").read_text() == CODE
    (folder / "steps" / "before.1.call" / "step.py").write_text("")
    with pytest.raises(RepositoryError, match="not whole"):
        compile_artifact(load_exported(folder), options)


def test_another_function_makes_all_of_it_again(small: Any) -> None:
    small.document["pipeline"]["before"].append(called(small))
    first = piping.begin(small.options())
    (small.folder / "mine.py").write_text(CODE.replace("* 2", "* 3"))
    second = piping.begin(small.options())
    assert first is not None
    assert second is not None
    assert first.key != second.key
    shipped = json.loads((second.folder / "before.1.call" / shipping.SETTINGS).read_text())
    assert shipped["module"] == Path("mine").stem


def test_a_build_that_is_killed_between_its_models_leaves_the_old_pipeline(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ensemble is exchanged last: until then it names the models of the build before."""
    small.document["pipeline"]["fuse"] = False
    first = small.build()
    repository = first.model_folder.parent
    whole, exchange = (repository / "small" / "config.pbtxt").read_text(), files._exchange

    def killed(fresh: Path, target: Path) -> None:
        if target.name == "small":
            raise KeyboardInterrupt
        exchange(fresh, target)

    monkeypatch.setattr(files, "_exchange", killed)
    with pytest.raises(KeyboardInterrupt):
        small.build(force=True)
    assert (repository / "small" / "config.pbtxt").read_text() == whole
    assert {"small.a2.network", "small.b2.network"} <= {item.name for item in repository.iterdir()}
    assert not [item for item in validate.validate(repository) if item.level == "error"]
    monkeypatch.undo()
    assert models(small.build(force=True)) == ["small", "small.b1.steps", "small.b2.network", "small.b3.steps"]


def test_one_graph_for_a_target_that_holds_no_steps_is_refused_early(small: Any) -> None:
    recipe = small.options().recipe.changed(pipeline={"fuse": True})
    piping.refuse_target(recipe, "onnxruntime")
    for other, target in (
        (recipe, "tensorrt"),
        (recipe.changed(["compile.onnxruntime.accelerator=cuda"]), "onnxruntime"),
    ):
        with pytest.raises(RecipeError, match="true is impossible"):
            piping.refuse_target(other, target)
