from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core import codec, foreign
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import reading
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


@dataclass(frozen=True, kw_only=True)
class Circle:
    shape: Literal["circle"] = "circle"
    radius: float


@dataclass(frozen=True, kw_only=True)
class Box:
    shape: Literal["box"] = "box"
    sides: tuple[int, int]

    def __post_init__(self) -> None:
        if self.sides[0] > self.sides[1]:
            raise RecipeError("the longer side comes last", where="sides")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shapes: tuple[Circle | Box, ...] = ()
    by_name: dict[str, Circle] = field(default_factory=dict)
    size: int | Literal["auto"] = "auto"
    path: Path | None = None
    free: dict[str, Any] = field(default_factory=dict)


shapes = st.one_of(
    st.builds(Circle, radius=st.floats(allow_nan=False, allow_infinity=False)),
    st.builds(Box, sides=st.tuples(st.integers(-9, 0), st.integers(1, 2**60))),
)
drawings = st.builds(
    Drawing,
    shapes=st.lists(shapes, max_size=3).map(tuple),
    by_name=st.dictionaries(st.text(max_size=5), st.builds(Circle, radius=st.floats(0, 1)), max_size=2),
    size=st.one_of(st.just("auto"), st.integers(-5, 5)),
    path=st.one_of(st.none(), st.text("abc/", min_size=1, max_size=6).map(Path)),
    free=st.dictionaries(
        st.text(max_size=3), st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text()), max_size=3
    ),
)


@given(drawings, st.booleans())
def test_what_is_written_is_read_back(drawing: Drawing, nulls: bool) -> None:
    assert codec.build(Drawing, json.loads(json.dumps(codec.plain(drawing, nulls=nulls)))) == drawing


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"shapes": [{"shape": "bix"}]}, r"shapes\[0\]\.shape: 'bix' is not one of circle, box → did you mean 'box'"),
        ({"shapes": [{}]}, r"shapes\[0\]: the key 'shape' is missing → one of circle, box"),
        ({"shapes": [3]}, r"shapes\[0\]: expected a table, found 3"),
        ({"shapes": [{"shape": "box", "sides": [1]}]}, r"shapes\[0\]\.sides: expected 2 items, found 1"),
        ({"shapes": [{"shape": "box", "sides": [2, 1]}]}, r"shapes\[0\]\.sides: the longer side comes last"),
        ({"shapes": [{"shape": "circle", "radius": float("nan")}]}, r"radius: nan is not a finite number"),
        ({"by_name": {"a": {"radius": "1"}}}, r"by_name\.a\.radius: expected a number, found '1'"),
        ({"size": "atuo"}, "size: expected a whole number, found 'atuo' and 'atuo' is not one of auto"),
        ({"size": True}, "size: expected a whole number, found True and True is not one of auto"),
        ({"path": 3}, "path: expected a string, found 3"),
        ({"k" * 5000: 3}, "unknown key"),
        ({"size": 10**400}, "a number of about 401 digits is too large"),
    ],
)
def test_what_fits_no_member_is_named(value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        codec.build(Drawing, value)
    assert len(str(caught.value)) < 500


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


def test_deep_values_are_one_sentence() -> None:
    with pytest.raises(RecipeError, match="is nested too deep"):
        codec.build(Drawing, {"free": {"a": nested(500)}})
    assert codec.build(Drawing, {"free": {"a": nested(20)}}).free == {"a": nested(20)}


@pytest.mark.parametrize("text", ["1979-05-27T07:32:00Z", "1979-05-27", "07:32:00"])
def test_dates_of_toml_are_refused_where_anything_may_stand(text: str) -> None:
    value = {"a": [reading.value(text)]}
    with pytest.raises(RecipeError, match=r"free\.a\[0\]: expected text, a number, a list or a table, found datetime"):
        codec.build(Drawing, {"free": value})


@pytest.mark.parametrize(("text", "told"), [("[" * 100_000, "nested too deep"), ("1" * 5000, "thousands of digits")])
def test_text_that_python_cannot_hold_is_one_sentence(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        foreign.parsed(json.loads, text)
    assert foreign.parsed(json.loads, "[1]") == [1]
