"""What samples say of the task, for outputs of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repo_builder.core.tensors import DType
from repo_builder.flows.init import samples
from repo_builder.flows.init.facts import Facts, Tensor


def tensor(name: str, *shape: int, dtype: DType = DType.FP32) -> Tensor:
    return Tensor(name=name, dtype=dtype, shape=shape)


def facts(*outputs: Tensor) -> Facts:
    inputs = (tensor("x", 3),)
    return Facts(
        source="net.onnx", arguments={}, inputs=inputs, outputs=outputs, layers=(), batches=True, batch_reason=""
    )


CLASSES, VALUES = np.arange(60) % 4, np.linspace(0, 1, 60)


@pytest.mark.parametrize(
    ("outputs", "labels", "task", "output", "settled"),
    [
        ((tensor("y", 4),), CLASSES, "classification", None, True),
        ((tensor("boxes", 9, 4), tensor("logits", 4)), CLASSES, "classification", "logits", True),
        ((tensor("y", 7),), CLASSES, "other", None, False),  # no output has a number a class
        ((tensor("ids", 4, dtype=DType.INT64),), CLASSES, "other", None, False),
        ((tensor("y", 1),), VALUES, "other", None, True),
        ((tensor("y", 4),), None, "classification", None, False),  # a guess by the shape
    ],
)
def test_the_task_follows_from_labels_and_outputs(
    tmp_path: Path, outputs: tuple[Tensor, ...], labels: Any, task: str, output: str | None, settled: bool
) -> None:
    path = tmp_path / "some.npz"
    arrays = {"x": np.ones((60, 3), np.float32)} | ({} if labels is None else {"y": labels})
    np.savez(path, **arrays)
    told = samples.read("net", facts(*outputs), str(path))
    assert (told.task, told.output) == (task, output)
    assert (told.undecided == ()) is settled


def test_without_samples_the_arrays_are_told() -> None:
    told = samples.read("net", facts(tensor("y", 4)), None)
    assert told.source == "net.npz"
    assert "'x' fp32 (samples, 3)" in told.undecided[0]
