"""ONNX files of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core import onnx_files
from repo_builder.core.errors import ModelError


@pytest.fixture
def model() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32), "w")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", infos[:1], infos[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_model_that_fits_is_one_file(model: onnx.ModelProto, tmp_path: Path) -> None:
    onnx_files.save(model, tmp_path / "m.onnx")
    assert [item.name for item in tmp_path.iterdir()] == ["m.onnx"]
    assert onnx_files.load(tmp_path / "m.onnx") == model
    with onnx_files.loadable(model) as source:
        assert isinstance(source, bytes)


def test_weights_that_do_not_fit_lie_beside_it(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    monkeypatch.setattr(onnx_files, "LARGEST_BYTES", 4096)
    path = tmp_path / "m.onnx"
    for _ in range(2):  # writing again replaces both
        onnx_files.save(model, path)
        assert sorted(item.name for item in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert path.stat().st_size < 1024
    assert model.graph.initializer[0].raw_data, "the model that is given is not changed"
    found = onnx_files.load(path).graph.initializer[0]
    np.testing.assert_array_equal(numpy_helper.to_array(found), numpy_helper.to_array(model.graph.initializer[0]))
    x = np.ones((2, 64), np.float32)
    want = x @ numpy_helper.to_array(model.graph.initializer[0])
    with onnx_files.loadable(model) as source:
        session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("content", [b"", b"no onnx at all", None])
def test_what_is_no_model_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    if content == b"":
        assert not onnx_files.load(path).graph.node  # protobuf takes nothing for an empty message
        return
    with pytest.raises(ModelError, match=r"m\.onnx: is not an ONNX model") as raised:
        onnx_files.load(path)
    assert "\n" not in str(raised.value)
