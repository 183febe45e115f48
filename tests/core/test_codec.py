from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from repo_builder.core import codec
from repo_builder.core.errors import RecipeError
from repo_builder.core.tensors import DType


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    dtype: DType
    share: float = 0.5
    flag: bool = False
    note: str | None = None
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()
    free: dict[str, int] = field(default_factory=dict)


def test_values_take_the_types_of_the_annotations() -> None:
    made = codec.build(Outer, {"dtype": "FP16", "share": 1, "many": [{"size": 3}], "inner": {"size": 1, "kind": "b"}})
    assert made == Outer(dtype=DType.FP16, share=1.0, many=(Inner(size=3),), inner=Inner(size=1, kind="b"))
    assert isinstance(made.share, float)


def test_plain_leaves_out_what_is_none() -> None:
    assert codec.plain(Outer(dtype=DType.INT8, many=(Inner(size=1),))) == {
        "dtype": "int8", "share": 0.5, "flag": False, "many": [{"size": 1, "kind": "a"}], "free": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "at: expected a table, found"),
        ({}, r"at: the key 'dtype' is missing → add at\.dtype = "),
        ({"dtype": "fp32", "fre": {}}, r"at\.fre: unknown key 'fre' → did you mean 'free'"),
        ({"dtype": "fp32", "flag": 1}, r"at\.flag: expected true or false, found 1"),
        ({"dtype": "fp32", "note": 1}, r"at\.note: expected a string, found 1"),
        ({"dtype": "fp32", "free": 1}, r"at\.free: expected a table"),
        ({"dtype": "fp32", "many": [{"size": 1}, {"size": "x"}]}, r"at\.many\[1\]\.size: expected a whole number"),
        ({"dtype": "fp32", "inner": {"size": 1, "kind": "c"}}, r"at\.inner\.kind: 'c' is not one of a, b"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        codec.build(Outer, value, "at")
