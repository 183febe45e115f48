from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from repo_builder.core.errors import RepositoryError
from repo_builder.repository import config, spec
from repo_builder.repository.checks.findings import Finding
from repo_builder.repository.checks.target import Target, parse
from repo_builder.repository.validate import models, validate

WriteOnnx = Callable[..., Path]

CONFIG = """
backend: "onnxruntime"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
"""
WARMUP = """
model_warmup [ {{ name: "w" batch_size: {0} inputs {{ key: "{1}" value: {{ data_type: {2} dims: [ {3} ] {4} }} }} }} ]
"""


@pytest.fixture
def model(tmp_path: Path, write_onnx: WriteOnnx) -> Callable[..., Path]:
    """Return a writer of models that Triton would take unless the arguments break them."""

    def write(text: str = CONFIG, *, name: str = "m", versions: Sequence[str] = ("1",), **graph: Any) -> Path:
        folder = tmp_path / "r" / name
        folder.mkdir(parents=True, exist_ok=True)
        for version in versions:
            write_onnx(folder / version / "model.onnx", **graph)
        (folder / "config.pbtxt").write_text(text)
        return folder

    return write


def _check(folder: Path) -> tuple[Finding, ...]:
    return validate(folder.parent)


def _one(folder: Path, level: str) -> Finding:
    found = _check(folder)
    assert [item.level for item in found] == [level], [str(item) for item in found]
    return found[0]


def test_a_sound_repository_has_no_findings(model: Callable[..., Path]) -> None:
    assert _check(model()) == ()


