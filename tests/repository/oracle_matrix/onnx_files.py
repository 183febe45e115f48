# ruff: noqa: E501 - a table of protobuf text, one model a line
"""ONNX files against their configuration."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from oracle_matrix.models import CPU, FLOAT, SAME, Case, batched, control, graph, io, onnx_model


def onnx_files() -> dict[str, Case]:
    """Return the models by name."""
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
            batched() + f"sequence_batching {{ control_input [ {control('s', 'fp32_false_true: [ 0, 1 ]')} ] }}",
            graph({**plain[0], "s": (["N", 1], FLOAT)}, plain[1], [node("Add", ["x", "s"], ["y"])]),
        ),
        "onnx.control_not_in_model": onnx_model(
            batched() + f"sequence_batching {{ control_input [ {control('s', 'fp32_false_true: [ 0, 1 ]')} ] }}"
        ),
        "onnx.warmup": onnx_model(
            batched()
            + 'model_warmup [ { name: "w" batch_size: 4 inputs { key: "x" value: { data_type: TYPE_FP32 dims: 4 random_data: true } } } ]'
        ),
        "onnx.labels_more": onnx_model(batched(more_out='label_filename: "l.txt"'), **{"l.txt": b"a\nb\nc\nd\ne\n"}),
        "onnx.no_backend": Case(text=batched(), files={"1/model.onnx": SAME}),
    }
