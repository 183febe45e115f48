from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.measure.load import input_data
from repo_builder.measure.wire.model import ServedModel

X = TensorSpec(name="x", dtype=DType.FP32, shape=(2, 2))
IDS = TensorSpec(name="ids", dtype=DType.INT64, shape=(-1,))
WORDS = TensorSpec(name="words", dtype=DType.STRING, shape=(1,))


def model(*inputs: TensorSpec, optional: tuple[str, ...] = ()) -> ServedModel:
    return ServedModel(
        name="m", version="1", backend="b", inputs=inputs, outputs=(), max_batch_size=8, batch_axis=True,
        optional=frozenset(optional),
    )  # fmt: skip


def read(folder: Path, document: Any, *inputs: TensorSpec, **shapes: tuple[int, ...]) -> input_data.Given:
    path = folder / "data.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return input_data.read(path, model(*inputs), shapes)


@pytest.mark.parametrize(
    "value",
    [
        [1, 2, 3, 4],
        [[1, 2], [3, 4]],
        {"content": [1, 2, 3, 4]},
        {"content": [1, 2, 3, 4], "shape": [2, 2]},
        {"b64": base64.b64encode(np.array([1, 2, 3, 4], np.float32).tobytes()).decode()},
    ],
)
def test_tensors_as_perf_analyzer_writes_them(tmp_path: Path, value: Any) -> None:
    found = read(tmp_path, {"data": [{"x": value}] * 3}, X).samples["x"]
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (np.float32, (3, 2, 2))
    assert found[0].tolist() == [[1, 2], [3, 4]]


def test_dynamic_inputs_strings_and_several_inputs(tmp_path: Path) -> None:
    rows = [{"ids": [1, 2, 3], "words": ["a"]}, {"ids": {"content": [4, 5, 6], "shape": [3]}, "words": ["bc"]}]
    given = read(tmp_path, {"data": rows}, IDS, WORDS)
    assert np.array_equal(given.samples["ids"], [[1, 2, 3], [4, 5, 6]])
    assert [item[0] for item in given.samples["words"]] == ["a", "bc"]
    assert read(tmp_path, {"data": [{"ids": [1, 2]}]}, IDS, ids=(2,)).samples["ids"][0].tolist() == [1, 2]


def test_lists_of_lists_are_sequences(tmp_path: Path) -> None:
    given = read(tmp_path, {"data": [[{"ids": [1]}, {"ids": [2]}], [{"ids": [3]}]]}, IDS)
    assert given.streams == (2, 1)
    assert np.array_equal(given.samples["ids"], [[1], [2], [3]])


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ([], "has no list 'data'"),
        ({"data": 3}, "has no list 'data'"),
        ({"data": []}, "lacks the input 'x'"),
        ({"data": [{"y": [1]}]}, r"data\[0\]: the model has no input 'y'"),
        ({"data": [{"x": [1, 2, 3]}]}, "holds 3 values, and"),
        ({"data": [{"x": ["a", "b", "c", "d"]}]}, "does not hold numbers"),
        ({"data": [{"x": [[1, 2], [3]]}]}, "cannot be read|numbers"),
        ({"data": [{"x": None}]}, "does not hold numbers"),
        ({"data": [{"x": {"content": [1, 2, 3, 4], "shape": "no"}}]}, "its shape is no list"),
        ({"data": [{"x": {"content": [1, 2, 3, 4], "shape": [4]}}]}, "does not fit the input x"),
        ({"data": [{"x": {"b64": "!"}}]}, "is no base64"),
        ({"data": [{"x": {"b64": "AAAA"}}]}, "came with 3 bytes"),
        ({"data": [{"x": [1, 2, 3, 4]}, {"z": [1]}]}, r"data\[1\]: does not hold the same inputs"),
        ({"data": [{"x": [1, 2, 3, 4]}, [{"x": [1, 2, 3, 4]}]]}, "mixes single requests"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path: Path, document: Any, words: str) -> None:
    with pytest.raises(MeasureError, match=words):
        read(tmp_path, document, X)


def test_whole_numbers_must_be_whole(tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match="holds numbers that are no int64"):
        read(tmp_path, {"data": [{"ids": [1.5]}]}, IDS)


def test_arrays_of_a_npz(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.ones((3, 2, 2), np.float32), words=np.array([["a"], ["b"], ["c"]]), other=np.ones(5))
    given = input_data.read(path, model(X, WORDS), {})
    assert set(given.samples) == {"x", "words"}
    assert given.samples["words"][1].tolist() == ["b"]
    with pytest.raises(MeasureError, match="lacks the input 'ids'"):
        input_data.read(path, model(X, IDS), {})
    assert input_data.read(path, model(X, IDS, optional=("ids",)), {}).samples.keys() == {"x"}
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MeasureError, match="cannot be read"):
        input_data.read(path, model(X), {})
    with pytest.raises(MeasureError, match="cannot be read"):
        input_data.read(tmp_path / "none.npz", model(X), {})
