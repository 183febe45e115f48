"""``import repo_builder``: light, lazy, and the very code of the command line; docs/python.md's example is run."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import repo_builder as rb
from repo_builder import api, cli, serve
from repo_builder.core.errors import MeasureError, RecipeError
from repo_builder.results import schema

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
EXAMPLE = re.compile(r"^```python run\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The page's example, run in an empty folder: the folder, and the example's names."""
    folder, before = tmp_path_factory.mktemp("face"), Path.cwd()
    names: dict[str, Any] = {}
    os.chdir(folder)
    try:
        for example in EXAMPLE.findall(PAGE.read_text(encoding="utf-8")):
            exec(compile(example, str(PAGE), "exec"), names)  # noqa: S102 - the page's own
        yield folder, names
    finally:
        os.chdir(before)


@pytest.mark.server
def test_the_example_builds_serves_and_measures(ran: tuple[Path, dict[str, Any]]) -> None:
    folder, names = ran
    assert (folder / "model_repository/jsc-tiny/config.pbtxt").is_file()
    result = names["result"]
    assert isinstance(result, rb.PerfResult)
    assert result.error is None
    assert result.accuracy.top1 == names["built"].engine.accuracy[-1].top1
    assert [item.level.concurrency for item in result.levels] == [1, 4]
    assert all(item.requests and not item.errors for item in result.levels)
    assert schema.read(folder / "monday.json") == result.run
    assert json.loads((folder / "monday.json").read_text()) == json.loads(json.dumps(result.to_dict()))
    assert "jsc-tiny" in (folder / "jsc-tiny.html").read_text(encoding="utf-8")
    assert names["server"].exit_code is not None, "leaving the block stops it"


