from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

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


def test_turns_go_through_several_sessions_of_each_file_one_pair_at_a_time(
    quantized: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    for name in ("reference", "candidate"):
        onnx.save(quantized, tmp_path / f"{name}.onnx")
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most, made, turns = 0, speed._session, []

    class Session:
        def __init__(self, path: Path) -> None:
            self.name, self._session = path.stem, made(path)

        def run(self, *arguments: object) -> object:
            return self._session.run(*arguments)

    def session(path: Path) -> Session:
        nonlocal most
        found = Session(path)
        alive.add(found)
        most = max(most, len(alive))
        return found

    def turn(session: Session, feed: object, repeat: int) -> float:
        turns.append((id(session), session.name))
        return 1e-3

    monkeypatch.setattr(speed, "_session", session)
    monkeypatch.setattr(speed, "_turn", turn)
    speed.compare(tmp_path / "reference.onnx", tmp_path / "candidate.onnx", {1: {"image": SAMPLES["image"][:1]}})
    del turns[0]  # how often a turn has to run it
    pairs = [(turns[place], turns[place + 1]) for place in range(0, len(turns), 2)]
    assert all({one[1], other[1]} == {"reference", "candidate"} for one, other in pairs)
    assert len(pairs) == 3 * 3, "turns of each of three pairs"
    assert {first[1] for first, _ in pairs} == {"reference", "candidate"}, "each is first in some turns"
    assert most == 2, "what is timed is in memory once"


def test_what_is_timed_is_samples_as_the_model_takes_them() -> None:
    found = timed.feeds(batches(), SAMPLES, most=5)
    assert {size: feed["image"].shape for size, feed in found.items()} == {1: (1, 3, 8, 8), 5: (5, 3, 8, 8)}
    np.testing.assert_array_equal(found[5]["image"][3], SAMPLES["image"][0])
    assert list(timed.feeds(batches(), SAMPLES, most=0)) == [1]
    assert list(timed.feeds(batches(size=4, fixed=True), SAMPLES, most=32)) == [4]
    assert list(timed.feeds(batches(size=1), SAMPLES, most=32)) == [1]
