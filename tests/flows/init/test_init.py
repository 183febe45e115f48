"""A first recipe: it says what the model says, it parses, and it builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.errors import DataError, ModelError, RecipeError
from repo_builder.core.recipe import Recipe, parse, reading
from repo_builder.flows import init
from repo_builder.flows.build import BuildOptions, build
from repo_builder.flows.init import render

Value = tuple[str, list[Any], int]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def save(path: Path, nodes: list[Any], inputs: list[Value], outputs: list[Value], **weights: Any) -> Path:
    def values(items: list[Value]) -> list[Any]:
        return [helper.make_tensor_value_info(name, kind, shape) for name, shape, kind in items]

    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", values(inputs), values(outputs), stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def weights(*shape: int) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def classifier(path: Path) -> Path:
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["h"], name="first"),
        helper.make_node("Flatten", ["h"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["logits"], name="last"),
    ]
    inputs, outputs = [("image", ["N", 3, 6, 6], FLOAT)], [("logits", ["N", 4], FLOAT)]
    return save(path, nodes, inputs, outputs, w=weights(2, 3, 3, 3), v=weights(32, 4))


def recipe(made: init.Draft) -> Recipe:
    return parse(reading.parsed(made.text))


def test_it_is_read_off_a_classifier_and_its_samples_and_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    classifier(Path("net.onnx"))
    np.savez("net.npz", image=weights(80, 3, 6, 6), y=np.arange(80) % 4)
    made = init.draft("own", "net.onnx", data="net.npz")
    assert made.complete
    assert not made.undecided
    path = init.write(made, Path("own.toml"))
    found = Recipe.load(path)
    assert [str(item) for item in found.model.inputs] == ["image fp32[3, 6, 6]"]
    assert [str(item) for item in found.model.outputs] == ["logits fp32[4]"]
    assert found.repository.max_batch_size == 64
    assert found.measure.task == "classification"
    assert [rule.type for rule in found.quantize.layers] == ["Conv2d", "Linear"]
    assert 'name = "last"' in made.text
    placed = build(BuildOptions(recipe=found, work=Path("build"), repository=Path("repository"), target="onnxruntime"))
    assert placed.exported.accuracy[0].top1 is not None
    assert (Path("repository") / "own" / "config.pbtxt").is_file()
    with pytest.raises(RecipeError, match="is there already"):
        init.write(made, Path("own.toml"))
    assert init.write(made, Path("own.toml"), force=True) == path


def test_without_samples_it_says_what_they_have_to_be(tmp_path: Path) -> None:
    made = init.draft("own", str(classifier(tmp_path / "net.onnx")))
    assert "own.npz" in made.undecided[0]
    assert "'image' fp32 (samples, 3, 6, 6)" in made.undecided[0]
    assert recipe(made).data.source == "own.npz"
    assert all(f"#   {line}" in made.text for line in made.undecided)


def test_samples_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", image=weights(80, 3, 5, 5))
    with pytest.raises(DataError):
        init.draft("own", str(classifier(tmp_path / "net.onnx")), data=str(tmp_path / "other.npz"))


IDENTITY = [helper.make_node("Identity", ["x"], ["y"])]
MEAN = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])]


@pytest.mark.parametrize(
    ("nodes", "shape", "spec", "axis", "max_batch"),
    [
        (IDENTITY, ["N", 4], (4,), 0, 64),
        (IDENTITY, [1, 4], (4,), 0, 0),
        (IDENTITY, [8, 4], (4,), 0, 0),
        (IDENTITY, [4, "N"], (4,), 0, 0),
        (IDENTITY, [], (), -1, 0),
        (MEAN, ["N", 4], (4,), 0, 0),
        (IDENTITY, ["N", "S", 4], (-1, 4), 0, 64),
        (IDENTITY, [10, "batch", 4], (10, 4), 1, 0),
        (IDENTITY, [1, "Batch_size", 4], (1, 4), 1, 0),
        (MEAN, ["sequence", "batch", 4], (-1, 4), 1, 0),
    ],
)
def test_the_axis_that_counts_samples_is_found(
    tmp_path: Path, nodes: list[Any], shape: list[Any], spec: tuple[int, ...], axis: int, max_batch: int
) -> None:
    """[4, "N"] is fixed to four rows, as [8, 4] to eight: then the rest varies."""
    path = save(tmp_path / "m.onnx", nodes, [("x", shape, FLOAT)], [("y", shape, FLOAT)])
    found = recipe(init.draft("m", str(path)))
    assert found.repository.max_batch_size == max_batch
    if shape == [4, "N"]:
        spec = (-1,)
    for item in (*found.model.inputs, *found.model.outputs):
        assert (item.shape, item.batch_axis) == (spec, axis)


def test_a_state_counts_samples_on_the_axis_of_the_same_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["s"], ["t"])]
    inputs = [("x", ["B", 4], FLOAT), ("s", [2, "B", 4], FLOAT)]
    path = save(tmp_path / "m.onnx", nodes, inputs, [("y", ["B", 4], FLOAT), ("t", [2, "B", 4], FLOAT)])
    made = init.draft("m", str(path))
    assert [(item.shape, item.batch_axis) for item in recipe(made).model.inputs] == [((4,), 0), ((2, 4), 1)]
    assert any("'B'" in line for line in made.undecided)


def test_a_quantized_model_gets_no_rules(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "k"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "k"], ["y"]),
    ]
    path = save(tmp_path / "m.onnx", nodes, [("x", ["N", 4], FLOAT)], [("y", ["N", 4], FLOAT)], k=np.float32(0.1))
    made = init.draft("m", str(path))
    assert not recipe(made).quantize.layers
    assert any("quantized already" in line for line in made.undecided)


@pytest.mark.parametrize("name", ["vgg", "", "a/b", "..", "x" * 300])
def test_a_name_that_is_none_or_a_built_ins_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError):
        init.draft(name, str(classifier(tmp_path / "net.onnx")))


@pytest.mark.parametrize("model", ["missing.onnx", "net.pt"])
def test_what_is_no_model_is_refused(model: str) -> None:
    with pytest.raises(ModelError):
        init.draft("own", model)


NET = """from torch import nn

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.last = nn.{first}, nn.Linear(width, 3)
    def forward(self, {argument}, mask=None):
        return self.last(self.first({argument}))

