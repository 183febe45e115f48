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
    done = subprocess.run([sys.executable, "-c", GUARD + code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torch_modules_need_it_and_the_message_says_how_to_get_it() -> None:
    said = run(
        """
from repo_builder import quantize
from repo_builder.core.errors import MissingDependency
from repo_builder.core.recipe import QuantizeSpec
for call in (lambda: quantize.fold(None),
             lambda: quantize.quantize(None, QuantizeSpec(), {}, input_names=(), seed=0)):
    try:
        call()
    except MissingDependency as error:
        print(error)
"""
    )
    assert said.count("needs the library 'torch', which is not installed") == 2
    assert said.count("pip install 'repo-builder[build]'") == 2


def test_onnx_files_are_quantized_checked_and_given_fp16_regions_without_it() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    said = run(
        """
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from repo_builder.export import precision, qdq
from repo_builder.quantize.onnx_graph import quantize_onnx
from repo_builder.core.recipe import LayerRule, QuantizeSpec
nodes = [helper.make_node("MatMul", [x, "w"], [y], name=name) for name, x, y in (("a", "x", "h"), ("b", "h", "y"))]
infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
rules = (LayerRule(name="a", precision="int8"), LayerRule(name="b", precision="fp16"))
made = quantize_onnx(model, QuantizeSpec(layers=rules), {"x": np.ones((4, 3), np.float32)})
print(qdq.lint(made.model), qdq.layer_precisions(precision.to_fp16_regions(made.model, made.fp16_layers)))
"""
    )
    assert said == "() {'a': 'int8', 'b': 'fp16'}"
