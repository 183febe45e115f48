"""Models that take samples in other ways than along a first axis that varies: built, served, scored and measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import repo_builder
from repo_builder.core.recipe import parse
from repo_builder.serve import Server
from tests.conftest import dropped

pytestmark = pytest.mark.server

Tensors = Mapping[str, tuple[Sequence[object], Mapping[str, Any]]]  # name → shape in the model, what the recipe says
Whole = dict[str, np.ndarray]

_DRAW = np.random.default_rng(0)
W = _DRAW.standard_normal((8, 4)).astype(np.float32)
X, STATE = _DRAW.standard_normal((50, 8)).astype(np.float32), _DRAW.standard_normal((50, 2, 4)).astype(np.float32)
_MULTIPLY = [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")]
_TURN = [helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"), helper.make_node("Transpose", ["h"], ["y"])]
_CELL = [
    helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
    helper.make_node("Add", ["state", "h"], ["next"]),
    helper.make_node("ReduceMean", ["next"], ["y"], axes=[0], keepdims=0),
]
_MODULE = """
import torch

class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(8, 4)

    def forward(self, x, state):  # (n, 8) and (2, n, 4)
        after = state + self.fc(x)
        return after.mean(0), after
"""


def _cell(whole: Whole) -> Whole:
    after = whole["state"] + whole["x"] @ W
    return {"y": after.mean(0), "next": after}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A model, and a request of it.

    Attributes:
        nodes: Its graph; none of a torch module.
        inputs: Its inputs.
        outputs: Its outputs.
        data: Samples by input name.
        request: Whole tensors, as a client sends them.
        answer: What the model makes of whole tensors; None where the build's own outputs tell it.
        dims: Dimensions of its first input in config.pbtxt.
        samples: Samples in a request of the measured load.
    """

    nodes: Sequence[onnx.NodeProto]
    inputs: Tensors
    outputs: Tensors
    data: Whole
    request: Whole
    answer: Callable[[Whole], Whole] | None
    dims: list[int]
    samples: int = 1


_STATES = {"x": (["N", 8], {"shape": [8]}), "state": ([2, "N", 4], {"shape": [2, 4], "batch_axis": 1})}
KINDS = {
    "fixed": Kind(
        nodes=_MULTIPLY,
        inputs={"x": ([4, 8], {"shape": [8]})},
        outputs={"y": ([4, 4], {"shape": [4]})},
        data={"x": X},
        request={"x": X[:4]},
        answer=lambda whole: {"y": whole["x"] @ W},
        dims=[4, 8],
        samples=4,
    ),
    "whole": Kind(
        nodes=_MULTIPLY,
        inputs={"x": ([5, 8], {"shape": [5, 8]})},
        outputs={"y": ([5, 4], {"shape": [5, 4]})},
        data={"x": np.stack([X[place : place + 5] for place in range(40)])},
        request={"x": X[:5]},
        answer=lambda whole: {"y": whole["x"] @ W},
        dims=[5, 8],
    ),
    "turned": Kind(
        nodes=_TURN,
        inputs={"x": (["N", 8], {"shape": [8]})},
        outputs={"y": ([4, "N"], {"shape": [4], "batch_axis": 1})},
        data={"x": X},
        request={"x": X[:3]},
        answer=lambda whole: {"y": (whole["x"] @ W).T},
        dims=[-1, 8],
    ),
    "cell": Kind(
        nodes=_CELL,
        inputs=_STATES,
        outputs={"y": (["N", 4], {"shape": [4]}), "next": ([2, "N", 4], {"shape": [2, 4], "batch_axis": 1})},
        data={"x": X, "state": STATE},
        request={"x": X[:3], "state": STATE[:3].transpose(1, 0, 2)},
        answer=_cell,
        dims=[-1, 8],
    ),
    "torch_cell": Kind(
        nodes=(),
        inputs=_STATES,
        outputs={"y": (["N", 4], {"shape": [4]}), "after": ([2, "N", 4], {"shape": [2, 4], "batch_axis": 1})},
        data={"x": X, "state": STATE},
        request={"x": X[:3], "state": STATE[:3].transpose(1, 0, 2)},
        answer=None,
        dims=[-1, 8],
    ),
    "softmax": Kind(  # of the whole tensor, in torch
        nodes=(),
        inputs={"x": ([8], {"shape": [8], "batch_axis": -1})},
        outputs={"y": ([8], {"shape": [8], "batch_axis": -1})},
        data={"x": X},
        request={"x": X[0]},
        answer=lambda whole: {"y": np.exp(whole["x"]) / np.exp(whole["x"]).sum()},
        dims=[8],
    ),
}
_TORCH = {"torch_cell": "kinds_of_batches:Cell", "softmax": "torch.nn:Softmax"}


