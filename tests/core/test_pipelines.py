"""What a build knows of a pipeline: written, read back, refused where it is damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from repo_builder.core import artifacts, pipelines
from repo_builder.core.errors import RepositoryError
from repo_builder.core.pipelines import PartRecord, Pipeline
from repo_builder.core.tensors import DType, TensorSpec

X = TensorSpec(name="x", dtype=DType.FP32, shape=(4,))


def pipeline(folder: Path) -> Pipeline:
    part = PartRecord(
        kind="network", folder="1.network", inputs=(X,), outputs=(X,), takes={"x": "x"}, warmup={"x": "s"}
    )
    return Pipeline(
        path=folder, key="k", name="n", steps="s", max_batch_size=4, inputs=(X,), outputs=(X,), parts=(part,),
        usual={"x": [4]},
    )  # fmt: skip


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a")
    made = replace(pipeline(tmp_path), files=artifacts.hashes(tmp_path))
    pipelines.write(made)
    assert pipelines.read(tmp_path) == made
    assert pipelines.up_to_date(tmp_path, "k") == made
    assert pipelines.up_to_date(tmp_path, "other") is None
    (tmp_path / "file").write_text("b")
    assert pipelines.up_to_date(tmp_path, "k") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "key": 3}', "\x00"])
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / pipelines.MARK).write_text(text)
    with pytest.raises(RepositoryError):
        pipelines.read(tmp_path)


def test_a_mark_says_whose_a_model_is(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    assert pipelines.marked(tmp_path) == {}
    (tmp_path / "1" / pipelines.MARK).write_text("{")
    assert pipelines.marked(tmp_path) == {}
    pipelines.mark(tmp_path / "1", pipeline="n", key="k", models=("n", "n.a1.network"))
    assert pipelines.marked(tmp_path)["pipeline"] == "n"