def test_it_works_without_a_config(model: Callable[..., Path]) -> None:
    folder = model()
    (folder / "config.pbtxt").unlink()
    assert "Triton completes one for backend 'onnxruntime'" in _one(folder, "info").message
    (folder / "config.pbtxt").write_text("")
    assert _check(folder) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: "other"' + CONFIG, "name is 'other' and the folder 'm'"),
        (CONFIG.replace("max_batch_size: 4", "max_batchsize: 4"), "no field named"),
        ("\ufeff" + CONFIG, "not a model configuration"),
        (CONFIG.replace("max_batch_size: 4", "max_batch_size: -1"), "max_batch_size is -1"),
        ('platform: "tensorrt_plan"' + CONFIG, "does not go with backend 'onnxruntime'"),
        (CONFIG.replace('"y"', '"z"'), "output 'z' is not in m/1/model.onnx"),
        (CONFIG.replace('"x"', '"z"'), "input 'z' is not in m/1/model.onnx"),
        (CONFIG.replace("FP32", "FP16", 1), "input 'x' is TYPE_FP16, and TYPE_FP32 in the model"),
        (CONFIG.replace("[ 4 ]", "[ 5 ]", 1), "input 'x' has dims [5], and [4] in the model behind the batch"),
        (CONFIG.replace("[ 4 ]", "[ 4, 1 ]", 1), "input 'x' has dims [4, 1]"),
        (CONFIG.replace("[ 4 ]", "[ -1 ]", 1), "input 'x' has dims [-1], and [4] in the model behind the batch"),
        (CONFIG.replace("[ 4 ]", "[ 0 ]", 1), "input 'x' has a dimension of 0"),
        (CONFIG.replace("dims: [ 4 ]", "", 1), "input 'x' has no dims"),
        (CONFIG.replace("data_type: TYPE_FP32", "", 1), "input 'x' has no data_type"),
        (CONFIG.replace('name: "x"', "", 1), "input 0 has no name"),
        (CONFIG.replace("[ 4 ]", "[ 2, 2 ] reshape { shape: [ 5 ] }", 1), "dims [2, 2] and is reshaped to [5]"),
        (CONFIG.replace("[ 4 ]", "[ 4 ] is_shape_tensor: true", 1), "only the tensorrt backend has"),
        (CONFIG.replace("[ 4 ]", "[ 4 ] format: FORMAT_NCHW", 1), "has an image format and 1 dims"),
        (CONFIG.replace("[ 4 ]", "[ 4 ] optional: true", 1), "is optional"),
        (CONFIG + "dynamic_batching { preferred_batch_size: [ 8 ] }", "preferred_batch_size 8"),
        (CONFIG + "dynamic_batching { preferred_batch_size: [ 0 ] }", "preferred_batch_size 0"),
        (CONFIG + "instance_group [ { kind: KIND_CPU gpus: [ 0 ] } ]", "is KIND_CPU and names GPUs"),
        (CONFIG + 'instance_group [ { profile: [ "0" ] } ]', "names profiles"),
        (CONFIG + "version_policy { specific { versions: [ 7 ] } }", "asks for version 7, and there is only 1"),
        (CONFIG + "version_policy { latest { num_versions: 0 } }", "serves none of the versions 1"),
        (CONFIG.replace("output [ {", 'output [ { label_filename: "l.txt"'), "is missing, and output 'y' names it"),
        (CONFIG + 'default_model_filename: "net.onnx"', "is missing"),
        (CONFIG + WARMUP.format(8, "x", "TYPE_FP32", 4, "zero_data: true"), "has a batch_size of 8, above 4"),
        (CONFIG + WARMUP.format(1, "x", "TYPE_INT8", 4, "zero_data: true"), "is TYPE_INT8, and the input TYPE_FP32"),
        (CONFIG + WARMUP.format(1, "x", "TYPE_FP32", 5, "zero_data: true"), "has dims [5], and the input [4]"),
        (CONFIG + WARMUP.format(1, "x", "TYPE_FP32", -1, "zero_data: true"), "has a dimension of -1"),
        (CONFIG + WARMUP.format(1, "x", "TYPE_FP32", 4, ""), "has no data"),
        (CONFIG + WARMUP.format(1, "x", "TYPE_FP32", 4, 'input_data_file: "a"'), "is missing, and model_warmup 'w'"),
        (CONFIG + "response_cache { enable: true } sequence_batching { }", "response cache"),
    ],
)  # fmt: skip
def test_each_error_is_found(model: Callable[..., Path], text: str, message: str) -> None:
    found = [item for item in _check(model(text)) if item.level == "error"]
    assert any(message in str(item) for item in found), [str(item) for item in found]
    assert all("\n" not in str(item) for item in found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONFIG + 'input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]', "input 'x' is there 2 times"),
        (CONFIG + "instance_group [ { count: -2 kind: KIND_CPU } ]", "has a count of -2"),
        (CONFIG + "version_policy { specific { versions: [ 1, 7 ] } }", "asks for version 7, and there is only 1"),
        (CONFIG + "instance_group [ { kind: KIND_GPU } ]", "is KIND_GPU, and this machine has no GPU"),
        (CONFIG + WARMUP.format(0, "x", "TYPE_FP32", 4, "zero_data: true"), "so it is skipped"),
        (
            CONFIG + "instance_group [ { kind: KIND_CPU } ] optimization { execution_accelerators "
            '{ gpu_execution_accelerator [ { name: "cuda" } ] } }',
            "have no effect on it",
        ),
    ],
)
def test_each_warning_is_found(model: Callable[..., Path], text: str, message: str) -> None:
    assert message in str(_one(model(text), "warning"))


_names = st.sampled_from(["x", "y", "m", "e", "", "ensemble", "onnxruntime", "tensorrt", "python", "0", "model.onnx"])
_SCALARS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_STRING: _names,
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32, allow_nan=False),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False),
    FieldDescriptor.CPPTYPE_INT32: st.integers(-2, 9),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-2, 9),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 9),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 9),
}


