"""``repo-builder init``: the file's name on stdout, what is left to decide on stderr."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from repo_builder import cli
from repo_builder.core.recipe import Recipe


def test_init_writes_a_recipe_and_layers_lists_what_it_may_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], name="act")], "g", values[:1], values[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "net.onnx")
    assert cli.run(["init", "net.onnx"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == "net.toml"
    assert "left to decide:" in err
    assert Recipe.load("net.toml").name == "net"
    assert cli.run(["init", "net", "net.onnx"]) == 3
    assert "--force" in capsys.readouterr().err
    assert cli.run(["init", "net", "net.onnx", "--force"]) == 0
    assert cli.run(["init", "vgg", "net.onnx"]) == 3
    assert not Path("vgg.toml").exists()
    assert cli.run(["init", "other", "net.onnx", "--argument", "width"]) == 2
    capsys.readouterr()
    assert cli.run(["layers", "net.toml"]) == 0
    assert "act" in capsys.readouterr().out