@pytest.mark.server
def test_the_command_line_goes_on_where_python_ended(
    ran: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    names = ran[1]
    assert cli.run(["build", "jsc-tiny", "--set", "compile.target=onnxruntime", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["skipped"] == ["export", "compile", "place"]
    told = json.loads(json.dumps(names["built"].to_dict()))
    assert {key: said[key] for key in ("layers", "accuracy")} == {key: told[key] for key in ("layers", "accuracy")}
    assert cli.run(["validate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == rb.validate().to_dict()
    assert rb.compile("build/jsc-tiny", target="onnxruntime").skipped == ("export", "compile", "place")


def test_importing_it_loads_nothing_else_and_names_everything() -> None:
    code = (
        "import json, sys; before = set(sys.modules); import repo_builder as rb; "
        "print(json.dumps([dir(rb), sorted(name for name in set(sys.modules) - before if '.' not in name)]))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=PAGE.parents[1], capture_output=True, text=True)
    names, loaded = json.loads(done.stdout)
    assert set(rb.__all__) <= set(names)
    assert not {"numpy", "onnx", "click", "rich", "torch"} & set(loaded)
    assert [name for name in loaded if name.startswith("repo_builder")] == ["repo_builder"]
    page = PAGE.read_text(encoding="utf-8")
    for name in rb.__all__:
        assert getattr(rb, name) is not None
        assert name in page, f"docs/python.md tells nothing of {name}"
    with pytest.raises(AttributeError, match="serv"):
        rb.serv  # noqa: B018 - asked for


@pytest.mark.parametrize(
    "first", ["import repo_builder.serve, repo_builder.compile", "import repo_builder.flows.build", ""]
)
def test_rooms_are_functions_whoever_imported_them_first(first: str) -> None:
    code = f"""{first}
import repo_builder as rb
from repo_builder import compile, serve
assert rb.serve is serve and rb.compile is compile and serve.start and compile.choose
for function in (rb.serve, rb.compile):
    try:
        function("nowhere")
    except rb.RepoBuilderError as error:
        assert "nowhere" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# Options of the command line that Python says in another way, or that are for programs of other languages.
_OTHERWISE = {
    "build": {"as_json", "settings", "repository", "recipe"},
    "compile": {"as_json", "repository", "artifact"},
    "perf": {"json_to", "csv_to", "report_to", "url", "model"},
    "sense": {"as_json", "recipe", "report"},
    "config": {"model"},
    "init": {"name_or_model", "model"},
    "inspect": {"path", "as_json"},
    "layers": {"model", "as_json"},
    "tune": {"json_to", "report", "model"},
    "validate": {"as_json", "names", "strict"},
    "serve": {
        "repository",
        "as_json",
        "detach",
        "status",
        "stop",
        "restart",
        "everything",
        "print_command",
        "load_timeout",
    },
}

# The command line's name → Python's, which says the unit; and defaults that Python writes otherwise.
_NAMES = {
    "duration": "duration_s", "explained": "explain", "no_accuracy": "accuracy", "shape_sets": "shapes",
    "timeout": "timeout_s", "most_trials": "trials", "shape": "shapes", "dataset": "data", "apply_to": "apply",
    "load_timeout": "load_timeout_s", "no_dynamic_batching": "dynamic_batching", "parameter": "parameters",
}  # fmt: skip
_DEFAULTS = {"accuracy": True, "headers": None, "shapes": None, "stability_percentile": 50}
_DEFAULTS |= {"dims": None, "warmup_dims": None, "parameters": None, "dynamic_batching": True, "arguments": None}


@pytest.mark.parametrize("verb", sorted(_OTHERWISE))
def test_every_option_of_the_command_line_is_an_argument_with_its_default(verb: str) -> None:
    command = cli.group.get_command(click.Context(cli.group), verb)
    assert command is not None
    needed = ["x" for item in command.params if item.required]
    with command.make_context(verb, needed) as context:
        defaults = {name: str(value) if isinstance(value, Path) else value for name, value in context.params.items()}
    taken = inspect.signature(getattr(api, verb)).parameters
    for given in defaults.keys() - _OTHERWISE[verb]:
        name = _NAMES.get(given, given)
        assert name in taken, f"{verb} takes no {name}"
        assert taken[name].default == _DEFAULTS.get(name, defaults[given]), name


def test_looking_at_a_model_says_what_the_command_line_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = [numpy_helper.from_array(np.ones((4, 3), np.float32), "w")]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])] for name, size in (("x", 4), ("y", 3))
    ]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="only")], "g", *ends, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "own.onnx")
    made = rb.init("own", "own.onnx")
    text = Path("own.toml").read_text(encoding="utf-8")
    assert made.text == text
    assert cli.run(["init", "own", "own.onnx", "--force"]) == 0
    assert Path("own.toml").read_text(encoding="utf-8") == text
    with pytest.raises(RecipeError, match="is there already"):
        rb.init("own", "own.onnx")
    capsys.readouterr()
    for verb, told in (("layers", [dataclasses.asdict(item) for item in rb.layers("own.onnx")]), ("inspect", None)):
        assert cli.run([verb, "own.onnx", "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["layers"][0].get("name", said["layers"][0].get("layer")) == "only"
        assert (said if told is None else said["layers"]) == json.loads(
            json.dumps(rb.inspect("own.onnx").to_dict() if told is None else told)
        )
    assert cli.run(["config", "own.onnx", "--max-batch-size", "8", "--warmup", "2"]) == 0
    assert rb.config("own.onnx", max_batch_size=8, warmup=(2,), output="config.pbtxt") == capsys.readouterr().out
    assert "max_batch_size: 8" in Path("config.pbtxt").read_text(encoding="utf-8")


def test_tables_and_settings_lie_over_a_recipe() -> None:
    recipe = rb.Recipe.load("vgg", ["seed=3"], measure={"concurrency": (2,)}, model={"arguments": {"width": 0.5}})
    assert (recipe.seed, recipe.measure.concurrency, recipe.model.arguments) == (3, (2,), {"width": 0.5})
    assert recipe.measure.batch_sizes == rb.Recipe.load("vgg").measure.batch_sizes
    assert recipe.changed(seed=0, model={"arguments": {"width": 0.25}}).changed(
        measure={"concurrency": [1, 4]}
    ) == rb.Recipe.load("vgg")
    with pytest.raises(RecipeError, match="sed"):
        rb.Recipe.load("vgg", sed=1)


def test_a_recipes_file_may_be_a_path(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text((PAGE.parents[1] / "repo_builder/recipes/vgg.toml").read_text(encoding="utf-8"), encoding="utf-8")
    assert rb.Recipe.load(path) == rb.Recipe.load(str(path)) == rb.Recipe.load("vgg")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"concurrency": 0}, "above 0"),
        ({"concurrency": 1.5}, "whole"),
        ({"batch_size": ()}, "above 0"),
        ({"request_rate": float("inf")}, "above 0"),
        ({"concurrency": 1, "request_rate": 5.0}, "different loads"),
        ({"poisson": True}, "request_rate"),
        ({"duration_s": 1.0, "requests": 3}, "different ends"),
        ({"duration_s": -1.0}, "above 0"),
        ({"trace": "times.txt", "concurrency": 1}, "different loads"),
        ({"max_windows": 2}, "last 3"),
        ({"stability_percentile": 42}, "none of 50"),
        ({"headers": {"a b": "c"}}, "no header"),
        ({"key_file": "key.pem"}, "cert_file"),
        ({"ca_file": "nowhere.pem"}, "nowhere.pem"),
        ({"accuracy_tolerance": -1.0}, "from 0"),
        ({"workers": 0}, "from 1"),
    ],
)
def test_loads_that_make_no_sense_are_refused_before_anything_is_asked(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(MeasureError, match=said):
        rb.perf("nobody", url="127.0.0.1:9", **arguments)


@pytest.mark.server
def test_what_was_measured_before_an_error_is_given_back_where_that_is_asked(triton: serve.Server) -> None:
    asked: dict[str, Any] = {"server": triton, "requests": 3, "concurrency": 1, "batch_size": 100}
    with pytest.raises(rb.RepoBuilderError):
        rb.perf("identity", **asked)
    result = rb.perf("identity", **asked, on_error="return")
    assert result.error is not None
    assert result.run.model == "identity"


@pytest.mark.server
def test_perf_takes_what_its_command_takes(triton: serve.Server, tmp_path: Path) -> None:
    times, inputs = tmp_path / "times.txt", tmp_path / "inputs.npz"
    times.write_text("\n".join(str(place / 100) for place in range(12)), encoding="utf-8")
    np.savez(inputs, x=np.arange(40, dtype=np.float32).reshape(10, 4))
    asked: dict[str, Any] = {"server": triton, "headers": {"x-from": "python"}, "input_data": inputs, "raw": True}
    traced = rb.perf("identity", trace=times, max_in_flight=4, **asked)
    assert (traced.levels[0].level.mode, traced.levels[0].level.concurrency) == ("trace", 4)
    assert traced.run.data == str(inputs)
    assert len(traced.levels[0].raw_latencies_us) == traced.levels[0].requests > 0
    closed = rb.perf("identity", window_ms=50, window_requests=5, max_windows=3, version=1, workers=1, **asked)
    assert len(closed.levels[0].windows) == 3
    assert closed.to_dict()["levels"][0]["level"]["concurrency"] == 1
    assert "<svg" in closed.report(tmp_path / "page.html").read_text(encoding="utf-8")
