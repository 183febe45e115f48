"""What the campaigns build, damage and attack: small models with known answers, and the recipe around them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from repo_builder import cli
from repo_builder.core.tensors import Array

FEATURES, CLASSES, SAMPLES = 16, 5, 60


def values(*shape: int, seed: int = 0) -> Array:
    """Normally distributed float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(nodes: list[onnx.NodeProto], x: list[int | str], y: list[int | str], **weights: Array) -> onnx.ModelProto:
    """A model from the tensor ``x`` to the tensor ``y``."""
    ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", x), ("y", y)))
    inputs, outputs = ([item] for item in ends)
    constants = [numpy_helper.from_array(item, name) for name, item in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def dense(*, seed: int = 0) -> onnx.ModelProto:
    """16 features → 8 → 5 classes."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="b"),
    ]
    weights = {"w": values(FEATURES, 8, seed=seed), "v": values(8, CLASSES, seed=seed + 1)}
    return network(nodes, ["N", FEATURES], ["N", CLASSES], **weights)


def convolution() -> onnx.ModelProto:
    """3×8×8 pixels → 4×6×6."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c")
    return network([node], ["N", 3, 8, 8], ["N", 4, 6, 6], w=values(4, 3, 3, 3))


RECIPE = """name = "subject"
[model]
source = "m.onnx"
inputs = [{ name = "x", dtype = "fp32", shape = [16] }]
outputs = [{ name = "y", dtype = "fp32", shape = [5] }]
[data]
source = "data.npz"
calibration = 15
test = 0.25
[quantize]
keep = "all"
batch_size = 32
[[quantize.layers]]
type = "*"
precision = "int8"
[compile]
target = "onnxruntime"
[compile.onnxruntime]
first_layer = "int8"
[repository]
max_batch_size = 64
[measure]
task = "classification"
"""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A folder with a recipe, its model, its data, and what a build made of them."""

    folder: Path

    @property
    def recipe(self) -> Path:
        """The recipe."""
        return self.folder / "r.toml"

    @property
    def work(self) -> Path:
        """The work folder."""
        return self.folder / "build"

    @property
    def repository(self) -> Path:
        """The model repository."""
        return self.folder / "model_repository"

    @property
    def placed(self) -> Path:
        """The placed model."""
        return self.repository / "subject" / "1" / "model.onnx"

    def copy_into(self, folder: Path) -> Path:
        """Copy what a build needs, where it is not there yet, and return the recipe."""
        for name in ("m.onnx", "data.npz", "r.toml"):
            if not (folder / name).exists():
                shutil.copy(self.folder / name, folder / name)
        return folder / "r.toml"


def make(folder: Path, *, built: bool = True) -> Subject:
    """Write the recipe, the model and the data, and build them."""
    folder.mkdir(parents=True, exist_ok=True)
    subject = Subject(folder=folder)
    onnx.save(dense(), folder / "m.onnx")
    np.savez(folder / "data.npz", x=values(SAMPLES, FEATURES, seed=1), y=np.arange(SAMPLES) % CLASSES)
    text = RECIPE.replace('"m.onnx"', f'"{folder / "m.onnx"}"').replace('"data.npz"', f'"{folder / "data.npz"}"')
    subject.recipe.write_text(text if built else RECIPE, encoding="utf-8")
    if built:
        where = ["--work", str(subject.work), "--output", str(subject.repository)]
        code = cli.run(["build", str(subject.recipe), *where])
        assert code == 0, f"the subject itself does not build: exit {code}"
        subject.recipe.write_text(RECIPE, encoding="utf-8")
    return subject
