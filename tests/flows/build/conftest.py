"""Builds of small graphs, by the recipe that a user would write for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.recipe import parse
from repo_builder.flows import build as building
from repo_builder.flows.build import BuildOptions, BuildResult

Tensors = Mapping[str, Sequence[object]]


def write_graph(
    path: Path, nodes: Sequence[onnx.NodeProto], inputs: Tensors, outputs: Tensors, stored: Mapping[str, object]
) -> None:
    """Write a graph of fp32 inputs and outputs; -1 and names stand for sizes that vary."""
    sides = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()]
    graph = helper.make_graph(list(nodes), "g", *sides, values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class Project:
    """A folder with a graph, its samples and its recipe.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.document: dict[str, Any] = {}

    def write(
        self,
        *,
        nodes: Sequence[onnx.NodeProto],
        graph: tuple[Tensors, Tensors],
        recipe: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
        data: Mapping[str, np.ndarray],
        stored: Mapping[str, object],
        rules: Sequence[Mapping[str, Any]] = (),
        name: str = "small",
        **tables: Mapping[str, Any],
    ) -> None:
        """Write all of it; inputs and outputs stand in ``graph`` as in ONNX and in ``recipe`` as a user writes them."""
        write_graph(self.folder / f"{name}.onnx", nodes, *graph, stored)
        np.savez(self.folder / f"{name}.npz", **data)  # type: ignore[arg-type]
        inputs, outputs = ([{"dtype": "fp32", **item} for item in side] for side in recipe)
        self.document = {
            "name": name,
            "model": {"source": str(self.folder / f"{name}.onnx"), "inputs": inputs, "outputs": outputs},
            "data": {"source": str(self.folder / f"{name}.npz"), "calibration": 24, "test": 0.4},
            "quantize": {"layers": list(rules)},
            "compile": {"onnxruntime": {"first_layer": "int8"}},
            **{"measure": {"task": "other"}, **tables},
        }

    def options(self, **changes: Any) -> BuildOptions:
        """Return the options of a build."""
        made = BuildOptions(
            recipe=parse(self.document),
            work=self.folder / "build",
            repository=self.folder / "model_repository",
            target="onnxruntime",
        )
        return dataclasses.replace(made, **changes)

    def build(self, **changes: Any) -> BuildResult:
        """Build it."""
        return building.build(self.options(**changes))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def two_heads(project: Project) -> Callable[..., Project]:
    """Return a writer of a network of two outputs, whose second layer clips its input where ``broken``."""

    def write(*, broken: bool) -> Project:
        random = np.random.default_rng(0)
        nodes = [
            helper.make_node("MatMul", ["x", "w0"], ["h"], name="body"),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w1"], ["first"], name="one"),
            helper.make_node("MatMul", ["r", "w2"], ["second"], name="two"),
        ]
        shapes = {"w0": (8, 16), "w1": (16, 3), "w2": (16, 5)}
        # half of the values are 0 behind a Relu: the median of what is quantized is next to nothing
        clipped = {"calibrator": "percentile", "percentile": 60.0 if broken else 100.0}
        project.write(
            nodes=nodes,
            graph=({"x": ["N", 8]}, {"first": ["N", 3], "second": ["N", 5]}),
            recipe=([{"name": "x", "shape": [8]}], [{"name": "first", "shape": [3]}, {"name": "second", "shape": [5]}]),
            data={"x": random.normal(size=(200, 8)).astype(np.float32)},
            stored={name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()},
            rules=[{"name": "two", "precision": "int8", "input": clipped}],
        )
        return project

    return write