def _graph(kind: Kind) -> onnx.ModelProto:
    sides = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, (shape, _) in side.items()]
        for side in (kind.inputs, kind.outputs)
    ]
    graph = helper.make_graph(list(kind.nodes), "g", *sides, [numpy_helper.from_array(W, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _recipe(folder: Path, name: str, kind: Kind) -> repo_builder.Recipe:
    np.savez(folder / f"{name}.npz", **kind.data)  # type: ignore[arg-type]
    model: dict[str, Any] = {"source": _TORCH.get(name, str(folder / f"{name}.onnx"))}
    if kind.nodes:
        onnx.save(_graph(kind), model["source"])
    if name == "softmax":
        model["arguments"] = {"dim": 0}
    rules = [{"name": "fc", "precision": "int8"}] if name == "cell" else []
    sides = {
        side: [{"name": name, "dtype": "fp32", **said} for name, (_, said) in tensors.items()]
        for side, tensors in (("inputs", kind.inputs), ("outputs", kind.outputs))
    }
    return parse({
        "name": name,
        "model": {**model, **sides},
        "data": {"source": str(folder / f"{name}.npz"), "calibration": 20, "test": 0.3},
        "quantize": {"layers": rules, "keep": "all"},
        "compile": {"target": "onnxruntime"},
        "measure": {"task": "other"},
    })  # fmt: skip


@dataclass(frozen=True)
class Deployment:
    folder: Path
    server: Server


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "kinds_of_batches.py").write_text(_MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for name, kind in KINDS.items():
            if name not in _TORCH or _has_torch():
                repo_builder.build(_recipe(folder, name, kind), output=folder / "repository", work=folder / "build")
    ports = {"http_port": 0, "grpc_port": 0, "metrics_port": 0}
    with dropped(repo_builder.serve(folder / "repository", runtime="embedded", **ports)) as server:
        yield Deployment(folder, server)


def _has_torch() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def _infer(server: Server, model: str, whole: Whole) -> Whole:
    import tritonclient.http as client

    items = []
    for name, value in whole.items():
        items.append(client.InferInput(name, list(value.shape), "FP32"))
        items[-1].set_data_from_numpy(np.ascontiguousarray(value))
    with client.InferenceServerClient(server.http_url) as connection:
        answer = connection.infer(model, items)
    return {name: answer.as_numpy(name) for name in KINDS[model].outputs}


@pytest.mark.parametrize("name", KINDS)
def test_a_request_is_a_whole_tensor_and_is_answered_right(deployment: Deployment, name: str) -> None:
    kind = KINDS[name]
    if name in _TORCH and not _has_torch():
        pytest.skip("torch is not installed")
    found = _infer(deployment.server, name, kind.request)
    config = (deployment.folder / "repository" / name / "config.pbtxt").read_text()
    assert "max_batch_size: 0" in config
    assert f"dims: {str(kind.dims).replace('[', '[ ').replace(']', ' ]')}" in config
    if kind.answer is not None:
        for output, want in kind.answer(kind.request).items():
            assert found[output].shape == want.shape
            np.testing.assert_allclose(found[output], want, rtol=1e-4, atol=0.1 if name == "cell" else 1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_every_held_out_sample_is_scored_and_the_load_measured(deployment: Deployment, name: str) -> None:
    if name in _TORCH and not _has_torch():
        pytest.skip("torch is not installed")
    kind = KINDS[name]
    found = repo_builder.perf(
        name, server=deployment.server, work=deployment.folder / "build", concurrency=2, requests=240
    )  # fmt: skip
    assert found.run.ladder is not None
    forms = {item.form: item for item in found.run.ladder.rungs}
    held_out = round(len(next(iter(kind.data.values()))) * 0.3)
    assert forms["served"].samples == held_out
    assert {item.name for item in forms["served"].outputs} == set(kind.outputs)
    assert all(item.max_abs_diff == 0 for item in forms["served"].outputs), "what is served is what was compiled"
    assert found.run.ladder.culprit == ""
    (level,) = found.levels
    assert level.errors == 0
    assert level.requests >= 240  # of fewer a busy machine's statistics may tell a part, and then tell none
    assert {size for size, _ in level.server[0].batch_sizes} == {1}, "no two requests ran together"
    assert level.infer_per_s == level.requests_per_s
    told = [note for note in found.run.notes if "samples, and counts as one inference" in note]
    assert [note.split()[3] for note in told] == ([str(kind.samples)] if kind.samples > 1 else [])
