"""Files as they are: folders of images or texts, lines of a .txt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from repo_builder import datasets
from repo_builder.core import encoded
from repo_builder.core.errors import DataError
from repo_builder.core.recipe import DataSpec
from repo_builder.core.tensors import DType, TensorSpec

TEXT = (TensorSpec(name="text", dtype=DType.STRING, shape=(1,)),)


def load(source: Path) -> datasets.Dataset:
    return datasets.load(DataSpec(source=str(source)), inputs=TEXT, seed=0)


def test_a_folder_of_files_is_their_contents_and_their_classes(tmp_path: Path) -> None:
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        for place in range(9):
            (tmp_path / name / f"{place}.txt").write_bytes(f"{name} {place}\0".encode())  # as it is, NUL and all
        (tmp_path / name / "notes.md").write_text("no sample")
    found = load(tmp_path)
    samples = found.split("test")
    assert found.classes == ("bad", "good")
    for row, label in zip(samples.inputs["text"], samples.labels, strict=True):  # type: ignore[arg-type]
        assert row[0].startswith(found.classes[label].encode())
        assert row[0].endswith(b"\0")
    (tmp_path / "good" / "0.txt").write_bytes(b"another")
    assert load(tmp_path).fingerprint != found.fingerprint


def test_lines_are_texts_without_labels(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("".join(f"größe {place}\n\n" for place in range(9)), encoding="utf-8")
    found = load(tmp_path / "some.txt")
    assert found.split("test").labels is None
    assert sum(len(part) for part in found.parts.values()) >= 9
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no text"):
        load(tmp_path / "none.txt")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "bad.txt")


def test_texts_of_an_npz_have_the_shape_that_config_pbtxt_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", text=np.array(["a", "bc"] * 6), y=np.array([0, 1] * 6))
    assert load(tmp_path / "some.npz").split("test").inputs["text"].shape[1:] == (1,)


def test_a_class_without_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        load(tmp_path)
    assert encoded.files_of(tmp_path) == []


def test_steps_stand_between_what_is_sent_and_what_is_fed(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("".join(f"{place}\n" for place in range(20)))
    raw, calls = load(tmp_path / "some.txt"), []

    def steps(sent: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        calls.append(len(sent["text"]))
        return {"x": np.array([[float(item)] for item in sent["text"][:, 0]], np.float32)}

    fed = raw.through(steps, [TensorSpec(name="x", dtype=DType.FP32, shape=(1,))], key="k")
    assert fed.parts["test"].tolist() == raw.parts["test"].tolist()
    np.testing.assert_array_equal(
        fed.split("test").inputs["x"][:, 0], raw.split("test").inputs["text"][:, 0].astype(float)
    )
    fed.split("test")
    assert len(calls) == 1  # once for each part
    assert fed.fingerprint != raw.fingerprint
    assert fed.held_out == raw.held_out


def test_bytes_of_a_users_function_are_whole(tmp_path: Path) -> None:
    (tmp_path / "loader.py").write_text("def read():\n    return [b'a\\0', b'bc\\0\\0'] * 8, [0, 1] * 8\n")
    found = load(f"{tmp_path / 'loader.py'}:read")  # type: ignore[arg-type]
    assert set(found.split("test").inputs["text"][:, 0]) == {b"a\0", b"bc\0\0"}