def _fill(draw: st.DrawFn, message: Any, depth: int) -> None:
    """Give some of a message's fields values, whatever they are."""
    fields = tuple(message.DESCRIPTOR.fields)
    for field in (
        draw(st.lists(st.sampled_from(fields), max_size=6, unique_by=lambda item: item.name)) if fields else ()
    ):
        value = getattr(message, field.name)
        if field.message_type and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name
            key = draw(_SCALARS[entry["key"].cpp_type])
            if not entry["value"].message_type:
                value[key] = draw(_SCALARS[entry["value"].cpp_type])
            elif depth:
                _fill(draw, value[key], depth - 1)
        elif field.message_type:
            if depth:
                _fill(draw, value.add() if hasattr(value, "add") else value, depth - 1)
        else:
            numbers = field.enum_type.values_by_number if field.enum_type else None
            chosen = st.sampled_from(sorted(numbers)) if numbers else _SCALARS[field.cpp_type]
            if hasattr(value, "append"):
                value.extend(draw(st.lists(chosen, max_size=3)))
            else:
                setattr(message, field.name, draw(chosen))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_configuration_is_judged_and_none_is_a_crash(model: Callable[..., Path], data: st.DataObject) -> None:
    sound = config.parse_text(CONFIG, "here")
    _fill(data.draw, sound, 3)
    folder = model(text_format.MessageToString(sound))
    assert all("\n" not in str(item) for item in _check(folder))


def test_a_misspelt_field_is_named_with_its_line(model: Callable[..., Path]) -> None:
    finding = _one(model(CONFIG.replace("data_type", "datatype", 1)), "error")
    assert finding.path == "m/config.pbtxt:4:21"
    assert "data_type" in finding.hint


def test_the_batch_is_part_of_the_shape_where_models_do_not_batch(model: Callable[..., Path]) -> None:
    whole = CONFIG.replace("max_batch_size: 4", "max_batch_size: 0")
    shape = {"inputs": {"x": [1, 4]}, "outputs": {"y": [1, 4]}}
    assert _check(model(whole.replace("[ 4 ]", "[ 1, 4 ]"), **shape)) == ()
    found = _check(model(CONFIG, **shape))
    assert "no first dimension that varies" in found[0].message
    found = _check(model(whole + "dynamic_batching { }", inputs={"x": [4]}, outputs={"y": [4]}))
    assert [item.message for item in found] == ["dynamic_batching has no effect while max_batch_size is 0"]
    assert "the model could batch" in str(_one(model(whole.replace("[ 4 ]", "[ -1, 4 ]")), "info"))


def test_an_output_must_vary_where_the_model_does(model: Callable[..., Path]) -> None:
    varying = {"inputs": {"x": ["N", "A"]}, "outputs": {"y": ["N", "A"]}}
    assert "an output must have the model's dimensions" in _one(model(CONFIG, **varying), "error").hint
    text = CONFIG.replace("dims: [ 4 ] } ]\n", "dims: [ -1 ] } ]\n")
    assert _check(model(text, **varying)) == ()


def test_a_dimension_that_only_onnx_runtime_finds_is_that_one(model: Callable[..., Path]) -> None:
    hidden = {"inputs": {"x": ["N", 4]}, "outputs": {"y": ["N", "A"]}}
    head, output = CONFIG.split("output")
    assert _check(model(CONFIG, **hidden)) == ()
    for size in (-1, 5):
        text = head + "output" + output.replace("[ 4 ]", f"[ {size} ]")
        assert f"has dims [{size}]" in str(_one(model(text, **hidden), "error"))


def test_every_input_must_be_named_and_outputs_need_not(model: Callable[..., Path]) -> None:
    graph = {"inputs": {"x": ["N", 4], "z": ["N", 4]}, "outputs": {"y": ["N", 4], "other": ["N", 4]}}
    assert "does not name the input 'z'" in _one(model(**graph), "error").message


def test_one_number_a_sample(model: Callable[..., Path]) -> None:
    graph = {"inputs": {"x": ["N"]}, "outputs": {"y": ["N"]}}
    assert _check(model(CONFIG.replace("[ 4 ]", "[ 1 ] reshape { shape: [ ] }"), **graph)) == ()
    assert "in the model" in _check(model(CONFIG.replace("[ 4 ]", "[ 1 ]"), **graph))[0].message
    scalar = CONFIG.replace("max_batch_size: 4", "max_batch_size: 0")
    graph = {"inputs": {"x": []}, "outputs": {"y": []}}
    assert _check(model(scalar.replace("[ 4 ]", "[ 1 ]"), **graph)) == ()


