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


@pytest.mark.parametrize(("large_bytes", "expected"), [(1 << 30, 3), (0, 1)])
def test_turns_go_through_several_sessions_of_each_file_but_of_large_ones(
    quantized: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large_bytes: int, expected: int
) -> None:
    monkeypatch.setattr(speed, "_SECONDS", 0.0)
    monkeypatch.setattr(speed, "_LARGE_BYTES", large_bytes)
    ran: dict[str, dict[int, list[int]]] = {"reference": {}, "candidate": {}}
    for name in ran:
        onnx.save(quantized, tmp_path / f"{name}.onnx")
    places: dict[int, tuple[str, int]] = {}
    made = speed._session

    def session(path: Path) -> object:
        found = made(path)
        places[id(found)] = (path.stem, len(ran[path.stem]))
        ran[path.stem][len(ran[path.stem])] = []
        return found

    turns: list[tuple[str, int]] = []

    def turn(session: object, feed: object, repeat: int) -> float:
        turns.append(places[id(session)])
        return 1e-3

    monkeypatch.setattr(speed, "_session", session)
    monkeypatch.setattr(speed, "_turn", turn)
    speed.compare(tmp_path / "reference.onnx", tmp_path / "candidate.onnx", {1: {"image": SAMPLES["image"][:1]}})
    del turns[0]  # how often a turn has to run it
    assert {name: len(items) for name, items in ran.items()} == {"reference": expected, "candidate": expected}
    pairs = [(turns[place], turns[place + 1]) for place in range(0, len(turns), 2)]
    assert all(one[1] == other[1] and {one[0], other[0]} == set(ran) for one, other in pairs), "turns are of one pair"
    firsts = {(place, first) for (first, place), _ in pairs}
    assert len(firsts) == 2 * expected, "each file of each pair is first in some turn"


def test_what_is_timed_is_samples_as_the_model_takes_them() -> None:
    found = timed.feeds(batches(), SAMPLES, most=5)
    assert {size: feed["image"].shape for size, feed in found.items()} == {1: (1, 3, 8, 8), 5: (5, 3, 8, 8)}
    np.testing.assert_array_equal(found[5]["image"][3], SAMPLES["image"][0])
    assert list(timed.feeds(batches(), SAMPLES, most=0)) == [1]
    assert list(timed.feeds(batches(size=4, fixed=True), SAMPLES, most=32)) == [4]
    assert list(timed.feeds(batches(size=1), SAMPLES, most=32)) == [1]
