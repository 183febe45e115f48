"""What is read in config.pbtxt before a start, against protobuf's own reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from repo_builder.serve.run import choices, configs

IO = """
input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
"""


def place(repository: Path, name: str, text: str | None, **files: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    if text is not None:
        (repository / name / "config.pbtxt").write_text(text)
    for file, content in files.items():
        (repository / name / "1" / f"{file}.py").write_text(content)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ('name: "a"  # backend: "x"\nbackend: \'b\'', {"name": ["a"], "backend": ["b"]}),
        (
            'input { name: "x" } input < name: "y", dims: 3; dims: [1, -1] >',
            {"input": [{"name": ["x"]}, {"name": ["y"], "dims": ["3", "1", "-1"]}]},
        ),
        ('a: { b: [ { c: "]}" } ] }', {"a": [{"b": [{"c": ["]}"]}]}]}),
        ("input [ ]", {"input": []}),
    ],
)
def test_fields_are_read(text: str, fields: dict[str, Any]) -> None:
    assert configs.parse(text) == fields


@pytest.mark.parametrize("text", ["input {", "input [", "a:", "a: }", 'a: "', "{", "a b ]"])
def test_what_is_no_message_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        configs.parse(text)


NAMES = st.text("abc xyz{}[]#:'", max_size=6)
DIMS = st.lists(st.integers(-1, 9), min_size=1, max_size=3)
TENSORS = st.lists(st.tuples(NAMES, DIMS), max_size=3)


@given(inputs=TENSORS, cached=st.booleans(), compact=st.booleans())
def test_what_protobuf_prints_is_read_as_protobuf_reads_it(
    inputs: list[tuple[str, list[int]]], cached: bool, compact: bool
) -> None:
    message = model_config_pb2.ModelConfig(name="m", backend="onnxruntime")
    for name, dims in inputs:
        message.input.add(name=name, dims=dims, data_type=model_config_pb2.TYPE_FP32)
    message.response_cache.enable = cached
    fields = configs.parse(
        text_format.MessageToString(message, as_one_line=compact, use_short_repeated_primitives=compact)
    )
    read = fields.get("input", [])
    assert [[int(size) for size in item["dims"]] for item in read] == [dims for _, dims in inputs]
    plain = [name for name, _ in inputs if "'" not in name]
    assert [item.get("name", [""])[0] for item in read if "'" not in item.get("name", [""])[0]] == plain
    assert configs.Model(folder=Path("m"), fields=fields).cached is cached


@pytest.mark.parametrize(
    ("text", "files", "complete"),
    [
        (f'backend: "onnxruntime" {IO}', {}, True),
        (f'platform: "onnxruntime_onnx" {IO}', {}, True),
        (f'backend: "tensorrt" {IO}', {}, True),
        (f'backend: "python" {IO}', {"model": "class TritonPythonModel: pass"}, True),
        (f'backend: "python" {IO}', {"model": "def auto_complete_config(): pass"}, False),
        (f'backend: "python" {IO}', {}, False),
        (f'backend: "openvino" {IO}', {}, False),
        (IO, {}, False),
        ('backend: "onnxruntime" input { name: "x" }', {}, False),
        (
            'backend: "onnxruntime" input { name: "x" dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: 1 }',
            {},
            False,
        ),
        ('platform: "ensemble" ensemble_scheduling { step [] }', {}, True),
        ("input {", {}, False),
        (None, {}, False),
    ],
)
def test_triton_completes_what_is_not_complete(
    tmp_path: Path, text: str | None, files: dict[str, str], complete: bool
) -> None:
    place(tmp_path, "m", text, **files)
    (model,) = configs.models(tmp_path)
    assert model.complete is complete
    option = ["--disable-auto-complete-config"]
    assert choices.completing([model], []) == (option if complete else [])
    assert choices.completing([model, configs.Model(folder=tmp_path / "other")], []) == []
    assert choices.completing([model], ["--model-control-mode=poll"]) == []
    assert choices.completing([model], ["--strict-model-config=false"]) == []


def test_a_cache_is_made_where_a_model_asks_for_one(tmp_path: Path) -> None:
    place(tmp_path, "a", f'backend: "onnxruntime" {IO} response_cache {{ enable: true }}')
    place(tmp_path, "b", f'backend: "onnxruntime" {IO} response_cache {{ enable: false }}')
    models = configs.models(tmp_path)
    option = choices.caching(models, [])
    assert option == ["--cache-config=local,size=67108864"]
    assert choices.cached(models, option).startswith("response cache: 64 MiB, for a;")
    assert choices.caching(models, ["--cache-config", "redis,host=x"]) == []
    assert choices.cached(models, ["--cache-config=redis,host=x"]).startswith("response cache: as asked, for a;")
    assert choices.caching(configs.models(tmp_path, ["b"]), []) == []
    assert choices.cached(configs.models(tmp_path, ["b"]), []) == ""


@pytest.mark.parametrize(
    ("named", "options", "expected"),
    [
        ((), (), ["--model-control-mode=explicit", "--load-model=*"]),
        (("a", "b"), (), ["--model-control-mode=explicit", "--load-model=a", "--load-model=b"]),
        ((), ("--model-control-mode=poll",), []),
        ((), ("--model-control-mode", "none"), []),
    ],
)
def test_models_are_loaded_by_name(named: tuple[str, ...], options: tuple[str, ...], expected: list[str]) -> None:
    assert choices.loading(named, options, by_name=True) == expected