def test_a_type_that_triton_lacks(model: Callable[..., Path]) -> None:
    kinds = {"x": TensorProto.FLOAT8E4M3FN, "y": TensorProto.FLOAT8E4M3FN}
    folder = model(types=kinds)
    proto = onnx.load(folder / "1" / "model.onnx")
    proto.opset_import[0].version, proto.ir_version = 19, 9
    onnx.save(proto, folder / "1" / "model.onnx")
    assert "is FLOAT8E4M3FN in the model, a type that Triton does not have" in _check(folder)[0].message


def test_a_type_that_only_the_embedded_server_lacks(model: Callable[..., Path]) -> None:
    kinds = {"x": TensorProto.BFLOAT16, "y": TensorProto.BFLOAT16}
    folder = model(CONFIG.replace("FP32", "BF16"), types=kinds)
    assert {item.level for item in _check(folder)} == {"warning"}
    assert {item.level for item in validate(folder.parent, target=Target(runtime="embedded"))} == {"error"}
    assert validate(folder.parent, target=Target(runtime="container")) == ()


def test_outputs_that_only_the_native_backend_compares_exactly(model: Callable[..., Path]) -> None:
    varying = {"inputs": {"x": ["N", "A"]}, "outputs": {"y": ["N", "A"]}}
    folder = model(CONFIG, **varying)
    for runtime, levels in (("any", ["error"]), ("container", ["error"]), ("embedded", [])):
        target = Target(runtime=runtime)  # type: ignore[arg-type]
        assert [item.level for item in validate(folder.parent, target=target)] == levels


def test_fields_that_only_newer_servers_read(model: Callable[..., Path]) -> None:
    control = '{ metric_identifier { family: "f" } histogram_options { buckets: [ 1 ] } }'
    folder = model(CONFIG + f"model_metrics {{ metric_control [ {control} ] }}")
    assert "which Triton reads from 24.11 on, and the embedded server is 24.10" in _one(folder, "warning").message
    for text, levels in (("embedded", ["error"]), ("container", []), ("container:24.10", ["error"])):
        assert [item.level for item in validate(folder.parent, target=parse(text))] == levels, text


def test_a_newer_field_is_told_at_any_depth_and_to_an_older_protobuf(model: Callable[..., Path]) -> None:
    tensors = (
        'input [ { name: "i" data_type: TYPE_FP32 dims: 4 } ] output [ { name: "o" data_type: TYPE_FP32 dims: 4 } ]'
    )
    maps = 'input_map { key: "x" value: "i" } output_map { key: "y" value: "o" }'
    step = f'step [ {{ model_name: "m" model_version: -1 {maps} }} ]'
    ensemble = (
        f'platform: "ensemble" max_batch_size: 4 {tensors} ensemble_scheduling {{ max_inflight_requests: 2 {step} }}'
    )
    folder = model()
    (folder.parent / "e" / "1").mkdir(parents=True)
    (folder.parent / "e" / "config.pbtxt").write_text(ensemble)
    if "max_inflight_requests" not in config.parse_text("", "here").ensemble_scheduling.DESCRIPTOR.fields_by_name:
        assert "Triton reads it from 25.11 on" in _one(folder, "error").hint
        return
    assert "which Triton reads from 25.11 on" in _one(folder, "warning").message
    levels = [item.level for item in validate(folder.parent, target=parse("container:25.10"))]
    assert levels == ["error"]


