"""What of quantization works, and what it says, on a machine without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

GUARD = """
import sys
class Gate:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "modelopt", "pytorch_quantization"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gate())
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", GUARD + code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_library_s_back_end_needs_it_and_the_message_says_how_to_get_it() -> None:
    said = run(
        """
from repo_builder.core.errors import MissingDependency
from repo_builder.quantize.finders import BACKENDS, backend
for name in BACKENDS:
    try:
        backend(name)
    except MissingDependency as error:
        print(error)
"""
    )
    assert said.count("needs the library 'torch', which is not installed") == 1
    assert "pip install 'repo-builder[build]'" in said
    assert "pip install 'repo-builder[pytorch-quantization]'" in said
    assert "'onnxruntime'" not in said


def test_onnx_files_are_calibrated_placed_and_given_fp16_regions_without_it() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    said = run(
        """
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from repo_builder.core.recipe import LayerRule, QuantizeSpec
from repo_builder.export import precision, qdq
from repo_builder.quantize import plan
from repo_builder.quantize.calibrate import calibrate
from repo_builder.quantize.layers import find_layers
from repo_builder.quantize.placement import place, profile
from repo_builder.quantize.prepare import prepare
nodes = [helper.make_node("MatMul", [x, "w"], [y], name=name) for name, x, y in (("a", "x", "h"), ("b", "h", "y"))]
infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
spec = QuantizeSpec(layers=(LayerRule(name="a", precision="int8"), LayerRule(name="b", precision="fp16")))
ready = prepare(model)
plans = plan(list(find_layers(ready)), spec)
ranges, _, _ = calibrate(ready, plans, spec, {"x": np.ones((4, 3), np.float32)})
placed = place(ready, plans, ranges, profile("tensorrt")).model
print(qdq.lint(placed), qdq.layer_precisions(precision.to_fp16_regions(placed, frozenset({"b"}))))
"""
    )
    assert said == "() {'a': 'int8', 'b': 'fp16'}"
