"""Small engines and ONNX files for the repository tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from repo_builder.core import artifacts, codec
from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.details import EngineDetails
from repo_builder.core.recipe import Recipe, parse

Shape = Sequence[int | str | None]


def _write_onnx(
    path: Path,
    inputs: dict[str, Shape] | None = None,
    outputs: dict[str, Shape] | None = None,
    *,
    types: dict[str, int] | None = None,
    doc: str = "",
) -> Path:
    """Write a graph in which every output is the first input, whatever their shapes say."""
    inputs = inputs if inputs is not None else {"x": ["N", 4]}
    outputs = outputs if outputs is not None else {"y": ["N", 4]}
    types = types or {}

    def value(name: str, shape: Shape) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), shape)

    first = next(iter(inputs))
    graph = helper.make_graph(
        [helper.make_node("Identity", [first], [name]) for name in outputs],
        "graph",
        [value(*item) for item in inputs.items()],
        [value(*item) for item in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, doc_string=doc)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def _recipe_of(**tables: Any) -> Recipe:
    """Return a small recipe; keyword arguments replace or add to its tables."""
    document: dict[str, Any] = {
        "name": "toy",
        "model": {
            "source": "jsc",
            "inputs": [{"name": "x", "dtype": "fp32", "shape": [4]}],
            "outputs": [{"name": "y", "dtype": "fp32", "shape": [4]}],
        },
        "data": {"source": "jets"},
    }
    return parse({**document, **tables})


@pytest.fixture
def write_onnx() -> Callable[..., Path]:
    """Return the writer of small ONNX files."""
    return _write_onnx


@pytest.fixture
def recipe_of() -> Callable[..., Recipe]:
    """Return the maker of small recipes."""
    return _recipe_of


@pytest.fixture
def make_engine(tmp_path: Path) -> Callable[..., EngineArtifact]:
    """Return a maker of engine artifacts whose model files are real enough to be read."""

    def make(
        *, target: str = "onnxruntime", content: str = "", details: dict[str, Any] | None = None, **tables: Any
    ) -> EngineArtifact:
        recipe = _recipe_of(**tables)
        folder = tmp_path / "build" / f"{recipe.name}-{content or 'engine'}"
        folder.mkdir(parents=True, exist_ok=True)
        if target == "tensorrt":
            (folder / "model.plan").write_bytes(b"ftrt" + content.encode())
        else:
            batch = ["N"] if details is None or details.get("max_batch_size", 64) else [1]
            _write_onnx(
                folder / "model.onnx",
                {item.name: [*batch, *item.shape] for item in recipe.model.inputs},
                {item.name: [*batch, *item.shape] for item in recipe.model.outputs},
                doc=content,
            )
        engine = EngineArtifact(
            path=folder,
            key=content or "key",
            recipe=recipe,
            inputs=recipe.model.inputs,
            outputs=recipe.model.outputs,
            classes=("a", "b", "c", "d"),
            files=artifacts.hashes(folder),
            details=codec.convert(
                EngineDetails,
                {
                    "target": target,
                    "max_batch_size": recipe.repository.max_batch_size,
                    **(details or {}),
                },
                "details",
            ),
        )
        artifacts.write_manifest(engine)
        return engine

    return make
