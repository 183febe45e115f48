"""int8 beside fp16 on a target with plans: times are made up, graphs, outputs and accuracy are real."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from repo_builder import recipes
from repo_builder.compile import CompileOptions
from repo_builder.compile.onnxruntime.target import OnnxRuntimeRunner
from repo_builder.compile.tensorrt import profiles
from repo_builder.compile.tensorrt.regions import Piece
from repo_builder.core.artifacts import EngineArtifact, OnnxArtifact
from repo_builder.core.details import SpeedRecord, TensorRTDetails
from repo_builder.core.errors import CompileError, ExportError
from repo_builder.core.graphs import layer_of
from repo_builder.export import qdq
from repo_builder.flows import build as building
from repo_builder.flows.build import BuildOptions, compiling, lowering, paying_plans
from repo_builder.report import choice

BATCHES = (1, 8, 64, 256)
Cost = Mapping[str, float]  # precision of a layer → microseconds


class Machine:
    """Builds "plans" that are the graphs themselves; a layer takes what a table says of its precision.

    Args:
        costs: Layer → its costs; "" for the others.
        refuses: Whether fp16 beside int8 gets no plan.
    """

    name = "tensorrt"
    clock = "device time"

    def __init__(self, costs: Mapping[str, Cost], *, refuses: bool = False) -> None:
        self.costs, self.refuses, self.asked = costs, refuses, []  # type: ignore[var-annotated]

    def versions(self, recipe: Any) -> dict[str, str]:
        return {}

    def placement(self, recipe: Any) -> tuple[str, str]:
        return "tensorrt", "none"

    def compile(self, artifact: OnnxArtifact, folder: Path, *, options: CompileOptions) -> TensorRTDetails:
        kinds = set(options.layer_precisions.values())
        self.asked.append((dict(options.layer_precisions), options.most_builds))
        if self.refuses and kinds == {"int8", "fp16"}:
            raise CompileError("could not find any implementation")
        shutil.copy(options.graph, folder / "model.plan")
        return TensorRTDetails(
            max_batch_size=options.recipe.repository.max_batch_size,
            profiles=profiles.from_recipe(options.recipe),
            build_seconds=100.0,
            builds=1,
        )

    def runner(self, model_file: Path, details: Any) -> OnnxRuntimeRunner:
        return OnnxRuntimeRunner(model_file)

    def kinds(self, plan: Path) -> set[str]:
        return set(qdq.layer_precisions(onnx.load(plan)).values())

    def layers(self, plan: Path) -> dict[str, float]:
        kinds = qdq.layer_precisions(onnx.load(plan))
        return {name: self.costs.get(name, self.costs[""])[kind] for name, kind in kinds.items()}

    def in_turns(self, one: Path, other: Path, inputs: Mapping[int, Any], *, seconds: float) -> tuple[SpeedRecord, ...]:
        assert tuple(inputs) == BATCHES  # what the profiles are tuned for
        slow, fast = (sum(self.layers(plan).values()) for plan in (one, other))
        return tuple(SpeedRecord(batch_size=size, reference_us=slow, candidate_us=fast) for size in inputs)

    def pieces(self, plan: Path, nodes: Sequence[str], feeds: Mapping[int, Any]) -> tuple[Piece, ...]:
        times = self.layers(plan)
        made = {layer_of(node): node.name for node in onnx.load(plan).graph.node if layer_of(node) in times}
        return tuple(
            Piece(name=made[name], nodes=(made[name],), us=dict.fromkeys(feeds, us)) for name, us in times.items()
        )


Build = Callable[..., EngineArtifact]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Build:
    def run(machine: Machine, *settings: str) -> EngineArtifact:
        monkeypatch.setattr(compiling, "choose", lambda options, graph=None: machine)
        recipe = recipes.load("jsc-toy", settings)
        options = BuildOptions(recipe=recipe, work=tmp_path / "build", repository=tmp_path / "repository")
        return building.build(dataclasses.replace(options, target="tensorrt", force=True)).engine

    return run


def kinds(engine: EngineArtifact) -> list[str]:
    return [row.precision for row in engine.layers]


FAST, SLOW = {"int8": 1.0, "fp16": 2.0}, {"int8": 5.0, "fp16": 2.0}


def test_int8_that_is_faster_everywhere_stays_after_one_more_build(build: Build) -> None:
    machine = Machine({"": FAST})
    engine = build(machine)
    assert set(kinds(engine)) == {"int8"}
    assert [set(asked.values()) for asked, _ in machine.asked] == [{"int8"}, {"fp16"}]
    assert [most for _, most in machine.asked] == [0, 1]  # what is built beside it is built once
    assert [(row.what, row.against, row.chosen) for row in engine.details.tried] == [
        ("all of them", "fp16", True), ("none of them", "fp16", False),
    ]  # fmt: skip
    first, *_ = choice.verdict(engine)
    assert "serve int8 here: 2.00 times as fast as fp16 at batch 1, 2.00 at batch 8, 2.00 at batch 64" in first
    assert sorted(item.name for item in engine.path.iterdir() if item.is_dir()) == []


def test_int8_that_is_slower_everywhere_comes_out_in_fp16_and_says_so(build: Build) -> None:
    engine = build(Machine({"": SLOW}))
    assert set(kinds(engine)) == {"fp16"}
    assert {row.asked for row in engine.layers} == {"int8"}
    count = len(engine.layers)
    told = f"int8 does not pay here (all of them in int8: {5 * count} us to {2 * count} in fp16 at batch 1"
    assert all(row.reason.startswith(told) for row in engine.layers)
    assert qdq.layer_precisions(onnx.load(engine.model)) == dict.fromkeys([row.name for row in engine.layers], "fp16")
    assert onnx.load(engine.placed) == onnx.load(engine.model)
    first, *_ = choice.verdict(engine)
    assert "serve fp16 here: the fastest below it (int8, all of them) does not pay, 0.40 times as fast as fp16" in first


def test_a_region_that_is_slower_is_left_in_fp16_by_name(build: Build) -> None:
    names = [row.name for row in build(Machine({"": FAST})).layers]
    engine = build(Machine({"": FAST, names[0]: SLOW}))
    assert kinds(engine) == ["fp16", *["int8"] * (len(names) - 1)]
    assert engine.layers[0].reason
    assert not engine.layers[1].reason
    assert [row.what for row in engine.details.tried if row.chosen] == ["without the regions that are slower"]
    assert any(
        note.startswith(f"slower in int8: the region of {names[0]}, 5 us in int8") for note in engine.details.notes
    )
    first, *_ = choice.verdict(engine)
    assert f"serve int8 ({len(names) - 1} of {len(names)} layers) and fp16 (1 of {len(names)} layers) here" in first


def test_a_mixed_form_without_a_plan_leaves_the_better_whole(build: Build) -> None:
    names = [row.name for row in build(Machine({"": FAST})).layers]
    engine = build(Machine({"": FAST, names[0]: {"int8": 50.0, "fp16": 2.0}}, refuses=True))
    assert set(kinds(engine)) == {"fp16"}
    assert any("no plan (could not find any implementation)" in note for note in engine.details.notes)


def test_a_network_that_fp16_cannot_hold_stays_int8_and_says_so(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise ExportError("the layer's weight is too large for fp16")

    monkeypatch.setattr(lowering, "to_fp16_regions", refuse)
    machine = Machine({"": SLOW})
    engine = build(machine)
    assert (set(kinds(engine)), len(machine.asked)) == ({"int8"}, 1)
    assert "int8 was not weighed against fp16: the layer's weight is too large for fp16" in engine.details.notes


def test_fp16_that_computes_something_else_is_no_way_out(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine({"": SLOW})

    class Overflowing(OnnxRuntimeRunner):
        def __call__(self, *values: Any) -> Any:
            found = super().__call__(*values)
            return {name: np.full_like(value, np.inf) if self.half else value for name, value in found.items()}

    def runner(model_file: Path, details: Any) -> OnnxRuntimeRunner:
        made = Overflowing(model_file)
        made.half = "fp16" in machine.kinds(model_file)  # type: ignore[attr-defined]
        return made

    monkeypatch.setattr(machine, "runner", runner)
    engine = build(machine)
    assert set(kinds(engine)) == {"int8"}
    assert any("which does not compute this network" in note for note in engine.details.notes)


def test_nothing_more_is_built_where_the_recipe_says_so(build: Build) -> None:
    machine = Machine({"": SLOW})
    engine = build(machine, "quantize.keep=all")
    assert set(kinds(engine)) == {"int8"}
    assert len(machine.asked) == 1
    assert "nothing was timed beside it" in choice.verdict(engine)[0]


def test_a_mixture_that_promises_less_than_chance_is_not_built(build: Build) -> None:
    names = [row.name for row in build(Machine({"": FAST})).layers]
    machine = Machine({"": FAST, names[0]: {"int8": 2.05, "fp16": 2.0}})
    assert set(kinds(build(machine))) == {"int8"}
    assert len(machine.asked) == 2  # the plan that was asked for, and the one in fp16


@pytest.mark.parametrize(("most", "builds"), [(99, 1), (100, 2)])
def test_a_plan_that_would_not_be_there_in_time_is_not_begun(build: Build, most: int, builds: int) -> None:
    machine = Machine({"": SLOW})
    engine = build(machine, f"compile.tensorrt.weigh_seconds={most}")
    assert len(machine.asked) == builds
    told = [note for note in engine.details.notes if f"compile.tensorrt.weigh_seconds is {most}" in note]
    assert len(told) == (builds == 1)


def test_what_is_asked_for_in_fp16_is_the_graph_that_int8_was_weighed_against(build: Build) -> None:
    engine = build(Machine({"": SLOW}))
    weighed = engine.placed.read_bytes()
    again = build(Machine({"": SLOW}), 'quantize.layers=[{type="*",precision="fp16"}]')
    assert again.placed.read_bytes() == weighed


def test_a_plan_that_no_graph_could_hold_is_named() -> None:
    row = SpeedRecord(batch_size=1, reference_us=2, candidate_us=1, launched=("CUDA graph", "kernel by kernel"))
    assert paying_plans.speeds([row]) == "1 us to 2 in fp16 at batch 1 (int8 started kernel by kernel)"
