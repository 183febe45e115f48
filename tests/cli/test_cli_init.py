"""``repo-builder init``: what it prints where, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from repo_builder import cli
from repo_builder.core.recipe import Recipe


@pytest.fixture(autouse=True)
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4])] for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"], name="act")], "g", *sides)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "net.onnx")
    return tmp_path


def test_the_path_is_all_of_stdout_and_what_is_left_to_decide_is_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["init", "net.onnx"]) == 0
    said = capsys.readouterr()
    assert said.out == "net.toml\n"
    assert "left to decide:" in said.err
    assert "net.npz" in said.err
    assert Recipe.load("net.toml").name == "net"
    assert cli.run(["init", "other", "net.onnx"]) == 0
    assert Recipe.load("other.toml").name == "other"


def test_a_recipe_that_is_there_is_kept_unless_it_may_go(capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.toml").write_text("mine")
    assert cli.run(["init", "net.onnx"]) == 3
    said = capsys.readouterr().err
    assert "is there already" in said
    assert "--force" in said
    assert Path("net.toml").read_text() == "mine"
    assert cli.run(["init", "net.onnx", "--force"]) == 0
    assert Recipe.load("net.toml").name == "net"


def test_samples_settle_what_was_open(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("some.npz", x=np.ones((60, 4), np.float32), y=np.arange(60) % 4)
    assert cli.run(["init", "net.onnx", "--data", "some.npz"]) == 0
    said = capsys.readouterr().err
    assert "left to decide:" not in said
    assert "task: classification" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["net.onnx", "--argument", "width"], 2, "'width' is not KEY=VALUE"),
        (["missing.onnx"], 5, "missing.onnx"),
        (["vgg", "net.onnx"], 3, "vgg"),  # a built-in's
        (["net.onnx", "--data", "missing.npz"], 4, "missing.npz"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert cli.run(["init", *arguments]) == code
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert not list(Path().glob("*.toml"))


def test_layers_lists_what_the_recipe_may_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["init", "net.onnx"]) == 0
    capsys.readouterr()
    assert cli.run(["layers", "net.toml"]) == 0
    assert "act" in capsys.readouterr().out
