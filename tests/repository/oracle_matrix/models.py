"""What the models of the matrix are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MODEL_PY = '''
import json
import numpy as np
import triton_python_backend_utils as pb

class TritonPythonModel:
    """Answers zeros, in the shapes of the configuration."""

    @staticmethod
    def auto_complete_config(config):
        COMPLETE
        return config

    def initialize(self, args):
        self.config = json.loads(args["model_config"])

    def execute(self, requests):
        outputs = self.config["output"]
        return [pb.InferenceResponse([self.zeros(item, request) for item in outputs]) for request in requests]

    def zeros(self, output, request):
        batch = request.inputs()[0].shape()[:1] if self.config["max_batch_size"] else []
        shape = [abs(int(size)) for size in output.get("reshape", {"shape": output["dims"]})["shape"]]
        return pb.Tensor(output["name"], np.zeros([*batch, *shape], pb.triton_string_to_numpy(output["data_type"])))
'''
COMPLETE = (
    'config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [4]}); '
    'config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [4]})'
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model of the matrix.

    Attributes:
        text: Its config.pbtxt, None where it has none.
        files: Files in its folder beside the configuration.
        folders: Empty folders.
    """

    text: str | None
    files: dict[str, bytes] = field(default_factory=dict)
    folders: tuple[str, ...] = ()


def io(kind: str = "FP32", dims: str = "4", more_in: str = "", more_out: str = "") -> str:
    """Return one input x and one output y."""
    return (
        f'input [ {{ name: "x" data_type: TYPE_{kind} dims: [ {dims} ] {more_in} }} ]\n'
        f'output [ {{ name: "y" data_type: TYPE_{kind} dims: [ {dims} ] {more_out} }} ]\n'
    )


CPU = "instance_group [ { kind: KIND_CPU } ]\n"
HEAD = 'backend: "python"\nmax_batch_size: 4\n'
ONE = HEAD + io() + CPU


def python(text: str | None, *, complete: str = "pass", version: str = "1", **files: bytes) -> Case:
    """Return a model of the Python backend."""
    body = MODEL_PY.replace("COMPLETE", complete).encode()
    named = {name.replace("__", "/"): content for name, content in files.items()}
    return Case(text=text, files={f"{version}/model.py": body, **named})


def graph(
    inputs: dict[str, tuple[Sequence[Any], int]],
    outputs: dict[str, tuple[Sequence[Any], int]],
    nodes: Sequence[onnx.NodeProto] | None = None,
    *,
    constants: dict[str, Any] | None = None,
    opset: int = 17,
    ir: int = 8,
    domain: str = "",
) -> bytes:
    """Return an ONNX file; without nodes every output is the first input."""
    first = next(iter(inputs))
    made = nodes or [helper.make_node("Identity", [first], [name]) for name in outputs]
    values = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in side.items()]
        for side in (inputs, outputs)
    ]
    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(helper.make_graph(made, "g", *values, initial), opset_imports=opsets, ir_version=ir)
    content: bytes = model.SerializeToString()
    return content


FLOAT = TensorProto.FLOAT
SAME = graph({"x": (["N", 4], FLOAT)}, {"y": (["N", 4], FLOAT)})


def onnx_model(text: str | None, content: bytes = SAME, *, name: str = "1/model.onnx", **files: bytes) -> Case:
    """Return a model of the onnxruntime backend; ``text`` leaves the backend out."""
    head = None if text is None else 'backend: "onnxruntime"\n' + text
    return Case(text=head, files={name: content, **{key.replace("__", "/"): value for key, value in files.items()}})


def batched(kind: str = "FP32", dims: str = "4", **more: str) -> str:
    """Return the rest of a configuration of an ONNX model that batches."""
    return "max_batch_size: 4\n" + io(kind, dims, **more) + CPU


def ensemble(*steps: str, dims: str = "4", batch: int = 4, more: str = "") -> Case:
    """Return an ensemble from x to y."""
    body = ", ".join(f"{{ {step} }}" for step in steps)
    head = f'platform: "ensemble"\nmax_batch_size: {batch}\n' + io(dims=dims)
    return Case(text=f"{head}ensemble_scheduling {{ step [ {body} ] }}\n{more}", folders=("1",))


def step(
    model: str, into: str = "x", out: str = "y", *, key_in: str = "x", key_out: str = "y", version: int = -1
) -> str:
    """Return a step of an ensemble."""
    maps = f'input_map {{ key: "{key_in}" value: "{into}" }} output_map {{ key: "{key_out}" value: "{out}" }}'
    return f'model_name: "{model}" model_version: {version} {maps}'


def control(name: str, values: str, kind: str = "CONTROL_SEQUENCE_START") -> str:
    """Return a control input of a sequence batcher."""
    return f'{{ name: "{name}" control [ {{ kind: {kind} {values} }} ] }}'
