# ruff: noqa: E501 - a table of protobuf text, one model a line
"""Small models, right and broken, for every field of ModelConfig that Triton looks at.

``write`` puts them into a repository; what the real tritonserver says of each stands in ``oracle.json``, which
``make_oracle.py`` makes. A model's name says which field it is about and, after the dot, what is done to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
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


def _tensors() -> dict[str, Case]:
    shapes = {
        "dims.varies": io(dims="-1"),
        "dims.zero": io(dims="0"),
        "dims.minus_two": io(dims="-2"),
        "dims.none": io(dims=""),
        "dims.several": io(dims="2, -1, 3"),
        "reshape.same": io(more_in="reshape { shape: [ 2, 2 ] }"),
        "reshape.other": io(more_in="reshape { shape: [ 5 ] }"),
        "reshape.zero": io(more_in="reshape { shape: [ 0 ] }"),
        "reshape.to_nothing": io(dims="1", more_in="reshape { shape: [ ] }", more_out="reshape { shape: [ ] }"),
        "reshape.four_to_nothing": io(more_in="reshape { shape: [ ] }"),
        "reshape.around_varying": io(dims="2, 4, -1, 6", more_in="reshape { shape: [ 8, -1, 1, 6 ] }"),
        "reshape.two_varying": io(dims="-1, 4", more_in="reshape { shape: [ -1, -1 ] }"),
        "reshape.moved": io(dims="2, -1, 6", more_in="reshape { shape: [ 3, -1, 4 ] }"),
        "reshape.output": io(more_out="reshape { shape: [ 3 ] }"),
        "format.nchw": io(dims="3, 2, 2", more_in="format: FORMAT_NCHW"),
        "format.nchw_of_one": io(more_in="format: FORMAT_NCHW"),
        "format.nhwc_of_four": io(dims="1, 3, 2, 2", more_in="format: FORMAT_NHWC"),
        "shape_tensor.input": io(more_in="is_shape_tensor: true"),
        "shape_tensor.output": io(more_out="is_shape_tensor: true"),
        "non_linear.input": io(dims="3, 2, 2", more_in="is_non_linear_format_io: true"),
        "non_linear.output": io(dims="3, 2, 2", more_out="is_non_linear_format_io: true"),
        "ragged.input": io(dims="-1", more_in="allow_ragged_batch: true"),
        "optional.input": io(more_in="optional: true"),
        "data_type.string": io("STRING"),
        "data_type.bf16": io("BF16"),
        "data_type.none": io().replace("data_type: TYPE_FP32", "", 1),
        "data_type.invalid": io().replace("TYPE_FP32", "TYPE_INVALID", 1),
        "data_type.unknown": io().replace("TYPE_FP32", "TYPE_FP8", 1),
        "data_type.none_of_output": 'input [ { name: "x" data_type: TYPE_FP32 dims: 4 } ] output [ { name: "y" dims: 4 } ]',
        "tensor_name.none": io().replace('name: "x"', "", 1),
        "tensor_name.twice": io() + 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]\n',
        "tensor_name.output_twice": io() + 'output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]\n',
        "tensor_name.of_both_sides": io().replace('"y"', '"x"'),
        "tensors.no_input": io().split("\n")[1] + "\n",
        "tensors.no_output": io().split("\n")[0] + "\n",
        "tensors.none": "",
    }
    cases = {name: python(HEAD + text + CPU) for name, text in shapes.items()}
    flat = 'backend: "python"\nmax_batch_size: 0\n'
    cases["reshape.to_nothing_without_batch"] = python(flat + io(dims="1", more_in="reshape { shape: [ ] }") + CPU)
    cases["optional.without_batch"] = python(flat + io(more_in="optional: true") + CPU)
    partial = 'input [ { name: "x" data_type: TYPE_FP32 } ]\noutput [ { name: "y" dims: [ 4 ] } ]\n'
    cases["completed.partial"] = python(HEAD + partial + CPU, complete=COMPLETE)
    cases["completed.none_written"] = python(HEAD + CPU, complete=COMPLETE)
    cases["completed.no_config"] = python(None, complete=COMPLETE)
    cases["completed.not"] = python(HEAD + partial + CPU)
    return cases


def _labels() -> dict[str, Case]:
    text = HEAD + io(more_out='label_filename: "names.txt"') + CPU
    lines = {
        "right": b"a\nb\nc\nd\n",
        "more": b"a\nb\nc\nd\ne\nf\n",
        "fewer": b"a\nb\n",
        "no_newline": b"a\nb\nc\nd",
        "blank_last": b"a\nb\nc\nd\n\n",
        "blank_inside": b"a\n\nc\nd\n",
        "empty": b"",
        "latin": "ä\nb\nc\nd\n".encode("latin-1"),
        "returns": b"a\r\nb\r\nc\r\nd\r\n",
    }
    cases = {f"labels.{name}": python(text, **{"names.txt": content}) for name, content in lines.items()}
    cases["labels.missing"] = python(text)
    cases["labels.folder"] = Case(text=text, files=python(text).files, folders=("names.txt",))
    cases["labels.below"] = python(text.replace("names.txt", "1/names.txt"), **{"1__names.txt": b"a\nb\nc\nd\n"})
    return cases


def _batching() -> dict[str, Case]:
    dynamic = {
        "plain": "",
        "preferred": "preferred_batch_size: [ 2, 4 ]",
        "preferred_above": "preferred_batch_size: [ 8 ]",
        "preferred_zero": "preferred_batch_size: [ 0 ]",
        "preferred_negative": "preferred_batch_size: [ -1 ]",
        "delay": "max_queue_delay_microseconds: 100",
        "delay_negative": "max_queue_delay_microseconds: -1",
        "ordered": "preserve_ordering: true",
        "ordered_one_level": "preserve_ordering: true priority_levels: 1 default_priority_level: 1",
        "ordered_two_levels": "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
        "ordered_delay": "preserve_ordering: true default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 9 }",
        "ordered_reject": "preserve_ordering: true default_queue_policy { default_timeout_microseconds: 9 }",
        "ordered_delay_of_level": "preserve_ordering: true priority_levels: 1 default_priority_level: 1 "
        "priority_queue_policy { key: 1 value: { timeout_action: DELAY default_timeout_microseconds: 9 } }",
        "levels": "priority_levels: 3 default_priority_level: 3",
        "levels_default_above": "priority_levels: 3 default_priority_level: 5",
        "levels_no_default": "priority_levels: 3",
        "default_without_levels": "default_priority_level: 2",
        "policy": "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 2 value: { max_queue_size: 1 } }",
        "policy_of_none": "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 7 value: { max_queue_size: 1 } }",
        "policy_of_zero": "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 0 value: { max_queue_size: 1 } }",
        "policy_without_levels": "priority_queue_policy { key: 7 value: { max_queue_size: 1 } }",
        "queue_size": "default_queue_policy { max_queue_size: 4 allow_timeout_override: true }",
    }
    cases = {
        f"dynamic_batching.{name}": python(ONE + f"dynamic_batching {{ {text} }}") for name, text in dynamic.items()
    }
    flat = ONE.replace("max_batch_size: 4", "max_batch_size: 0")
    cases["dynamic_batching.without_batch"] = python(flat + "dynamic_batching { }")
    cases["dynamic_batching.preferred_without_batch"] = python(flat + "dynamic_batching { preferred_batch_size: 1 }")
    for size in (-1, 0, 1, 2147483647, 2147483648):
        cases[f"max_batch_size.{size}"] = python(ONE.replace("max_batch_size: 4", f"max_batch_size: {size}"))
    source = 'kind: BATCH_ELEMENT_COUNT target_name: "i" data_type: TYPE_FP32'
    into = {
        "right": f'{{ {source} source_input: "x" }}',
        "unknown_source": f'{{ {source} source_input: "none" }}',
        "no_source": f"{{ {source} }}",
        "two_sources": f'{{ {source} source_input: [ "x", "x" ] }}',
        "type": f'{{ {source.replace("FP32", "INT64")} source_input: "x" }}',
        "item_shape": '{ kind: BATCH_ITEM_SHAPE target_name: "i" data_type: TYPE_INT32 source_input: "x" }',
        "no_target": '{ kind: BATCH_ELEMENT_COUNT data_type: TYPE_FP32 source_input: "x" }',
    }
    cases |= {f"batch_input.{name}": python(ONE + f"batch_input [ {text} ]") for name, text in into.items()}
    scatter = "kind: BATCH_SCATTER_WITH_INPUT_SHAPE"
    out = {
        "right": f'{{ {scatter} target_name: "y" source_input: "x" }}',
        "unknown_target": f'{{ {scatter} target_name: "none" source_input: "x" }}',
        "unknown_source": f'{{ {scatter} target_name: "y" source_input: "none" }}',
        "no_source": f'{{ {scatter} target_name: "y" }}',
        "twice": f'{{ {scatter} target_name: [ "y", "y" ] source_input: "x" }}',
    }
    cases |= {f"batch_output.{name}": python(ONE + f"batch_output [ {text} ]") for name, text in out.items()}
    return cases


def _control(name: str, values: str, kind: str = "CONTROL_SEQUENCE_START") -> str:
    return f'{{ name: "{name}" control [ {{ kind: {kind} {values} }} ] }}'


def _sequences() -> dict[str, Case]:
    good = "fp32_false_true: [ 0, 1 ]"
    corrid = "CONTROL_SEQUENCE_CORRID"
    state = 'input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: [ 1 ]'
    initial = 'name: "a" data_type: TYPE_FP32 dims: [ 1 ]'
    kinds = {
        "plain": "",
        "control.right": f"control_input [ {_control('A', good)} ]",
        "control.twice": f"control_input [ {_control('A', good)}, {_control('B', good)} ]",
        "control.one_tensor_twice": f"control_input [ {_control('A', good)}, {_control('A', good, 'CONTROL_SEQUENCE_END')} ]",
        "control.no_value": f"control_input [ {_control('A', '')} ]",
        "control.one_value": f"control_input [ {_control('A', 'fp32_false_true: [ 1 ]')} ]",
        "control.three_values": f"control_input [ {_control('A', 'int32_false_true: [ 0, 1, 2 ]')} ]",
        "control.two_types": f"control_input [ {_control('A', good + ' int32_false_true: [ 0, 1 ]')} ]",
        "control.bool": f"control_input [ {_control('A', 'bool_false_true: [ false, true ]', 'CONTROL_SEQUENCE_READY')} ]",
        "control.no_name": f"control_input [ {_control('', good)} ]",
        "control.corrid": f"control_input [ {_control('C', 'data_type: TYPE_UINT64', corrid)} ]",
        "control.corrid_text": f"control_input [ {_control('C', 'data_type: TYPE_STRING', corrid)} ]",
        "control.corrid_no_type": f"control_input [ {_control('C', '', corrid)} ]",
        "control.corrid_float": f"control_input [ {_control('C', 'data_type: TYPE_FP32', corrid)} ]",
        "control.corrid_value": f"control_input [ {_control('C', 'data_type: TYPE_UINT64 ' + good, corrid)} ]",
        "control.named_as_input": f"control_input [ {_control('x', good)} ]",
        "oldest.right": "oldest { max_candidate_sequences: 4 preferred_batch_size: [ 2 ] }",
        "oldest.above": "oldest { max_candidate_sequences: 4 preferred_batch_size: [ 8 ] }",
        "oldest.zero": "oldest { max_candidate_sequences: 4 preferred_batch_size: [ 0 ] }",
        "oldest.no_candidates": "oldest { }",
        "direct.right": "direct { minimum_slot_utilization: 0.5 }",
        "direct.above": "direct { minimum_slot_utilization: 1.5 }",
        "direct.negative": "direct { minimum_slot_utilization: -0.5 }",
        "iterative": "iterative_sequence: true",
        "state.right": f"state [ {{ {state} }} ]",
        "state.no_dims": 'state [ { input_name: "s" output_name: "t" data_type: TYPE_FP32 } ]',
        "state.varies": 'state [ { input_name: "s" output_name: "t" data_type: TYPE_FP32 dims: [ -1 ] } ]',
        "state.no_type": 'state [ { input_name: "s" output_name: "t" dims: [ 1 ] } ]',
        "state.zero": f"state [ {{ {state} initial_state [ {{ {initial} zero_data: true }} ] }} ]",
        "state.file": f'state [ {{ {state} initial_state [ {{ {initial} data_file: "four" }} ] }} ]',
        "state.file_missing": f'state [ {{ {state} initial_state [ {{ {initial} data_file: "none" }} ] }} ]',
        "state.file_short": f'state [ {{ {state} initial_state [ {{ {initial} data_file: "two" }} ] }} ]',
        "state.file_long": f'state [ {{ {state} initial_state [ {{ {initial} data_file: "eight" }} ] }} ]',
        "state.no_data": f"state [ {{ {state} initial_state [ {{ {initial} }} ] }} ]",
        "state.initial_no_name": f"state [ {{ {state} initial_state [ {{ data_type: TYPE_FP32 dims: [ 1 ] zero_data: true }} ] }} ]",
        "state.initial_type": f'state [ {{ {state} initial_state [ {{ name: "a" data_type: TYPE_INT32 dims: [ 1 ] zero_data: true }} ] }} ]',
        "state.initial_dims": f'state [ {{ {state} initial_state [ {{ name: "a" data_type: TYPE_FP32 dims: [ 2 ] zero_data: true }} ] }} ]',
        "state.initial_varies": f'state [ {{ {state} initial_state [ {{ name: "a" data_type: TYPE_FP32 dims: [ -1 ] zero_data: true }} ] }} ]',
        "state.twice": f"state [ {{ {state} }}, {{ {state} }} ]",
        "state.two_initials": f"state [ {{ {state} initial_state [ {{ {initial} zero_data: true }}, {{ {initial} zero_data: true }} ] }} ]",
        "idle": "max_sequence_idle_microseconds: 100",
    }
    files = {"four": b"\0" * 4, "two": b"\0" * 2, "eight": b"\0" * 8}
    placed = {f"initial_state__{name}": content for name, content in files.items()}
    cases = {
        f"sequence.{name}": python(ONE + f"sequence_batching {{ {text} }}", **(placed if "state" in name else {}))
        for name, text in kinds.items()
    }
    flat = ONE.replace("max_batch_size: 4", "max_batch_size: 0")
    cases["sequence.without_batch"] = python(flat + "sequence_batching { }")
    cases["sequence.cached"] = python(ONE + "sequence_batching { } response_cache { enable: true }")
    cases["sequence.and_dynamic"] = python(ONE + "sequence_batching { } dynamic_batching { }")
    return cases


def _warmup() -> dict[str, Case]:
    def sample(body: str, *, batch: int = 1, count: int = 0, name: str = "w") -> str:
        return f'model_warmup [ {{ name: "{name}" batch_size: {batch} count: {count} {body} }} ]'

    def given(values: str, key: str = "x") -> str:
        return f'inputs {{ key: "{key}" value: {{ {values} }} }}'

    four = "data_type: TYPE_FP32 dims: [ 4 ]"
    text = "data_type: TYPE_STRING dims: [ 2 ]"
    raw = {"raw": b"\0" * 16, "short": b"\0" * 8, "long": b"\0" * 32, "four": b"\0" * 64}
    strings = {
        "framed": b"\x02\0\0\0ab\x01\0\0\0c",
        "unframed": b"abc",
        "cut": b"\x02\0\0\0ab\x09\0\0\0c",
        "one": b"\x02\0\0\0ab",
        "three": b"\x01\0\0\0a" * 3,
    }
    bodies = {
        "zero": sample(given(f"{four} zero_data: true")),
        "random": sample(given(f"{four} random_data: true")),
        "file": sample(given(f'{four} input_data_file: "raw"')),
        "file_missing": sample(given(f'{four} input_data_file: "none"')),
        "file_short": sample(given(f'{four} input_data_file: "short"')),
        "file_long": sample(given(f'{four} input_data_file: "long"')),
        "file_of_batch": sample(given(f'{four} input_data_file: "raw"'), batch=4),
        "file_of_whole_batch": sample(given(f'{four} input_data_file: "four"'), batch=4),
        "file_outside": sample(given(f'{four} input_data_file: "../1/model.py"')),
        "no_data": sample(given(four)),
        "other_name": sample(given(f"{four} zero_data: true", key="z")),
        "nothing": sample(""),
        "type": sample(given("data_type: TYPE_INT32 dims: [ 4 ] zero_data: true")),
        "no_type": sample(given("dims: [ 4 ] zero_data: true")),
        "dims": sample(given("data_type: TYPE_FP32 dims: [ 5 ] zero_data: true")),
        "rank": sample(given("data_type: TYPE_FP32 dims: [ 2, 2 ] zero_data: true")),
        "no_dims": sample(given("data_type: TYPE_FP32 zero_data: true")),
        "varies": sample(given("data_type: TYPE_FP32 dims: [ -1 ] zero_data: true")),
        "batch_zero": sample(given(f"{four} zero_data: true"), batch=0),
        "batch_above": sample(given(f"{four} zero_data: true"), batch=8),
        "count": sample(given(f"{four} zero_data: true"), count=3),
        "no_name": sample(given(f"{four} zero_data: true"), name=""),
        "twice": sample(given(f"{four} zero_data: true")) + "\n" + sample(given(f"{four} zero_data: true")),
    }
    files = {f"warmup__{name}": content for name, content in raw.items()}
    cases = {f"warmup.{name}": python(ONE + body, **files) for name, body in bodies.items()}
    head = HEAD + io("STRING", "2") + CPU
    files = {f"warmup__{name}": content for name, content in strings.items()}
    for name in strings:
        cases[f"warmup.text_{name}"] = python(head + sample(given(f'{text} input_data_file: "{name}"')), **files)
    cases["warmup.text_zero"] = python(head + sample(given(f"{text} zero_data: true")))
    cases["warmup.text_random"] = python(head + sample(given(f"{text} random_data: true")))
    two = HEAD + io() + 'input [ { name: "z" data_type: TYPE_FP32 dims: [ 4 ] OPTIONAL } ]\n' + CPU
    body = sample(given(f"{four} zero_data: true"))
    cases["warmup.one_of_two"] = python(two.replace("OPTIONAL", "") + body)
    cases["warmup.optional_left_out"] = python(two.replace("OPTIONAL", "optional: true") + body)
    ragged = HEAD + io(dims="-1") + CPU
    cases["warmup.of_varying"] = python(ragged + sample(given("data_type: TYPE_FP32 dims: [ 1 ] zero_data: true")))
    shaped = HEAD + io(more_in="reshape { shape: [ 2, 2 ] }") + CPU
    cases["warmup.of_reshaped"] = python(shaped + sample(given("data_type: TYPE_FP32 dims: [ 4 ] zero_data: true")))
    flat = ONE.replace("max_batch_size: 4", "max_batch_size: 0")
    cases["warmup.without_batch"] = python(flat + body)
    cases["warmup.without_batch_two"] = python(flat + sample(given(f"{four} zero_data: true"), batch=2))
    return cases


def _instances() -> dict[str, Case]:
    groups = {
        "count": "kind: KIND_CPU count: 2",
        "count_zero": "kind: KIND_CPU count: 0",
        "count_negative": "kind: KIND_CPU count: -2",
        "cpu_with_gpus": "kind: KIND_CPU gpus: [ 0 ]",
        "gpu": "kind: KIND_GPU",
        "gpu_named": "kind: KIND_GPU gpus: [ 0 ]",
        "model": "kind: KIND_MODEL",
        "model_with_gpus": "kind: KIND_MODEL gpus: [ 0 ]",
        "auto": "count: 1",
        "profile": 'kind: KIND_CPU profile: [ "0" ]',
        "passive": "kind: KIND_CPU passive: true",
        "host_policy": 'kind: KIND_CPU host_policy: "p"',
        "secondary": "kind: KIND_CPU secondary_devices [ { kind: KIND_NVDLA device_id: 0 } ]",
        "rate": 'kind: KIND_CPU rate_limiter { resources [ { name: "R" count: 1 } ] priority: 1 }',
        "name": 'name: "g" kind: KIND_CPU',
    }
    head = HEAD + io()
    cases = {
        f"instance_group.{name}": python(f"{head}instance_group [ {{ {text} }} ]") for name, text in groups.items()
    }
    cases["instance_group.none"] = python(head)
    cases["instance_group.two_of_a_name"] = python(
        head + 'instance_group [ { name: "g" kind: KIND_CPU }, { name: "g" kind: KIND_CPU } ]'
    )
    return cases


def _rest() -> dict[str, Case]:
    more = {
        "runtime.right": 'runtime: "libtriton_python.so"',
        "runtime.model_py": 'runtime: "model.py"',
        "runtime.outside": 'runtime: "../other.so"',
        "runtime.absolute": 'runtime: "/tmp/other.so"',
        "runtime.none": 'runtime: "libnone.so"',
        "version_policy.latest": "version_policy { latest { num_versions: 1 } }",
        "version_policy.latest_zero": "version_policy { latest { num_versions: 0 } }",
        "version_policy.all": "version_policy { all { } }",
        "version_policy.specific": "version_policy { specific { versions: [ 1 ] } }",
        "version_policy.gone": "version_policy { specific { versions: [ 7 ] } }",
        "version_policy.one_gone": "version_policy { specific { versions: [ 1, 7 ] } }",
        "version_policy.none_named": "version_policy { specific { } }",
        "version_policy.empty": "version_policy { }",
        "decoupled.right": "model_transaction_policy { decoupled: true }",
        "decoupled.cached": "model_transaction_policy { decoupled: true } response_cache { enable: true }",
        "cache.on": "response_cache { enable: true }",
        "cache.off": "response_cache { enable: false }",
        "optimization.priority": "optimization { priority: PRIORITY_MAX }",
        "optimization.pinned": "optimization { input_pinned_memory { enable: false } }",
        "optimization.eager": "optimization { eager_batching: true gather_kernel_buffer_threshold: 1 }",
        "optimization.graphs": "optimization { cuda { graphs: true } }",
        "parameters.some": 'parameters { key: "k" value: { string_value: "v" } }',
        "parameters.environment": 'parameters { key: "EXECUTION_ENV_PATH" value: { string_value: "/none.tar.gz" } }',
        "metric_tags.some": 'metric_tags { key: "a" value: "b" }',
        "operations.library": 'model_operations { op_library_filename: "none.so" }',
        "agents.unknown": 'model_repository_agents { agents [ { name: "none" } ] }',
        "default_model_filename.gone": 'default_model_filename: "other.py"',
        "cc_model_filenames.gone": 'cc_model_filenames { key: "9.0" value: "none.py" }',
        "model_metrics.right": 'model_metrics { metric_control [ { metric_identifier { family: "nv_x" } histogram_options { buckets: [ 1 ] } } ] }',
        "field.misspelt": "max_batchsize: 3",
        "field.twice": "max_batch_size: 2",
        "field.unknown_enum": "optimization { priority: PRIORITY_LOW }",
        "field.bracket": "input [",
        "platform.python": 'platform: "python"',
        "platform.other": 'platform: "tensorrt_plan"',
        "platform.unknown": 'platform: "made_up"',
        "ensemble_scheduling.beside_backend": f"ensemble_scheduling {{ step [ {{ {step('sound')} }} ] }}",
    }
    cases = {name: python(ONE + text) for name, text in more.items()}
    cases["name.same"] = python('name: "name.same"\n' + ONE)
    cases["name.other"] = python('name: "another"\n' + ONE)
    cases["default_model_filename.there"] = Case(
        text=ONE + 'default_model_filename: "other.py"',
        files={"1/other.py": MODEL_PY.replace("COMPLETE", "pass").encode()},
    )
    cases["backend.none"] = python(ONE.replace('backend: "python"\n', ""))
    cases["backend.unknown"] = python(ONE.replace('"python"', '"made_up"'))
    cases["backend.empty_config"] = python("")
    cases["config.byte_order_mark"] = python("\ufeff" + ONE)
    cases["config.comment"] = python("# nothing\n" + ONE)
    cases["version.none"] = Case(text=ONE)
    cases["version.leading_zero"] = python(ONE, version="01")
    cases["version.word"] = python(ONE, version="first")
    cases["version.two"] = Case(text=ONE, files={**python(ONE).files, **python(ONE, version="3").files})
    cases["version.empty"] = Case(text=ONE, folders=("1",))
    cases["version.older_is_empty"] = Case(text=ONE, files=python(ONE, version="2").files, folders=("1",))
    cases["model_py.no_class"] = Case(text=ONE, files={"1/model.py": b"x = 1\n"})
    cases["model_py.syntax"] = Case(text=ONE, files={"1/model.py": b"class TritonPythonModel(:\n"})
    cases["model_py.no_execute"] = Case(text=ONE, files={"1/model.py": b"class TritonPythonModel:\n    pass\n"})
    cases["model_py.import"] = Case(
        text=ONE, files={"1/model.py": b"import none_such\nclass TritonPythonModel:\n    def execute(self, r): ...\n"}
    )
    cases["stray.file"] = python(ONE, **{"notes.txt": b"hello"})
    cases["stray.folder"] = Case(text=ONE, files=python(ONE).files, folders=("old",))
    return cases


def _ensembles() -> dict[str, Case]:
    return {
        "ensemble.right": ensemble(step("sound")),
        "ensemble.two_steps": ensemble(step("sound", out="m"), step("sound", into="m")),
        "ensemble.two_steps_turned": ensemble(step("sound", into="m"), step("sound", out="m")),
        "ensemble.no_step": Case(
            text='platform: "ensemble"\nmax_batch_size: 4\n' + io() + "ensemble_scheduling { }", folders=("1",)
        ),
        "ensemble.no_scheduling": Case(text='platform: "ensemble"\nmax_batch_size: 4\n' + io(), folders=("1",)),
        "ensemble.no_platform": Case(
            text="max_batch_size: 4\n" + io() + f"ensemble_scheduling {{ step [ {{ {step('sound')} }} ] }}",
            folders=("1",),
        ),
        "ensemble.no_version_folder": Case(text=ensemble(step("sound")).text),
        "ensemble.unknown_model": ensemble(step("nobody")),
        "ensemble.no_model_name": ensemble(step("")),
        "ensemble.broken_model": ensemble(step("broken")),
        "ensemble.itself": ensemble(step("ensemble.itself")),
        "ensemble.there": ensemble(step("ensemble.back")),
        "ensemble.back": ensemble(step("ensemble.there")),
        "ensemble.round_a": ensemble(step("ensemble.round_b")),
        "ensemble.round_b": ensemble(step("ensemble.round_c")),
        "ensemble.round_c": ensemble(step("ensemble.round_a")),
        "ensemble.of_ensemble": ensemble(step("ensemble.right")),
        "ensemble.of_broken_ensemble": ensemble(step("ensemble.unknown_model")),
        "ensemble.cycle": ensemble(step("sound", into="y", out="m"), step("sound", into="m")),
        "ensemble.unknown_key_in": ensemble(step("sound", key_in="z")),
        "ensemble.unknown_key_out": ensemble(step("sound", key_out="z")),
        "ensemble.no_input_map": ensemble('model_name: "sound" model_version: -1 output_map { key: "y" value: "y" }'),
        "ensemble.no_output_map": ensemble('model_name: "sound" model_version: -1 input_map { key: "x" value: "x" }'),
        "ensemble.unmade": ensemble(step("sound", into="nothing")),
        "ensemble.output_unmade": ensemble(step("sound", out="other")),
        "ensemble.made_twice": ensemble(step("sound"), step("sound")),
        "ensemble.unused": ensemble(step("sound"), step("sound", out="spare")),
        "ensemble.other_dims": ensemble(step("sound"), dims="5"),
        "ensemble.varying_dims": ensemble(step("sound"), dims="-1"),
        "ensemble.other_type": ensemble(step("whole")),
        "ensemble.batch_above": ensemble(step("sound"), batch=8),
        "ensemble.batch_below": ensemble(step("sound"), batch=2),
        "ensemble.no_batch": ensemble(step("sound"), batch=0),
        "ensemble.no_batch_whole": ensemble(step("sound"), batch=0, dims="-1, 4"),
        "ensemble.batch_of_unbatched": ensemble(step("flat")),
        "ensemble.unbatched": ensemble(step("flat"), batch=0),
        "ensemble.version": ensemble(step("sound", version=1)),
        "ensemble.version_gone": ensemble(step("sound", version=9)),
        "ensemble.version_zero": ensemble(step("sound", version=0)),
        "ensemble.instance_group": ensemble(step("sound"), more=CPU),
        "ensemble.dynamic_batching": ensemble(step("sound"), more="dynamic_batching { }"),
        "ensemble.warmup": ensemble(
            step("sound"),
            more='model_warmup [ { name: "w" batch_size: 1 inputs { key: "x" value: { data_type: TYPE_FP32 dims: 4 zero_data: true } } } ]',
        ),
        "ensemble.optimization": ensemble(step("sound"), more="optimization { priority: PRIORITY_MAX }"),
        "ensemble.cache": ensemble(step("sound"), more="response_cache { enable: true }"),
        "ensemble.backend": ensemble(step("sound"), more='backend: "python"'),
        "ensemble.decoupled": ensemble(step("many")),
        "ensemble.sequence": ensemble(step("sequential")),
        "ensemble.optional_left_out": ensemble(step("choosy")),
    }


# What ensembles are made of.
PARTS: dict[str, Case] = {
    "sound": python(ONE),
    "broken": python(ONE + "max_batchsize: 3"),
    "whole": python(HEAD + io("INT32") + CPU),
    "flat": python(ONE.replace("max_batch_size: 4", "max_batch_size: 0")),
    "many": python(ONE + "model_transaction_policy { decoupled: true }"),
    "sequential": python(ONE + "sequence_batching { }"),
    "choosy": python(ONE + 'input [ { name: "z" data_type: TYPE_FP32 dims: [ 4 ] optional: true } ]'),
}


def _onnx() -> dict[str, Case]:
    node = helper.make_node
    two = graph({"x": (["N", 4], FLOAT), "z": (["N", 4], FLOAT)}, {"y": (["N", 4], FLOAT), "w": (["N", 4], FLOAT)})
    three = graph({"x": (["N", 3, 8], FLOAT)}, {"y": (["N", 3, 8], FLOAT)})
    named = graph({"x": (["N", "A"], FLOAT)}, {"y": (["N", "B"], FLOAT)})
    hidden = graph({"x": (["N", 4], FLOAT)}, {"y": (["N", "B"], FLOAT)})
    fixed = graph({"x": ([2, 4], FLOAT)}, {"y": ([2, 4], FLOAT)})
    single = graph({"x": (["N"], FLOAT)}, {"y": (["N"], FLOAT)})
    scalar = graph({"x": ([], FLOAT)}, {"y": ([], FLOAT)})
    empty = graph(
        {"x": ([3], FLOAT), "z": ([0], FLOAT)}, {"y": ([3], FLOAT)}, [node("Concat", ["x", "z"], ["y"], axis=0)]
    )
    flat = "max_batch_size: 0\n"
    threads = 'parameters {{ key: "{}" value: {{ string_value: "{}" }} }}\n'
    count = "intra_op_thread_count"
    one_y = 'output [ { name: "y" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
    x_of = 'input [ {{ name: "x" data_type: TYPE_FP32 dims: [ {} ] }} ]\n'
    y_of = 'output [ {{ name: "y" data_type: TYPE_FP32 dims: [ {} ] }} ]\n'
    unknown = node("NoSuchOperator", ["x"], ["y"])
    foreign = node("Swish2", ["x"], ["y"], domain="my.ops")
    plain = {"x": (["N", 4], FLOAT)}, {"y": (["N", 4], FLOAT)}
    return {
        "onnx.right": onnx_model(batched()),
        "onnx.no_config": onnx_model(None),
        "onnx.nothing_named": onnx_model(CPU),
        "onnx.empty_config": Case(text="", files={"1/model.onnx": SAME}),
        "onnx.platform": Case(text='platform: "onnxruntime_onnx"\n' + batched(), files={"1/model.onnx": SAME}),
        "onnx.other_platform": onnx_model('platform: "tensorrt_plan"\n' + batched()),
        "onnx.other_file": onnx_model(batched() + 'default_model_filename: "net.onnx"', name="1/net.onnx"),
        "onnx.file_gone": onnx_model(batched(), name="1/net.onnx"),
        "onnx.file_empty": onnx_model(batched(), b""),
        "onnx.file_cut": onnx_model(batched(), SAME[:40]),
        "onnx.file_text": onnx_model(batched(), b"hello"),
        "onnx.input_unknown": onnx_model(batched().replace('"x"', '"q"')),
        "onnx.output_unknown": onnx_model(batched().replace('"y"', '"q"')),
        "onnx.input_left_out": onnx_model(batched(), two),
        "onnx.output_left_out": onnx_model(batched() + 'input [ { name: "z" data_type: TYPE_FP32 dims: 4 } ]', two),
        "onnx.type": onnx_model(batched("INT32")),
        "onnx.dims_other": onnx_model(batched(dims="5")),
        "onnx.dims_rank": onnx_model(batched(dims="4, 1")),
        "onnx.dims_with_batch": onnx_model(batched(dims="-1, 4")),
        "onnx.input_varies_where_fixed": onnx_model(
            "max_batch_size: 4\n" + x_of.format("3, -1") + y_of.format("3, 8") + CPU, three
        ),
        "onnx.output_varies_where_fixed": onnx_model(
            "max_batch_size: 4\n" + x_of.format("3, 8") + y_of.format("3, -1") + CPU, three
        ),
        "onnx.input_fixed_where_it_varies": onnx_model("max_batch_size: 4\n" + x_of.format("4") + one_y + CPU, named),
        "onnx.output_fixed_where_it_varies": onnx_model(
            "max_batch_size: 4\n" + x_of.format("-1") + y_of.format("4") + CPU, named
        ),
        "onnx.all_vary": onnx_model(batched(dims="-1"), named),
        "onnx.inferred": onnx_model(batched(), hidden),
        "onnx.inferred_left_varying": onnx_model("max_batch_size: 4\n" + x_of.format("4") + one_y + CPU, hidden),
        "onnx.batch_of_fixed": onnx_model(batched(), fixed),
        "onnx.fixed": onnx_model(flat + io(dims="2, 4") + CPU, fixed),
        "onnx.varying_whole": onnx_model(flat + io(dims="-1, 4") + CPU),
        "onnx.one_number": onnx_model(
            batched(dims="1", more_in="reshape { shape: [ ] }", more_out="reshape { shape: [ ] }"), single
        ),
        "onnx.one_number_unshaped": onnx_model(batched(dims="1"), single),
        "onnx.scalar": onnx_model(flat + io(dims="1") + CPU, scalar),
        "onnx.scalar_of_two": onnx_model(flat + io(dims="2") + CPU, scalar),
        "onnx.scalar_batched": onnx_model(batched(dims="1"), scalar),
        "onnx.size_of_zero": onnx_model(
            flat
            + x_of.format("3")
            + 'input [ { name: "z" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
            + y_of.format("3")
            + CPU,
            empty,
        ),
        "onnx.reshape": onnx_model(
            batched(dims="2, 2", more_in="reshape { shape: 4 }", more_out="reshape { shape: 4 }")
        ),
        "onnx.reshape_other": onnx_model(batched(more_in="reshape { shape: [ 2, 2 ] }")),
        "onnx.optional": onnx_model(batched(more_in="optional: true")),
        "onnx.optional_without_batch": onnx_model(flat + io(dims="-1, 4", more_in="optional: true") + CPU),
        "onnx.ragged": onnx_model(batched(dims="-1", more_in="allow_ragged_batch: true"), named),
        "onnx.bf16": onnx_model(
            batched("BF16"), graph({"x": (["N", 4], TensorProto.BFLOAT16)}, {"y": (["N", 4], TensorProto.BFLOAT16)})
        ),
        "onnx.text": onnx_model(
            batched("STRING"), graph({"x": (["N", 4], TensorProto.STRING)}, {"y": (["N", 4], TensorProto.STRING)})
        ),
        "onnx.threads": onnx_model(batched() + threads.format(count, "2")),
        "onnx.threads_negative": onnx_model(batched() + threads.format(count, "-3")),
        "onnx.threads_word": onnx_model(batched() + threads.format(count, "many")),
        "onnx.threads_empty": onnx_model(batched() + threads.format(count, "")),
        "onnx.threads_between": onnx_model(batched() + threads.format("inter_op_thread_count", "x")),
        "onnx.execution_mode": onnx_model(batched() + threads.format("execution_mode", "1")),
        "onnx.execution_mode_two": onnx_model(batched() + threads.format("execution_mode", "2")),
        "onnx.arena_word": onnx_model(batched() + threads.format("enable_mem_arena", "perhaps")),
        "onnx.arena_true": onnx_model(batched() + threads.format("enable_mem_arena", "true")),
        "onnx.unknown_parameter": onnx_model(batched() + threads.format("made_up", "7")),
        "onnx.graph_level": onnx_model(batched() + "optimization { graph { level: 1 } }"),
        "onnx.cpu_accelerator": onnx_model(
            batched() + 'optimization { execution_accelerators { cpu_execution_accelerator [ { name: "openvino" } ] } }'
        ),
        "onnx.unknown_accelerator": onnx_model(
            batched() + 'optimization { execution_accelerators { cpu_execution_accelerator [ { name: "made_up" } ] } }'
        ),
        "onnx.gpu_accelerator_on_cpu": onnx_model(
            batched() + 'optimization { execution_accelerators { gpu_execution_accelerator [ { name: "cuda" } ] } }'
        ),
        "onnx.operator": onnx_model(batched(), graph(*plain, [unknown])),
        "onnx.domain": onnx_model(batched(), graph(*plain, [foreign], domain="my.ops")),
        "onnx.opset": onnx_model(batched(), graph(*plain, opset=90)),
        "onnx.ir_version": onnx_model(batched(), graph(*plain, ir=90)),
        "onnx.library_gone": onnx_model(batched() + 'model_operations { op_library_filename: "none.so" }'),
        "onnx.initializer_as_input": onnx_model(
            batched(),
            graph(
                {**plain[0], "c": ([4], FLOAT)},
                plain[1],
                [node("Add", ["x", "c"], ["y"])],
                constants={"c": np.ones(4, np.float32)},
            ),
        ),
        "onnx.initializer_named": onnx_model(
            batched() + 'input [ { name: "c" data_type: TYPE_FP32 dims: [ 4 ] } ]',
            graph(
                {**plain[0], "c": ([4], FLOAT)},
                plain[1],
                [node("Add", ["x", "c"], ["y"])],
                constants={"c": np.ones(4, np.float32)},
            ),
        ),
        "onnx.controls": onnx_model(
            batched() + f"sequence_batching {{ control_input [ {_control('s', 'fp32_false_true: [ 0, 1 ]')} ] }}",
            graph({**plain[0], "s": (["N", 1], FLOAT)}, plain[1], [node("Add", ["x", "s"], ["y"])]),
        ),
        "onnx.control_not_in_model": onnx_model(
            batched() + f"sequence_batching {{ control_input [ {_control('s', 'fp32_false_true: [ 0, 1 ]')} ] }}"
        ),
        "onnx.warmup": onnx_model(
            batched()
            + 'model_warmup [ { name: "w" batch_size: 4 inputs { key: "x" value: { data_type: TYPE_FP32 dims: 4 random_data: true } } } ]'
        ),
        "onnx.labels_more": onnx_model(batched(more_out='label_filename: "l.txt"'), **{"l.txt": b"a\nb\nc\nd\ne\n"}),
        "onnx.no_backend": Case(text=batched(), files={"1/model.onnx": SAME}),
    }


# Those that keep the server waiting for ever are asked about one by one.
_REST = _rest()
_ALONE = [
    name for name in _REST if name.startswith("model_py.") or name in ("default_model_filename.gone", "version.empty")
]
GROUPS: tuple[dict[str, Case], ...] = (
    _tensors(),
    _labels(),
    _batching(),
    _sequences(),
    _warmup(),
    _instances(),
    {name: case for name, case in _REST.items() if name not in _ALONE},
    {**PARTS, **_ensembles()},
    _onnx(),
    *({name: _REST[name]} for name in _ALONE),
)
CASES: dict[str, Case] = {name: case for group in GROUPS for name, case in group.items()}


def write(repository: Path, cases: dict[str, Case]) -> None:
    """Write models into a repository."""
    for name, case in cases.items():
        folder = repository / name
        folder.mkdir(parents=True)
        for place in case.folders:
            (folder / place).mkdir()
        for place, content in case.files.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(content)
        if case.text is not None:
            (folder / "config.pbtxt").write_text(case.text, encoding="utf-8")
