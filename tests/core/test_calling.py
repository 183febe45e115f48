"""How a torch module is called and what it gives, without torch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from repo_builder.core.calling import argument_order, outputs_of


class Tensor:
    """What counts as a tensor: it can be detached."""

    def detach(self) -> Tensor:
        return self


A, B = Tensor(), Tensor()


@dataclasses.dataclass
class Answer:
    second: Any
    first: Any
    loss: Any = None


@pytest.mark.parametrize(
    ("result", "names", "expected"),
    [
        (A, ("first",), (A,)),
        ((A, B), ("first", "second"), (A, B)),
        ([A, (B, None)], ("first", "second"), (A, B)),
        ({"second": B, "first": A}, ("first", "second"), (A, B)),
        ({"one": A, "two": B}, ("first", "second"), (A, B)),
        ({"second": B, "first": A, "more": A}, ("first",), (A,)),
        (Answer(second=B, first=A), ("first", "second"), (A, B)),
        (Answer(second=B, first=A), ("x", "y"), (B, A)),
        ("text", (), ()),
    ],
)
def test_outputs_go_by_name_where_there_are_names(result: Any, names: tuple[str, ...], expected: tuple[Any]) -> None:
    assert outputs_of(result, names) == expected


class Module:
    def __init__(self, forward: Any) -> None:
        self.forward = forward


@pytest.mark.parametrize(
    ("forward", "names", "expected", "said"),
    [
        (lambda left, right: None, ("right", "left"), ("left", "right"), ""),
        (lambda left, right, scale=1: None, ("right", "left"), ("left", "right"), ""),
        (lambda x: None, ("image",), ("image",), ""),
        (lambda *items: None, ("a", "b"), ("a", "b"), ""),
        (lambda x, y: None, ("a", "b"), ("a", "b"), "forward takes (x, y) and the recipe names (a, b)"),
        (lambda x, scale=1, y=None: None, ("y", "x"), ("y", "x"), "in the recipe's order"),
    ],
)
def test_inputs_go_by_name_where_forward_has_them(
    forward: Any, names: tuple[str, ...], expected: tuple[str, ...], said: str
) -> None:
    order, warning = argument_order(Module(forward), names)
    assert order == expected
    assert said in warning
    assert bool(said) == bool(warning)