def make(width=4):
    return Net(width)
"""


@pytest.mark.parametrize(
    ("first", "argument", "shape"), [("Linear(8, width)", "features", (8,)), ("Embedding(9, width)", "ids", (-1,))]
)
def test_a_torch_module_says_what_it_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, argument: str, shape: tuple[int, ...]
) -> None:
    pytest.importorskip("torch")
    (tmp_path / f"{argument}_net.py").write_text(NET.format(first=first, argument=argument))
    monkeypatch.chdir(tmp_path)
    made = init.draft("own", f"{tmp_path}/{argument}_net.py:make", arguments={"width": 6})
    found = recipe(made)
    assert [(item.name, item.shape) for item in found.model.inputs] == [(argument, shape)]
    assert [item.shape for item in found.model.outputs] == [(3,)]
    assert found.model.arguments == {"width": 6}
    assert [rule.type for rule in found.quantize.layers] == ["Linear"]
    assert any("is a guess" in line for line in made.undecided)


def test_shapes_of_a_torch_module_come_from_samples_or_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    Path("conv.py").write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3))\n")
    made = init.draft("own", f"{tmp_path}/conv.py:make")
    assert not made.complete
    assert any(line.startswith("shape of input 'input'") for line in made.undecided)
    with pytest.raises(RecipeError, match="shape"):
        recipe(made)
    np.savez("images.npz", input=weights(40, 3, 9, 9))
    made = init.draft("own", f"{tmp_path}/conv.py:make", data="images.npz")
    assert "shape = [3, 9, 9]" in made.text

    assert made.complete, "the network was run on two samples"
    assert "shape = [4, 7, 7]" in made.text


HEADS = """from torch import nn

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 2)
    def forward(self, left, right):
        h = self.body(left + right)
        return {returned}
"""


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        ("self.one(h), self.two(h)", ["output_0", "output_1"]),
        ("{'kind': self.one(h), 'box': self.two(h)}", ["kind", "box"]),
    ],
)
def test_several_outputs_of_a_torch_module_are_found_by_running_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returned: str, names: list[str]
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    module = f"heads_{names[0]}.py"
    Path(module).write_text(HEADS.replace("{returned}", returned))
    np.savez("pairs.npz", right=weights(40, 6), left=weights(40, 6).astype(np.float64), y=np.arange(40) % 3)
    made = init.draft("own", f"{tmp_path}/{module}:Heads", data="pairs.npz")
    found = recipe(made)
    assert [item.name for item in found.model.inputs] == ["left", "right"]
    assert [(item.name, item.shape) for item in found.model.outputs] == list(zip(names, [(3,), (2,)], strict=True))
    assert found.measure.output == names[0]


@pytest.mark.parametrize(("first", "axis"), [("False", 1), ("True", 0)])
def test_the_axis_of_a_torch_modules_samples_is_tried(
    first: str, axis: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"recurrent_{first}"
    Path(f"{name}.py").write_text(
        f"""
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.body = nn.Embedding(9, 4), nn.LSTM(4, 3, batch_first={first})
    def forward(self, ids):
        return self.body(self.table(ids))[0]
def make():
    return Net()
"""
    )
    np.savez("ids.npz", ids=np.random.default_rng(0).integers(0, 9, (40, 5)))
    made = recipe(init.draft("m", f"{name}:make", data="ids.npz"))
    assert [(item.shape, item.batch_axis) for item in made.model.inputs] == [((5,), axis)]
    assert [(item.shape, item.batch_axis) for item in made.model.outputs] == [((5, 3), axis)]
    assert made.repository.max_batch_size == (0 if axis else 64)


def test_a_forward_that_does_not_run_on_the_samples_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    Path("odd.py").write_text(HEADS.replace("{returned}", "self.one(h), self.two(left)"))
    np.savez("pairs.npz", right=weights(40, 6), left=weights(40, 6))
    made = init.draft("own", f"{tmp_path}/odd.py:Heads", data="pairs.npz")
    assert any("does not run on the data" in line for line in made.undecided)


def test_arguments_that_a_function_needs_are_asked_for_and_a_layer_alone_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    Path("needing.py").write_text("from torch import nn\ndef make(width):\n    return nn.Linear(4, width)\n")
    with pytest.raises(RecipeError, match="--argument"):
        init.draft("own", f"{tmp_path}/needing.py:make")
    made = init.draft("own", f"{tmp_path}/needing.py:make", arguments={"width": 3})
    assert "what the last layer, Linear, gives" in made.text
    assert 'name = ""' not in made.text


PRINTED = st.text(st.characters(exclude_categories=["Cs"]))


@given(PRINTED, st.recursive(st.booleans() | st.integers() | PRINTED, lambda inner: st.lists(inner, max_size=3)))
def test_any_text_is_a_toml_string_and_any_comment_one_line(text: str, value: Any) -> None:
    written = f"a = {render._text(text)} # {render._comment(text)}\nb = {render._value(value)}"
    assert reading.parsed(written) == {"a": text, "b": value}
