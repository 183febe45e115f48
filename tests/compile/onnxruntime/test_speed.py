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
    assert [row["batch_size"] for row in rows] == [1, 4]
    for row in rows:
        assert row["speedup"] == pytest.approx(row["reference_us"] / row["candidate_us"])
        assert row["reference_us"] > 0


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ((2.0, 1.8), "2.00 times as fast at batch 1 and 1.80 times as fast at batch 32."),
        ((0.5, 0.9), "int8 is SLOWER than fp32 here"),
        ((0.5, 1.9), "does not pay at every batch size"),
    ],
)
def test_the_verdict_is_plain(speedups: tuple[float, float], expected: str) -> None:
    rows = [{"batch_size": size, "speedup": value} for size, value in zip((1, 32), speedups, strict=True)]
    assert expected in speed.verdict(rows, "int8")
