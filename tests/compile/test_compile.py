from __future__ import annotations

from typing import Any

import pytest

from repo_builder import compile as room
from repo_builder.core.errors import CompileError, MissingDependency


class Here:
    name = "here"

    def unavailable(self) -> str | None:
        return None


class Elsewhere:
    name = "elsewhere"

    def unavailable(self) -> str | None:
        return "there is no GPU"


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {"elsewhere": Elsewhere, "here": Here}

    def target(name: str) -> Any:
        if name == "uninstalled":
            raise MissingDependency("it needs the library 'tensorrt', which is not installed")
        return made[name]()

    monkeypatch.setattr(room, "target", target)
    monkeypatch.setattr(room, "TARGETS", {"uninstalled": ("", ""), "elsewhere": ("", ""), "here": ("", "")})


@pytest.mark.usefixtures("targets")
def test_auto_takes_the_first_that_works_and_says_why() -> None:
    chosen, reason = room.choose("auto")
    assert chosen.name == "here"
    assert "not uninstalled: it needs the library 'tensorrt'" in reason
    assert "not elsewhere: there is no GPU" in reason


@pytest.mark.usefixtures("targets")
def test_auto_says_why_it_takes_the_first_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "TARGETS", {"here": ("", "")})
    assert room.choose("auto")[1] == "here (the first choice, and what it needs is here)"


@pytest.mark.usefixtures("targets")
def test_a_named_target_is_not_replaced_by_another() -> None:
    assert room.choose("here")[0].name == "here"
    with pytest.raises(CompileError, match="target 'elsewhere' cannot be used here: there is no GPU"):
        room.choose("elsewhere")
    with pytest.raises(MissingDependency):
        room.choose("uninstalled")


def test_no_target_at_all_lists_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "TARGETS", {"elsewhere": ("", "")})
    monkeypatch.setattr(room, "target", lambda _: Elsewhere())
    with pytest.raises(CompileError, match="no compile target works here: not elsewhere: there is no GPU"):
        room.choose("auto")


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(CompileError, match=r"no compile target 'tensorrtt' → did you mean 'tensorrt'"):
        room.target("tensorrtt")