@pytest.mark.parametrize(
    ("text", "levels"), [("container:24.10", ["error"]), ("container", []), ("embedded", []), ("any", ["info"])]
)
def test_an_onnx_file_newer_than_a_container(model: Callable[..., Path], text: str, levels: list[str]) -> None:
    folder = model()
    proto = onnx.load(folder / "1" / "model.onnx")
    proto.ir_version, proto.opset_import[0].version = 11, 23
    onnx.save(proto, folder / "1" / "model.onnx")
    found = validate(folder.parent, target=parse(text))
    assert [item.level for item in found] == levels
    assert all("opset 23 and IR version 11" in item.message for item in found)


@pytest.mark.parametrize("text", ["", "docker", "container:19.01", "embedded:24.10"])
def test_a_runtime_that_is_none_is_one_sentence(text: str) -> None:
    with pytest.raises(RepositoryError, match=r"is no runtime|no Triton release"):
        parse(text)


@pytest.mark.parametrize(
    ("versions", "level", "message"),
    [
        ([], "error", "has no version folder"),
        (["1", "02"], "warning", "a version has no leading zero"),
        (["1", "3b"], "error", "is taken for version 3"),
        (["1", "-3"], "error", "is taken for version -3"),
        (["1", "old"], "info", "is no version folder"),
    ],
)
def test_version_folders(model: Callable[..., Path], versions: list[str], level: str, message: str) -> None:
    assert message in _one(model(versions=versions), level).message


def test_only_versions_that_are_served_are_compared(model: Callable[..., Path], write_onnx: WriteOnnx) -> None:
    folder = model(versions=("1", "2", "10"))
    write_onnx(folder / "2" / "model.onnx", {"other": ["N", 9]})
    assert _check(folder) == ()  # the newest one, by number
    (folder / "config.pbtxt").write_text(CONFIG + "version_policy { all { } }")
    assert {item.path for item in _check(folder)} == {"m/config.pbtxt"}
    (folder / "config.pbtxt").write_text(CONFIG + "version_policy { specific { versions: [ 1 ] } }")
    assert _check(folder) == ()


def test_files_that_are_missing_empty_or_misnamed(model: Callable[..., Path]) -> None:
    folder = model()
    (folder / "1" / "model.onnx").write_bytes(b"")
    assert _one(folder, "error").message == "is empty"
    (folder / "1" / "model.onnx").write_bytes(b"not a model")
    assert "not an ONNX model" in _one(folder, "error").message
    model()
    (folder / "1" / "model.onnx").rename(folder / "1" / "net.onnx")
    assert 'rename net.onnx, or add default_model_filename: "net.onnx"' in _one(folder, "error").hint
    (folder / "config.pbtxt").write_text(CONFIG + 'default_model_filename: "net.onnx"')
    assert _check(folder) == ()


