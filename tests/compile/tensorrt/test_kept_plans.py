"""A plan is found again where all is the same that decides what it computes; the builder is stood in for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from repo_builder.compile.tensorrt import kept_plans
from repo_builder.core.tensors import ShapeProfile


@dataclasses.dataclass(frozen=True)
class Request:
    model: Path
    profiles: Any = ({"x": ShapeProfile(min=(1, 2), opt=(1, 2), max=(1, 2))},)
    timing_cache: Path | None = None
    threads: int | None = None
    optimization_level: int | None = None
    pinned: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Made:
    plan: bytes
    seconds: float
    flags: tuple[str, ...] = ("INT8",)
    constraints: int = 2
    cached_tactics_bytes: int = 3
    notes: tuple[str, ...] = ()
    reused: bool = False


class Builder:
    def __init__(self, folder: Path, machine: str = "8.6 H200") -> None:
        self.builds = 0
        kind: Any = Made
        self.run: Any = kept_plans.keeping(self.build, folder / "plans", machine, kind)

    def build(self, request: Any, say: Any) -> Any:
        self.builds += 1
        return Made(plan=b"plan\n" * self.builds, seconds=54.0)


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    (tmp_path / "m.onnx").write_bytes(b"graph")
    return Request(model=tmp_path / "m.onnx")


def test_the_same_is_built_once_and_says_so(tmp_path: Path, request_: Request) -> None:
    builder = Builder(tmp_path)
    first, again = builder.run(request_, print), builder.run(dataclasses.replace(request_, threads=4), print)
    assert (builder.builds, first.reused, again.reused) == (1, False, True)
    assert (again.plan, again.flags, again.constraints) == (first.plan, first.flags, first.constraints)
    assert again.seconds < 54
    assert again.notes == ("the plan was built before, in 54 s: it is used again",)


@pytest.mark.parametrize("change", [{"optimization_level": 2}, {"pinned": frozenset({"a"})}, {"profiles": ()}])
def test_what_decides_what_a_plan_computes_is_built_anew(
    tmp_path: Path, request_: Request, change: dict[str, Any]
) -> None:
    builder = Builder(tmp_path)
    builder.run(request_, print)
    assert not builder.run(dataclasses.replace(request_, **change), print).reused


def test_another_graph_or_machine_is_built_anew(tmp_path: Path, request_: Request) -> None:
    Builder(tmp_path).run(request_, print)
    assert not Builder(tmp_path, "8.6 H100").run(request_, print).reused
    request_.model.write_bytes(b"another")
    assert not Builder(tmp_path).run(request_, print).reused


def test_a_damaged_file_is_replaced(tmp_path: Path, request_: Request) -> None:
    Builder(tmp_path).run(request_, print)
    (kept,) = (tmp_path / "plans").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert not Builder(tmp_path).run(request_, print).reused
    assert Builder(tmp_path).run(request_, print).reused


def test_the_oldest_go(tmp_path: Path, request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_plans, "MOST_BYTES", 1)
    builder = Builder(tmp_path)
    for level in (1, 2, 3):
        builder.run(dataclasses.replace(request_, optimization_level=level), print)
    assert len(list((tmp_path / "plans").iterdir())) == 1
    assert builder.run(dataclasses.replace(request_, optimization_level=3), print).reused
