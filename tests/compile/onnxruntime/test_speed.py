from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from repo_builder.compile.onnxruntime import speed
from repo_builder.core.tensors import DType, TensorSpec


def test_both_files_are_timed_in_turns(
    quantized: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    path = tmp_path / "model.onnx"
    onnx.save(quantized, path)
    spec = TensorSpec(name="image", dtype=DType.FP32, shape=(3, 8, 8))
    rows = speed.compare(path, path, (spec,), batch_sizes=[1, 4])
    assert [row.batch_size for row in rows] == [1, 4]
    for row in rows:
        assert row.speedup == pytest.approx(row.reference_us / row.candidate_us)
        assert row.reference_us > 0
