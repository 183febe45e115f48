from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from repo_builder.compile import timed
from repo_builder.compile.onnxruntime import speed
from repo_builder.core.samples import Batches
from repo_builder.core.tensors import DType, TensorSpec

IMAGE = TensorSpec(name="image", dtype=DType.FP32, shape=(3, 8, 8))
SAMPLES = {"image": np.arange(3 * 3 * 8 * 8, dtype=np.float32).reshape(3, 3, 8, 8)}


def batches(*, size: int = 64, fixed: bool = False) -> Batches:
    return Batches(inputs=(IMAGE,), outputs=(), size=size, fixed=fixed)


def test_both_files_are_timed_in_turns(
    quantized: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    path = tmp_path / "model.onnx"
    onnx.save(quantized, path)
    rows = speed.compare(path, path, timed.feeds(batches(), SAMPLES, most=4))
    assert [row.batch_size for row in rows] == [1, 4]
    for row in rows:
        assert row.speedup == pytest.approx(row.reference_us / row.candidate_us)
        assert row.reference_us > 0


def test_what_is_timed_is_samples_as_the_model_takes_them() -> None:
    found = timed.feeds(batches(), SAMPLES, most=5)
    assert {size: feed["image"].shape for size, feed in found.items()} == {1: (1, 3, 8, 8), 5: (5, 3, 8, 8)}
    np.testing.assert_array_equal(found[5]["image"][3], SAMPLES["image"][0])
    assert list(timed.feeds(batches(), SAMPLES, most=0)) == [1]
    assert list(timed.feeds(batches(size=4, fixed=True), SAMPLES, most=32)) == [4]
    assert list(timed.feeds(batches(size=1), SAMPLES, most=32)) == [1]
