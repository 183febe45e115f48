"""A configuration for any ONNX file: batches only where it is right, dims and names as model and Triton take them."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from repo_builder.core.errors import RepositoryError
from repo_builder.core.tensors import DType
from repo_builder.repository import config
from repo_builder.repository.from_onnx import from_onnx


def test_a_dynamic_first_dimension_batches(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.v2.onnx", {"x": ["N", 3, "H", None]}, {"y": ["N", 3, "H", None]})
    spec = from_onnx(path, instance_kind="gpu", instance_count=2)
    assert (spec.name, spec.max_batch_size, spec.dynamic_batching) == ("net.v2", 64, True)
    assert spec.inputs[0].shape == (3, -1, -1)
    assert "the first dimension of every input and output varies" in config.render(spec)


@pytest.mark.parametrize("shape", [[1, 3], [], [2]])
def test_a_fixed_first_dimension_does_not(write_onnx: Callable[..., Path], tmp_path: Path, shape: list[int]) -> None:
    path = write_onnx(tmp_path / "net.onnx", {"x": ["N", 3], "z": shape}, {"y": ["N", 3]})
    spec = from_onnx(path)
    assert (spec.max_batch_size, spec.dynamic_batching) == (0, False)
    assert [item.shape for item in spec.inputs] == [(-1, 3), tuple(shape)]
    assert f"the first dimension of 'z' does not vary (its shape is {shape})" in spec.notes[0]
    with pytest.raises(RepositoryError, match="max_batch_size 4 is not possible: the first dimension of 'z'"):
        from_onnx(path, max_batch_size=4)


def test_batching_can_be_turned_off(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    spec = from_onnx(write_onnx(tmp_path / "net.onnx"), max_batch_size=0)
    assert (spec.max_batch_size, spec.inputs[0].shape) == (0, (-1, 4))
    assert not from_onnx(tmp_path / "net.onnx", dynamic_batching=False).dynamic_batching


def test_every_type_that_triton_has_is_named(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    types = {dtype.value: TensorProto.DataType.Value(dtype.onnx) for dtype in DType}
    path = write_onnx(tmp_path / "net.onnx", {name: ["N", 1] for name in types}, types=types)
    spec = from_onnx(path)
    assert {item.name: item.dtype for item in spec.inputs} == {dtype.value: dtype for dtype in DType}


def test_a_type_that_triton_lacks_is_one_sentence(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", types={"x": TensorProto.FLOAT8E4M3FN, "y": TensorProto.FLOAT8E4M3FN})
    with pytest.raises(RepositoryError, match="'x' is FLOAT8E4M3FN, a type that Triton does not have"):
        from_onnx(path)


def test_a_type_that_numpy_lacks_is_written_and_not_tried(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    spec = from_onnx(write_onnx(tmp_path / "net.onnx", types={"x": TensorProto.BFLOAT16, "y": TensorProto.BFLOAT16}))
    assert "data_type: TYPE_BF16" in config.render(spec)
    assert spec.max_batch_size == 0
    assert "could not be compared" in spec.notes[0]


def test_a_sequence_is_no_tensor(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx")
    model = onnx.load(path)
    value = onnx.helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    model.graph.output[0].CopyFrom(value)
    onnx.save(model, path)
    with pytest.raises(RepositoryError, match="'y' is SEQUENCE"):
        from_onnx(path)


def test_initializers_that_are_listed_as_inputs_are_left_out(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", {"x": ["N", 4], "w": [4]})
    model = onnx.load(path)
    model.graph.initializer.append(onnx.helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0] * 4))
    onnx.save(model, path)
    assert [item.name for item in from_onnx(path).inputs] == ["x"]


def test_dimensions_that_only_inference_finds(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", {"x": ["N", 4]}, {"y": ["N", "M"]})
    assert from_onnx(path).outputs[0].shape == (4,)


def test_weights_in_another_file_are_not_needed(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx")
    model = onnx.load(path)
    weights = onnx.helper.make_tensor("w", TensorProto.FLOAT, [64], [0.0] * 64)
    weights.raw_data = b"\0" * 256
    del weights.float_data[:]
    model.graph.initializer.append(weights)
    onnx.save_model(model, path, save_as_external_data=True, location="net.data", size_threshold=0)
    (tmp_path / "net.data").unlink()
    assert from_onnx(path).inputs[0].shape == (4,)


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"\x08\x08\x3a\xff\xff\x01", bytes(range(256))])
def test_a_file_that_is_no_model_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(RepositoryError, match="not an ONNX model"):
        from_onnx(tmp_path / "net.onnx")


def test_a_file_cut_short_or_missing_is_one_sentence(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RepositoryError, match="cut short"):
        from_onnx(path)
    with pytest.raises(RepositoryError, match="no such ONNX file"):
        from_onnx(tmp_path / "other.onnx")
    with pytest.raises(RepositoryError, match="no such ONNX file"):
        from_onnx(tmp_path)


def test_options_name_tensors_that_are_there(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx", {"image": ["N", 3, "H"]}, {"y": ["N", 3, "H"]})
    spec = from_onnx(path, dims={"image": (3, 8)}, warmup_batch_sizes=(1,))
    assert (spec.inputs[0].shape, spec.warmup_shape(spec.inputs[0])) == ((3, 8), (3, 8))
    varying = from_onnx(path, warmup_batch_sizes=(2,), warmup_shapes={"image": (3, 5)})
    assert varying.warmup_shape(varying.inputs[0]) == (3, 5)
    with pytest.raises(RepositoryError, match="no tensor 'imgae' there → did you mean 'image'"):
        from_onnx(path, dims={"imgae": (3, 8)})
    with pytest.raises(RepositoryError, match="name its size during warm-up"):
        from_onnx(path, warmup_batch_sizes=(1,))
    with pytest.raises(RepositoryError, match="preferred batch sizes must lie"):
        from_onnx(path, preferred_batch_sizes=(128,))


def test_a_tensor_without_a_shape_asks_for_one(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.node[0].op_type = string.ascii_letters  # unknown: nothing to infer from
    onnx.save(model, path)
    with pytest.raises(RepositoryError, match="--dims x:"):
        from_onnx(path)
    assert from_onnx(path, dims={"x": (2, 4)}).inputs[0].shape == (2, 4)


def test_shapes_are_those_that_onnx_runtime_sees(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    path = write_onnx(
        tmp_path / "net.onnx", {"x": ["N", 3, "H", 5]}, {"y": ["N", 3, "A", "B"], "z": [None, None, None, 5]}
    )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for spec, seen in zip(from_onnx(path).outputs, session.get_outputs(), strict=True):
        assert spec.shape == tuple(size if isinstance(size, int) else -1 for size in seen.shape[1:]), spec.name


def _save(path: Path, node: onnx.NodeProto, first: str | int, constants: dict[str, Any] | None = None) -> Path:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [first, 3]) for name in ("x", "y")]
    initial = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph([node], "g", tensors[:1], tensors[1:], initial)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_rows_that_know_of_each_other_are_not_put_together(tmp_path: Path) -> None:
    along = helper.make_node("CumSum", ["x", "axis"], ["y"])
    path = _save(tmp_path / "net.onnx", along, "length", {"axis": np.int64(0)})
    spec = from_onnx(path)
    assert (spec.max_batch_size, spec.dynamic_batching, spec.inputs[0].shape) == (0, False, (-1, 3))
    assert "depends on the samples that run together with it" in spec.notes[0]
    asked = from_onnx(path, max_batch_size=8)
    assert (asked.max_batch_size, asked.dynamic_batching) == (8, False)
    assert "as asked, without dynamic batching: a sample's answer depends" in asked.notes[0]
    with pytest.raises(RepositoryError, match="--preferred-batch-size is for dynamic batching, and there is none"):
        from_onnx(path, max_batch_size=8, preferred_batch_sizes=(4,))


def test_a_size_of_0_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"'x' has a size of 0 in \[0, 3\], which config.pbtxt cannot say"):
        from_onnx(_save(tmp_path / "net.onnx", helper.make_node("Relu", ["x"], ["y"]), 0))


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"x": (2, 3, 5)}, r"--dims x:2,3,5 does not go with the model: 'x' is \[3, -1\] behind the batch"),
        ({"x": (5,)}, r"'x' is \[3, -1\]"),
        ({"x": (4, 5)}, r"'x' is \[3, -1\]"),
        ({"x": (-1, 5)}, r"'x' is \[3, -1\]"),
        ({"x": (3, 0)}, "size of 0"),
        ({"x": (3, -7)}, "at least 1, or -1"),
        ({"y": (3, 5)}, "an output must have exactly that"),
    ],
)
def test_dims_are_held_against_the_model(
    write_onnx: Callable[..., Path], tmp_path: Path, dims: dict[str, tuple[int, ...]], message: str
) -> None:
    path = write_onnx(tmp_path / "net.onnx", {"x": ["N", 3, "W"]}, {"y": ["N", 3, "W"]})
    with pytest.raises(RepositoryError, match=message):
        from_onnx(path, dims=dims)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a/b"}, "'a/b' cannot be a model's name"),
        ({"name": ""}, "cannot be a model's name"),
        ({"name": ".."}, "cannot be a model's name"),
        ({"name": "n" * 300}, "cannot be a model's name"),
        ({"backend": "onnxruntime_onnx"}, "is a platform, not a backend → use --backend onnxruntime"),
        ({"backend": "../evil"}, "cannot be the name of a backend"),
        ({"parameters": {"intra_op_thread_count": "x"}}, "not a whole number from 0 to 65535"),
        ({"parameters": {"execution_mode": "2"}}, "not a whole number from 0 to 1"),
        ({"dynamic_batching": False, "preferred_batch_sizes": (4,)}, "--no-dynamic-batching is given"),
        ({"dynamic_batching": False, "max_queue_delay_us": 5}, "--max-queue-delay-us is for dynamic batching"),
        ({"max_queue_delay_us": -1}, "must not be negative"),
        ({"max_queue_delay_us": 1 << 64}, "too large"),
        ({"instance_count": 0}, "at least one instance"),
        ({"instance_count": 1 << 31}, "too large"),
        ({"max_batch_size": -1}, "must not be negative"),
    ],
)
def test_options_that_triton_would_not_take_are_refused(
    write_onnx: Callable[..., Path], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RepositoryError, match=message):
        from_onnx(write_onnx(tmp_path / "net.onnx"), **options)


def test_a_backend_that_triton_does_not_bring_is_told(write_onnx: Callable[..., Path], tmp_path: Path) -> None:
    spec = from_onnx(write_onnx(tmp_path / "net.onnx"), backend="onnxrunntime")
    assert any("Triton brings no backend 'onnxrunntime' (did you mean 'onnxruntime'?)" in note for note in spec.notes)