def test_weights_in_a_file_that_is_not_there(model: Callable[..., Path]) -> None:
    folder = model()
    path = folder / "1" / "model.onnx"
    document = onnx.load(path)
    weights = onnx.helper.make_tensor("w", TensorProto.FLOAT, [64], b"\0" * 256, raw=True)
    document.graph.initializer.append(weights)
    onnx.save_model(document, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert _check(folder) == ()
    (folder / "1" / "weights.bin").unlink()
    assert "keeps weights in 'weights.bin'" in _one(folder, "error").message


def test_stray_files_and_links(model: Callable[..., Path], tmp_path: Path) -> None:
    folder = model()
    (folder / "warmup").mkdir()
    (folder / "config.pbtx").write_text("")
    (folder / "model.onnx").write_text("")
    (folder / "config.old.pbtxt").write_text("")
    (folder / "gone").symlink_to(folder / "nowhere")
    (folder.parent / "README.md").write_text("")
    (folder.parent / "gone").symlink_to(folder / "nowhere")
    found = {(item.path, item.level) for item in _check(folder)}
    assert found == {
        ("README.md", "info"),
        ("gone", "error"),
        ("m/config.pbtx", "info"),
        ("m/config.old.pbtxt", "warning"),
        ("m/gone", "error"),
        ("m/model.onnx", "warning"),
    }


def test_labels_have_one_line_an_element(model: Callable[..., Path]) -> None:
    folder = model(CONFIG.replace("output [ {", 'output [ { label_filename: "labels.txt"'))
    (folder / "labels.txt").write_text("a\nb\nc\nd\n")
    assert _check(folder) == ()
    (folder / "labels.txt").write_text("a\nb\nc")
    assert "has 3 labels, and output 'y' has 4 elements" in _one(folder, "warning").message
    for more in ("a\nb\nc\nd\ne\nf\n", "a\nb\nc\nd\n\n\n"):
        (folder / "labels.txt").write_text(more)
        assert not [item for item in _check(folder) if item.level == "error"]
    (folder / "labels.txt").write_text("a\n\nc\nd")
    assert "line 2 is empty" in _one(folder, "warning").message


def test_a_hidden_folder_is_a_model_for_triton(model: Callable[..., Path]) -> None:
    folder = model()
    (folder.parent / ".ipynb_checkpoints").mkdir()
    assert _one(folder, "error").path == ".ipynb_checkpoints"


def test_a_name_that_a_shell_would_split(model: Callable[..., Path]) -> None:
    assert "stops Triton's Python backend" in _one(model(name="a b"), "warning").message


def test_a_config_that_is_no_file(model: Callable[..., Path]) -> None:
    folder = model()
    (folder / "config.pbtxt").unlink()
    (folder / "config.pbtxt").mkdir()
    assert "makes tritonserver abort" in _one(folder, "error").message
    (folder / "config.pbtxt").rmdir()
    os.mkfifo(folder / "config.pbtxt")  # reading it would never end
    assert "is not a file" in _one(folder, "error").message


def test_a_folder_that_cannot_be_read(model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model()

    def refuse(path: Path) -> tuple[int, ...]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(spec, "versions", refuse)
    assert "cannot be read (Permission denied)" in _one(folder, "error").message


def test_backends_that_are_not_ours(tmp_path: Path) -> None:
    def write(name: str, text: str, files: dict[str, str]) -> list[str]:
        folder = tmp_path / name / name
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(text)
        for file, content in files.items():
            (folder / "1" / file).write_text(content)
        return [f"{item.level}: {item.message}" for item in validate(tmp_path / name)]

    tensors = CONFIG.replace('backend: "onnxruntime"', "")
    assert (
        write(
            "a",
            'backend: "python"' + tensors,
            {"model.py": "class TritonPythonModel:\n    def execute(self, requests): ..."},
        )
        == []
    )
    assert write("b", tensors, {"model.py": "from json import JSONDecoder as TritonPythonModel"}) == []
    assert write("c", tensors, {"model.py": "def f("})[0].startswith("error: is not Python")
    assert write("d", tensors, {"model.py": ""}) == ["error: is empty"]
    assert write("e", tensors, {"model.py": "x = 1"}) == ["error: has no class TritonPythonModel"]
    assert write("f", 'platform: "pytorch_libtorch"' + tensors, {"model.pt": "x"}) == []
    assert write("g", 'platform: "pytorch_libtorch"' + tensors, {}) == ["error: is missing"]
    assert write("h", 'platform: "tensorflow_graphdef"' + tensors, {"model.graphdef": "x"}) == []
    assert write("i", 'backend: "dali"' + tensors, {})[0].startswith(
        "info: the files of backend 'dali' are not known here"
    )
    assert write("j", tensors, {})[0].startswith("error: neither backend nor platform is given")
    assert write("k", 'platform: "caffe2_netdef"' + tensors, {})[0].startswith("error: unknown platform")
    assert write("l", 'platform: "pytorch_libtorch"', {"model.pt": "x"})[0].startswith("warning: names no input")


def test_no_repository_is_an_error_of_its_own(model: Callable[..., Path], tmp_path: Path) -> None:
    folder = model()
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "is empty"),
        (folder / "config.pbtxt", "is a file"),
        (folder, "one model's folder"),
    ):
        with pytest.raises(RepositoryError, match=message):
            validate(path)
    assert models(folder.parent) == ("m",)
    with pytest.raises(RepositoryError, match="has no model 'n' → there are: m"):
        validate(folder.parent, ["n"])


