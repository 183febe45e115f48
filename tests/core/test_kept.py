from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from repo_builder.core import kept
from repo_builder.core.errors import RepositoryError


def test_forms_come_back_in_their_order(tmp_path: Path) -> None:
    forms = {
        "fp32": {"a/b": np.ones((2, 3), np.float32), "text": np.array([["é"], ["long"]], object)},
        "exported": {"a/b": np.zeros((2, 3), np.float32), "text": np.array([[b"x"], [b"y"]])},
    }
    kept.save(tmp_path, forms)
    found = kept.load(tmp_path)
    assert list(found) == ["fp32", "exported"]
    assert list(found["fp32"]) == ["a/b", "text"]
    assert found["fp32"]["text"].tolist() == [["é"], ["long"]]
    assert found["exported"]["text"].tolist() == [["x"], ["y"]]
    np.testing.assert_array_equal(found["fp32"]["a/b"], forms["fp32"]["a/b"])


def test_nothing_and_damage(tmp_path: Path) -> None:
    assert kept.load(tmp_path) == {}
    (tmp_path / kept.OUTPUTS).write_bytes(b"PK\3\4 no archive")
    with pytest.raises(RepositoryError, match=r"outputs\.npz: is no .npz file"):
        kept.load(tmp_path)
