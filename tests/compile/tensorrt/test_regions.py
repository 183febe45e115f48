"""Regions between common borders of two plans, and whose time is whose."""

from __future__ import annotations

import itertools

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from repo_builder.compile.tensorrt import inspector, regions
from repo_builder.compile.tensorrt.regions import Piece

NODES = "abcdefgh"


def piece(nodes: str, us: float) -> Piece:
    return Piece(name=nodes, nodes=tuple(nodes), us={1: us, 8: 2 * us})


def test_what_either_plan_fuses_is_compared_as_one() -> None:
    int8 = [piece("a", 1), piece("b", 2), piece("c", 4), piece("d", 1)]
    fp16 = [piece("ab", 2), piece("cd", 6)]
    found = {"".join(sorted(item.nodes)): item for item in regions.compare(int8, fp16, {})}
    assert {name: (item.first_us[1], item.second_us[8]) for name, item in found.items()} == {
        "ab": (3, 4),
        "cd": (5, 12),
    }
    whole = regions.totals(fp16)
    assert whole == {1: 8, 8: 16}
    assert found["ab"].loss(whole) == pytest.approx(2 * 1 / 8)
    assert found["cd"].loss(whole) < 0


def test_what_overlaps_crosswise_is_one_region() -> None:
    (found,) = regions.compare([piece("ab", 1), piece("c", 1)], [piece("a", 1), piece("bc", 5)], {})
    assert (found.nodes, found.second_us[1]) == (frozenset("abc"), 6)


@given(st.data())
def test_no_time_is_lost_or_counted_twice(data: st.DataObject) -> None:
    sides = []
    for _ in range(2):
        cuts = sorted(data.draw(st.sets(st.integers(1, len(NODES) - 1))))
        ends = [0, *cuts, len(NODES)]
        sides.append([piece(NODES[a:b], data.draw(st.integers(1, 9))) for a, b in itertools.pairwise(ends)])
    found = regions.compare(*sides, {})
    assert sorted(name for item in found for name in item.nodes) == list(NODES)
    for place, told in ((0, "first_us"), (1, "second_us")):
        assert sum(getattr(item, told)[8] for item in found) == regions.totals(sides[place])[8]


def test_a_quantizers_time_is_its_readers_and_a_last_cast_that_of_the_node_before() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s"], ["d"], name="d"),
        helper.make_node("Relu", ["d"], ["a"], name="a"),
        helper.make_node("Cast", ["a"], ["y"], name="c", to=TensorProto.FLOAT),
    ]
    model = helper.make_model(helper.make_graph(nodes, "g", [], []))
    assert regions.owners(model, ["a"]) == {"q": "a", "d": "a", "c": "a"}
    assert isinstance(model, onnx.ModelProto)


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("conv1 + relu1 [profile 2]", ("conv1", "relu1")),
        ("Reformatting CopyNode for Input Tensor 0 to conv1 + relu1", ("conv1", "relu1")),
        ("Reformatting CopyNode for Output Tensor 0 to relu1 [profile 1]", ("relu1",)),
        ("{ForeignNode[conv1...relu2]}", ("conv1", "relu1", "relu2")),
    ],
)
def test_a_profilers_name_tells_nodes(name: str, nodes: tuple[str, ...]) -> None:
    assert set(inspector.nodes_of(inspector.plain_name(name), ["conv1", "relu1", "relu2"])) == set(nodes)