def test_one_model_can_be_chosen(model: Callable[..., Path]) -> None:
    model('name: "other"' + CONFIG, name="bad")
    folder = model()
    assert len(validate(folder.parent)) == 1
    assert validate(folder.parent, ["m"]) == ()


# --- ensembles ------------------------------------------------------------------------------------------------------

ENSEMBLE = """
platform: "ensemble"
max_batch_size: 4
input [ { name: "in" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "out" data_type: TYPE_FP32 dims: [ 4 ] } ]
ensemble_scheduling { step [
  { model_name: "m" model_version: -1 input_map { key: "x" value: "in" } output_map { key: "y" value: "mid" } },
  { model_name: "m" model_version: -1 input_map { key: "x" value: "mid" } output_map { key: "y" value: "out" } }
] }
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("", "", None),
        ('model_name: "m"', 'model_name: "n"', "names a model that is not here"),
        ("max_batch_size: 4", "max_batch_size: 8", "max_batch_size is 8, and step 0 (m) takes 4"),
        ("model_version: -1", "model_version: 3", "wants version 3, and m serves 1"),
        ('key: "x"', 'key: "z"', "maps 'z', which is no input of it"),
        ('key: "x"', 'key: "z"', "does not map the input 'x'"),
        ('key: "y"', 'key: "z"', "maps 'z', which is no output of it"),
        ('value: "in"', 'value: "on"', "tensor 'on' is needed and no step makes it"),
        ('value: "in"', 'value: "on"', "input 'in' is not used"),
        ('value: "out"', 'value: "mid"', "tensor 'mid' is made more than once"),
        ('value: "out"', 'value: "end"', "tensor 'out' is needed and no step makes it"),
        ('value: "out"', 'value: "end"', "tensor 'end' is made and not used"),
        ('value: "in"', 'value: "out"', "steps wait for each other's outputs: m, m"),
        ("dims: [ 4 ] } ]\noutput", "dims: [ 5 ] } ]\noutput", "tensor 'in' is [-1, 5] for e and [-1, 4] for m.x"),
        ("TYPE_FP32 dims: [ 4 ] } ]\ne", "TYPE_INT8 dims: [ 4 ] } ]\ne", "tensor 'out' is TYPE_INT8 for e"),
        ("max_batch_size: 4", 'max_batch_size: 4 backend: "python"', "another platform or a backend"),
        ('platform: "ensemble"', "", "another platform or a backend"),
        ("max_batch_size: 4", "max_batch_size: 4 instance_group [ { count: 1 } ]", "has no instance_group"),
        ("max_batch_size: 4", "max_batch_size: 4 optimization { }", "has no optimization"),
        ("step [", "step [ ] } dynamic_batching { } # [", "is an ensemble without a step"),
    ],
)
def test_ensembles(model: Callable[..., Path], old: str, new: str, message: str | None) -> None:
    model()
    text = ENSEMBLE.replace(old, new, 1) if "# [" not in new else ENSEMBLE.partition("step [")[0] + "}"
    folder = model(text, name="e", versions=())
    (folder / "1").mkdir()
    found = [f"{item.level}: {item.message}" for item in _check(folder)]
    if message is None:
        assert found == []
    else:
        assert any(item.startswith("error") and message in item for item in found), found


def test_an_ensemble_of_models_that_triton_completes(model: Callable[..., Path]) -> None:
    (model() / "config.pbtxt").unlink()
    folder = model(ENSEMBLE, name="e", versions=())
    (folder / "1").mkdir()
    assert [item.level for item in _check(folder)] == ["info"]
    (folder / "config.pbtxt").write_text(ENSEMBLE.replace("[ 4 ]", "[ 5 ]"))
    assert "tensor 'in' is [-1, 5]" in _check(folder)[0].message
