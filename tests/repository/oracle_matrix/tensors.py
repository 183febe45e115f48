# ruff: noqa: E501 - a table of protobuf text, one model a line
"""Tensors: types, dimensions, shapes inside, and labels."""

from __future__ import annotations

from oracle_matrix.models import COMPLETE, CPU, HEAD, Case, io, python


def tensors() -> dict[str, Case]:
    """Return the models by name."""
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


def labels() -> dict[str, Case]:
    """Return the models by name."""
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
