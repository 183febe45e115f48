"""Products with 4-bit weights as ONNX Runtime's operator, held against its own fusion and against plain arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

from repo_builder.compile.onnxruntime import nbits  # noqa: E402
from repo_builder.compile.onnxruntime.became import became  # noqa: E402
from repo_builder.export import qdq  # noqa: E402
from repo_builder.quantize.placement import blocks  # noqa: E402
from tests.quantize.placement.conftest import four_bit_constants  # noqa: E402


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def graph_of(
    weight: np.ndarray, block: int, symmetric: bool, *, products: int = 1
) -> tuple[onnx.ModelProto, np.ndarray]:
    """A placed graph of products with one weight, and what that weight stands for."""
    found = blocks.find(weight, block=block, symmetric=symmetric)
    codes = blocks.codes(weight, found)
    stored = four_bit_constants(codes, found)
    nodes = [helper.make_node("DequantizeLinear", ["c", "s", "z"], ["w"], "w/DQ", axis=0, block_size=block)]
    nodes += [helper.make_node("MatMul", [f"x{n}", "w"], [f"y{n}"], f"fc{n}") for n in range(products)]
    sides = [
        [helper.make_tensor_value_info(f"{side}{n}", TensorProto.FLOAT, ["n", size]) for n in range(products)]
        for side, size in (("x", weight.shape[0]), ("y", weight.shape[1]))
    ]
    graph = helper.make_graph(nodes, "g", *sides, [*stored, numpy_helper.from_array(found.scale, "s")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model, blocks.values(codes, found)


def session(
    model: onnx.ModelProto, level: str = "", keep: Path | None = None, *, optimize: bool = True
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if level:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    if keep is not None:
        options.optimized_model_filepath = str(keep)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 6)),
    block=st.sampled_from([16, 32, 64]),
    symmetric=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_operator_computes_what_the_placed_graph_does(
    shape: tuple[int, int], block: int, symmetric: bool, seed: int
) -> None:
    placed, weight = graph_of(noise(*shape, seed=seed), block, symmetric)
    feeds = {"x0": noise(3, shape[0], seed=seed + 1)}
    want = session(placed, optimize=False).run(None, feeds)[0]
    np.testing.assert_allclose(want, feeds["x0"] @ weight, rtol=1e-4, atol=1e-4)
    for compute, room in (("fp32", 1e-4), ("int8", 0.05)):
        made = nbits.lowered(placed, compute)
        assert [node.op_type for node in made.graph.node] == ["MatMulNBits"]
        found = session(made).run(None, feeds)[0]
        assert np.abs(found - want).max() <= room * max(
            1.0, float(np.abs(feeds["x0"]).max() * np.abs(weight).sum(0).max())
        )


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("inputs", [64, 100])
def test_it_is_what_onnx_runtime_makes_of_the_placed_graph(tmp_path: Path, symmetric: bool, inputs: int) -> None:
    """Same bytes of codes, scales and zero points, same settings, same answers bit for bit, at either level."""
    placed, _ = graph_of(noise(inputs, 6), 32, symmetric)
    feeds = {"x0": noise(5, inputs, seed=1)}
    for compute, level in nbits.ACCURACY_LEVELS.items():
        made, theirs = nbits.lowered(placed, compute), tmp_path / "theirs.onnx"
        want = session(placed, str(level), theirs).run(None, feeds)[0]
        assert session(made).run(None, feeds)[0].tobytes() == want.tobytes()
        (mine,), (other,) = made.graph.node, onnx.load(theirs).graph.node
        attributes = [{item.name: item.i for item in node.attribute} for node in (mine, other)]
        assert attributes[0].items() <= attributes[1].items()
        stored = [
            {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
            for model in (made, onnx.load(theirs))
        ]
        values = [
            [held[name].ravel() for name in node.input[1:]] for held, node in zip(stored, (mine, other), strict=True)
        ]
        if inputs % 32 == 0:  # what stands behind a short last block is nobody's
            ours, his = values
            assert his[0].tobytes() == ours[0].tobytes()
        assert values[0][1].tobytes() == values[1][1].tobytes()
        if not symmetric:
            assert values[0][2].tobytes() == values[1][2].tobytes()


def test_a_shared_weight_is_stored_once_and_the_rest_of_the_graph_stays(tmp_path: Path) -> None:
    placed, _ = graph_of(noise(32, 4), 16, False, products=2)
    before = placed.SerializeToString(deterministic=True)
    made = nbits.lowered(placed, "int8")
    assert placed.SerializeToString(deterministic=True) == before
    assert len(made.graph.initializer) == 3
    assert [(item.domain, item.version) for item in made.opset_import] == [("", 21), ("com.microsoft", 1)]
    assert qdq.layer_precisions(made) == {"fc0": "int4", "fc1": "int4"}
    path = tmp_path / "placed.onnx"
    onnx.save(placed, path)
    nbits.finish(path, tmp_path / "model.onnx", "int8")
    assert [(row.name, row.got, row.operator) for row in became(tmp_path / "model.onnx")] == [
        ("fc0", "int4", "MatMulNBits"),
        ("fc1", "int4", "MatMulNBits"),
    ]
    assert path.is_file()
    onnx.save(graph_of(noise(32, 4), 16, False)[0], path)
    assert [(row.name, row.got) for row in became(path)] == [("fc0", "int4")], "ONNX Runtime fuses one by itself"


def test_a_graph_without_blocks_is_written_once(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(noise(4, 4), "w")
    sides = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])] for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "fc")], "g", *sides, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    placed = tmp_path / "placed.onnx"
    onnx.save(model, placed)
    nbits.finish(placed, tmp_path / "model.onnx", "int8")
    assert [item.name for item in tmp_path.iterdir()] == ["model.onnx"]
    assert onnx.load(tmp_path / "model.onnx") == model
