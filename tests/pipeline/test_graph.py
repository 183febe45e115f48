"""Steps and a network in one graph: names that clash, what goes straight through, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core import codec
from repo_builder.core.errors import DataError
from repo_builder.core.recipe import ModelSpec, PipelineSpec
from repo_builder.core.sessions import Session
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.pipeline import graph, parts, running
from repo_builder.pipeline.chain import Chain, resolve
from repo_builder.pipeline.running import Runnable

WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 7 - 0.5


def network(inside: str = "hidden", given: str = "logits", taken: str = "x", opset: int = 17) -> onnx.ModelProto:
    """Rows of four numbers → three; the names of its tensors are the caller's."""
    nodes = [
        helper.make_node("MatMul", [taken, "w"], [inside], name="one"),
        helper.make_node("Relu", [inside], [given], name="two"),
    ]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(taken, TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(WEIGHT, "w")],
        value_info=[helper.make_tensor_value_info(inside, TensorProto.FLOAT, ["N", 3])],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def chain(before: list[dict[str, Any]], after: list[dict[str, Any]], client: str = "x", **table: Any) -> Chain:
    inputs = [{"name": client, "dtype": "fp32", "shape": [4]}]
    spec = codec.build(PipelineSpec, {"inputs": inputs, "before": before, "after": after, **table})
    model = {
        "source": "n.onnx", "inputs": [{"name": "x", "dtype": "fp32", "shape": [4]}],
        "outputs": [{"name": "logits", "dtype": "fp32", "shape": [3]}],
    }  # fmt: skip
    return resolve(spec, codec.build(ModelSpec, model))


def whole(found: Chain, model: onnx.ModelProto) -> onnx.ModelProto:
    (part,) = parts.split(found, fuse=True, why_not="")
    return graph.write(part, model, ("a", "b", "c"))


def apart(found: Chain, model: onnx.ModelProto, x: np.ndarray) -> dict[str, Any]:
    """Run the parts one by one, as an ensemble does."""
    runnables = []
    for part in parts.split(found, fuse=False, why_not=""):
        session = Session((model if part.bare else graph.write(part, None, ("a", "b", "c"))).SerializeToString())
        takes = {spec.name: wire.name for spec, wire in zip(found.network.binds, found.network.takes, strict=True)}
        gives = {spec.name: wire.name for spec, wire in zip(found.network.yields, found.network.gives, strict=True)}

        def run(feed: Any, session: Session = session, bare: bool = part.bare) -> Any:
            if not bare:
                return session.run(feed)
            outputs = session.run({own: feed[wire] for own, wire in takes.items()})  # noqa: B023
            return {gives[name]: value for name, value in outputs.items()}  # noqa: B023

        runnables.append(Runnable(part=part, run=run))
    return running.run(runnables, {found.inputs[0].name: x}, [item.name for item in found.outputs])


@settings(max_examples=20)
@given(
    st.sampled_from(["hidden", "x.2", "scores", "probabilities", "raw", "classes"]), st.sampled_from(["x", "raw"]),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_one_graph_is_the_parts_bit_for_bit_whatever_tensors_are_called(
    inside: str, client: str, normalised: bool, shown: bool
) -> None:
    before = [{"step": "normalise", "mean": [0.5], "std": [2.0], "inputs": [client]}] if normalised else []
    if client != "x" and not normalised:
        before = [{"step": "cast", "dtype": "fp32"}]
    outputs = {"outputs": ["logits", "labels", "scores"]} if shown else {}
    found = chain(before, [{"step": "softmax"}, {"step": "top_k", "k": 2}], client, **outputs)
    model = network(inside)
    before_writing = model.SerializeToString()
    joined = whole(found, model)
    assert model.SerializeToString() == before_writing  # the network itself is left alone
    onnx.checker.check_model(joined)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    together, one_by_one = Session(joined.SerializeToString()).run({client: x}), apart(found, model, x)
    assert list(together) == [item.name for item in found.outputs] or set(together) == {i.name for i in found.outputs}
    for name, values in together.items():
        np.testing.assert_array_equal(values, one_by_one[name])


def test_the_networks_operator_set_and_weights_stay() -> None:
    joined = whole(chain([], [{"step": "softmax"}]), network(opset=13))
    assert joined.opset_import[0].version == 13
    assert {item.name for item in joined.graph.initializer} >= {"w"}
    assert {"one", "two"} <= {item.name for item in joined.graph.node}


def test_an_operator_set_that_steps_are_not_written_for_is_told() -> None:
    assert "operator set is 12" in graph.obstacle(network(opset=12))
    assert graph.obstacle(network(opset=17)) == ""


def test_samples_of_several_shapes_are_no_batch_for_a_network() -> None:
    spec = TensorSpec(name="x", dtype=DType.FP32, shape=(-1,))
    values: Any = {"x": [np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32)]}
    with pytest.raises(DataError, match=r"samples become fp32\[3\] and fp32\[4\]"):
        running.stacked(values, [spec])


def test_what_a_step_gives_is_held_against_what_was_declared() -> None:
    found = chain([{"step": "normalise"}], [])
    part = parts.split(found, fuse=False, why_not="")[0]
    name = part.gives[0].name
    wrong = Runnable(part=part, run=lambda feed: {name: np.zeros((len(feed["x"]), 9), np.float32)})
    with pytest.raises(DataError, match=r"gave fp32\[9\] for x.2 fp32\[4\]"):
        running.run([wrong], {"x": np.zeros((2, 4), np.float32)}, [name])


def test_blocks_of_samples_are_one_array_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_HELD", 3)
    found = chain([{"step": "normalise", "std": [2.0]}], [])
    part = parts.split(found, fuse=False, why_not="")[0]
    session, name = Session(graph.write(part, None, ()).SerializeToString()), part.gives[0].name
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    taken: list[int] = []

    def run(feed: Any) -> Any:
        taken.append(len(feed["x"]))
        return session.run(feed)

    np.testing.assert_array_equal(running.run([Runnable(part=part, run=run)], {"x": x}, [name])[name], x / 2)
    assert taken == [3, 3, 2]
