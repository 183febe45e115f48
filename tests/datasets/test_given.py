"""Samples that a program holds become those of a file, however they come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from repo_builder.core.errors import DataError
from repo_builder.core.recipe import DataSpec
from repo_builder.core.tensors import DType, TensorSpec
from repo_builder.datasets import given, load

X = np.arange(24, dtype=np.float32).reshape(12, 2)
Y = np.arange(12) % 3


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, 12, 5):
        yield torch.from_numpy(X[start : start + 5]).requires_grad_(), torch.from_numpy(Y[start : start + 5])


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        (torch.from_numpy(X), Y.tolist()),
        {"features": X, "y": Y, "unused": 1},
        {"features": X, "labels": Y},
        batches(),
        list(batches()),
        [{"features": X[:7], "y": Y[:7]}, {"features": X[7:], "y": Y[7:]}],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), 4),
    ],
    ids=["tuple", "torch", "by name", "labels", "generator", "list", "list by name", "DataLoader"],
)
def test_arrays_and_loaders_give_the_same(data: Any) -> None:
    found = given.arrays(data, inputs=["features"])
    label = next(name for name in found if name != "features")
    np.testing.assert_array_equal(found["features"], X)
    np.testing.assert_array_equal(found[label], Y)


def test_what_is_kept_is_what_build_reads(tmp_path: Path) -> None:
    kept = tmp_path / "below" / "data.npz"
    given.keep({"y": X, "labels": np.array(["a", "b", "a"] * 4), "classes": ["b", "a"]}, kept, inputs=["y"])
    spec = TensorSpec(name="y", dtype=DType.FP32, shape=(2,))
    read = load(DataSpec(source=str(kept), calibration=2, test=0.5), inputs=(spec,), seed=0)
    assert read.classes == ("b", "a")
    assert read.split("test").inputs["y"].shape[1:] == (2,)
    assert set(read.split("test").labels.tolist()) <= {0, 1}, "an input that is called y is no label"


def test_several_inputs_go_in_the_recipes_order() -> None:
    found = given.arrays((X, X + 1), inputs=["a", "b"])
    assert set(found) == {"a", "b"}
    np.testing.assert_array_equal(found["b"], X + 1)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (torch.utils.data.TensorDataset(torch.from_numpy(X)), "single samples"),
        (3, "neither arrays nor a loader"),
        ([], "no batch"),
        ((X, Y, Y), "3 arrays"),
        ({"x": X}, "nothing for the input 'features'"),
        ([(X, Y), (X,)], "batch 1"),
        ([(X, Y), (X[:, :1], Y)], "batch 1"),
        ((np.array([{}, []], dtype=object), Y), "Python objects"),
        (([[1.0], [1.0, 2.0]], Y), "no array"),
    ],
)
def test_what_is_neither_is_refused_in_a_sentence(data: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        given.arrays(data, inputs=["features"])
