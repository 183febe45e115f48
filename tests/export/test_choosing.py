"""Which exporter is taken, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
nn = torch.nn

from repo_builder.core.errors import ExportError  # noqa: E402
from repo_builder.core.tensors import DType, TensorSpec  # noqa: E402
from repo_builder.export import capturing, choosing, torch_onnx  # noqa: E402
from repo_builder.export.torch_onnx import TorchGraph  # noqa: E402


class Cut(nn.Module):
    """Places that are cut by a size."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.places = nn.Linear(3, 3), nn.Parameter(torch.randn(9, 3))

    def forward(self, x: Any) -> Any:
        return self.inner(x + self.places[: x.shape[1]]).flatten(1).unflatten(1, (x.shape[1], 3))


class Branch(nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2 if x.sum() > 0 else x


def export(module: Any, exporter: str = "auto", opset: int = 17, shape: tuple[int, ...] = (4, 3)) -> TorchGraph:
    torch.manual_seed(0)
    spec = tuple(TensorSpec(name=name, dtype=DType.FP32, shape=shape) for name in ("x", "y"))
    return torch_onnx.export(
        module.eval(),
        inputs=spec[:1],
        outputs=spec[1:],
        opset=opset,
        path=Path("model.onnx"),
        samples={"x": np.ones((2, *shape), np.float32)},
        exporter=exporter,
    )


def test_a_plain_network_is_recorded_and_torch_export_would_write_the_same() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.LayerNorm(3))
    made = export(module)
    assert str(made.choice) == f"torchscript: a trace stands: {choosing.SAME}"
    other = export(module, "torch.export")
    assert str(other.choice) == "torch.export: the recipe asks for it"
    assert [n.op_type for n in made.model.graph.node] == [n.op_type for n in other.model.graph.node]
    assert [n.name for n in made.model.graph.node] == [n.name for n in other.model.graph.node]


def test_sizes_that_are_computed_go_through_torch_export() -> None:
    made = export(Cut())
    assert made.choice.exporter == "torch.export"
    assert "computes sizes in" in made.choice.why
    traced = export(Cut(), "torchscript")
    assert str(traced.choice) == "torchscript: the recipe asks for it"
    assert choosing.nodes(made.model) < choosing.nodes(traced.model)


def test_what_torch_export_refuses_is_recorded_and_the_reason_said(capsys: Any) -> None:
    made = export(Branch())
    assert made.choice.exporter == "torchscript"
    assert made.choice.why.startswith("torch.export fails: ")
    assert "\n" not in made.choice.why
    assert "frozen in the graph: test_choosing.py:" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ExportError, match=r"torch\.export cannot export the network to ONNX opset 17"):
        export(Branch(), "torch.export")


def test_recurrent_layers_are_recorded() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.GRU(3, 3, batch_first=True)

        def forward(self, x: Any) -> Any:
            return self.lstm(x)[0]

    made = export(Last())
    assert made.choice.exporter == "torchscript"
    assert "recurrent layers" in made.choice.why


def test_an_opset_that_the_older_exporter_does_not_know_is_torch_exports() -> None:
    made = export(nn.Linear(3, 3), opset=23)
    assert made.choice.exporter == "torch.export"
    assert made.choice.why.startswith("the older exporter fails: ")


def test_a_graph_that_computes_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*given: Any, **more: Any) -> Any:
        model, limits = own(*given, **more)
        for item in model.graph.initializer:
            if item.name == "inner.bias":
                item.raw_data = np.float32([9, 9, 9]).tobytes()
        return model, limits

    own = capturing.capture
    monkeypatch.setattr(capturing, "capture", wrong)
    made = export(Cut())
    assert made.choice.exporter == "torchscript"
    assert "its graph gives other numbers for 'y' at x [2, 4, 3]" in made.choice.why


def test_without_onnxscript_the_older_exporter_is_taken_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert export(Cut()).choice.why == "onnxscript is not installed (pip install onnxscript)"
    with pytest.raises(ExportError, match="onnxscript is not installed"):
        export(Cut(), "torch.export")
