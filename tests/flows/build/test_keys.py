from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core import files
from repo_builder.core.errors import ModelError
from repo_builder.core.recipe import Recipe, parse
from repo_builder.flows.build import keys


def recipe(source: str) -> Recipe:
    tensor = [{"name": "x", "dtype": "fp32", "shape": [1]}]
    return parse(
        {"name": "n", "model": {"source": source, "inputs": tensor, "outputs": tensor}, "data": {"source": "d"}}
    )


def test_the_code_version_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_PACKAGE", tmp_path)
    (tmp_path / "room").mkdir()
    source = tmp_path / "room" / "a.py"
    source.write_text("x = 1\n")
    keys.code_version.cache_clear()
    first = keys.code_version("room")
    keys.code_version.cache_clear()
    assert keys.code_version("room") == first
    source.write_text("x = 2\n")
    keys.code_version.cache_clear()
    assert keys.code_version("room") != first
    keys.code_version.cache_clear()


def test_a_users_module_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert keys.user_code(recipe("vgg")) == {}
    assert keys.user_code(recipe("no_such_module_anywhere:make")) == {}
    source = tmp_path / "my_net.py"
    source.write_text("def make(): ...\n")
    first = keys.user_code(recipe("my_net:make"))
    source.write_text("def make(): return 1\n")
    assert set(first) == {"my_net:make"}
    assert keys.user_code(recipe("my_net:make")) != first
    assert set(keys.user_code(recipe("json.decoder:JSONDecoder"))["json.decoder:JSONDecoder"]) == {
        "json",
        "json.decoder",
    }


def external(folder: Path, *, inside: bool) -> Path:
    """Write a model whose weights lie in a file beside it, in the graph or in a branch of an If."""
    weight = numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    body = helper.make_graph([helper.make_node("Identity", ["w"], ["v"])], "then", [], [output("v")], [weight])
    branch = helper.make_node("If", ["c"], ["v"], then_branch=body, else_branch=body)
    last = helper.make_node("MatMul", ["x", "v" if inside else "w"], ["y"])
    graph = helper.make_graph(
        [branch, last] if inside else [last],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [output("y")],
        [numpy_helper.from_array(np.array(True), "c")] if inside else [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path = folder / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="m.bin", size_threshold=16)
    return path


def output(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


@pytest.mark.parametrize("inside", [False, True])
def test_weights_beside_an_onnx_file_are_part_of_it(tmp_path: Path, inside: bool) -> None:
    path = external(tmp_path, inside=inside)
    first = keys.weights(path)
    assert keys.weights(path) == first != files.sha256_of(path)
    stored = tmp_path / "m.bin"
    stored.write_bytes(stored.read_bytes()[:-1] + b"\0")
    assert keys.weights(path) != first
    stored.unlink()
    with pytest.raises(ModelError, match=r"m\.bin' that holds its weights cannot be read"):
        keys.weights(path)


@pytest.mark.parametrize("place", ["a\0b", "x" * 600, ".", "nope"])
def test_weights_in_a_file_that_cannot_be_are_one_sentence(tmp_path: Path, place: str) -> None:
    path = external(tmp_path, inside=False)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = place
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="that holds its weights cannot be read"):
        keys.weights(path)


def test_a_file_that_is_whole_in_itself_has_its_own_hash(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")
    assert keys.weights(tmp_path / "w.pt") == files.sha256_of(tmp_path / "w.pt")
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="is not an ONNX model"):
        keys.weights(tmp_path / "m.onnx")


def test_versions_know_the_back_ends_names() -> None:
    found = keys.versions("numpy", "modelopt", "no-such-library")
    assert found["numpy"] is not None
    assert found["modelopt"] is not None
    assert found["no-such-library"] is None
