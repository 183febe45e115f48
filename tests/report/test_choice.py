"""The verdict of a build: what to serve, what stands beside it, what would change it; never from what chance may be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.details import DropRecord, OnnxRuntimeDetails, SpeedRecord, TensorRTDetails, TriedRecord
from repo_builder.core.recipe import parse
from repo_builder.core.records import AccuracyRecord, LayerRecord
from repo_builder.report import choice

RECIPE = parse({
    "name": "net",
    "model": {
        "source": "vgg",
        "inputs": [{"name": "image", "dtype": "fp32", "shape": [3, 8, 8]}],
        "outputs": [{"name": "logits", "dtype": "fp32", "shape": [10]}],
    },
    "data": {"source": "digits"},
})  # fmt: skip


def test_a_simulation_is_nothing_to_serve() -> None:
    made = engine((row(0.4),), got="fp32")
    layers = tuple(dataclasses.replace(item, asked="fp8", values="fp8", reason="x") for item in made.layers)
    line = choice.verdict(dataclasses.replace(made, layers=layers))[0]
    assert line.startswith("Verdict: serve something else here: its 2 layers in fp8 are computed in float")
    assert "0.40 times as fast as fp32" in line


def row(speedup: float, batch: int = 1, reach: float = 0.02) -> SpeedRecord:
    return SpeedRecord(
        batch_size=batch, reference_us=100 * speedup, candidate_us=100, low=speedup - reach, high=speedup + reach
    )


def engine(speed: tuple[SpeedRecord, ...], got: str = "int8", **details: Any) -> EngineArtifact:
    layers = tuple(LayerRecord(name=name, type="Conv2d", asked="int8", got=got) for name in ("a", "b"))
    return EngineArtifact(
        path=Path("build/net/engine"),
        key="k",
        recipe=RECIPE,
        inputs=RECIPE.model.inputs,
        outputs=RECIPE.model.outputs,
        environment={"cpu": "Some CPU"},
        layers=layers,
        accuracy=tuple(
            AccuracyRecord(form=form, samples=600, top1=top1) for form, top1 in (("fp32", 0.9), ("x", 0.89))
        ),
        details=OnnxRuntimeDetails(max_batch_size=8, speed=speed, **details),
    )


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ((2.0, 1.8), "Verdict: serve int8 here: 2.00 times as fast as fp32 at batch 1 (1.98 – 2.02), 1.80 at batch 32"),
        ((0.5, 0.9), "Verdict: serve fp32 here, not the int8 that was built as asked"),
        ((0.5, 1.9), "Verdict: it depends on the batch"),
        ((1.0, 1.01), "alike here"),
    ],
)
def test_what_to_serve_follows_the_intervals(speeds: tuple[float, float], expected: str) -> None:
    first, *_ = choice.verdict(engine((row(speeds[0]), row(speeds[1], 32))))
    assert expected in first
    assert "Top-1 89.00 %, fp32 90.00 % (-1.00 points), on 600 held-out samples." in first


def test_alternatives_and_what_would_change_it_are_what_was_measured() -> None:
    drop = DropRecord(points=1.5, low=1, high=2, samples=1000)
    tried = (
        TriedRecord(what="all in fp32", speed=(row(1.0),)),
        TriedRecord(what="all in int8", speed=(row(3.0),), drop=drop, fits=False),
        TriedRecord(what="int8 but a", left=("a",), speed=(row(2.0),), chosen=True, drop=drop),
        TriedRecord(what="int8 but b", speed=(row(0.9),), against="int8 but a"),
    )
    _, heading, *lines, last = choice.verdict(engine((row(2.0),), tried=tried, searched=True))
    assert heading == "Measured beside it (CPU time of one thread of Some CPU, in turns):"
    (line,) = lines
    assert line.startswith(
        "  all in int8: 3.00 times as fast as fp32 at batch 1 (2.98 – 3.02); 1.50 ± 0.00 points of top-1 lost"
    )
    assert line.endswith("beyond the limit")
    assert "a limit that admits 'all in int8' (3.00 times as fast as fp32" in last
    assert "--search" not in last


def test_how_a_choice_stands_to_the_limit_is_said_as_far_as_it_is_known() -> None:
    drop = DropRecord(points=0.2, low=0, high=1, samples=1000, changed=10)
    held = dataclasses.replace(drop, points=0.7, samples=4000)
    assert choice.standing(TriedRecord(what="a", fits=True)) == ""
    assert choice.standing(TriedRecord(what="a")) == "outputs not looked at"
    assert not choice.refused(TriedRecord(what="a"))
    failed = TriedRecord(what="a", fits=True, drop=drop, held=held, holds=False)
    assert choice.refused(failed)
    assert "samples that chose nothing" in choice.standing(failed)
    assert choice.cost(failed).startswith("0.70 ± ")
    assert "on 4,000 validation samples that chose nothing" in choice.cost(failed)


def test_fp32_is_said_with_the_fastest_below_it() -> None:
    tried = (
        TriedRecord(what="all of them", speed=(row(0.6),)),
        TriedRecord(what="none of them", chosen=True),
    )
    first, *_, last = choice.verdict(engine((), got="fp32", tried=tried))
    assert first.startswith(
        "Verdict: serve fp32 here: the fastest below it (int8, all of them) does not pay, 0.60 times"
    )
    assert "build --search" in last


def test_nothing_is_said_of_what_was_not_timed() -> None:
    plan = dataclasses.replace(engine(()), details=TensorRTDetails(max_batch_size=8, gpu="Some GPU"))
    first, last = choice.verdict(plan)
    assert first.startswith("Verdict: int8 was built as the recipe asks; nothing was timed beside it.")
    assert "times as fast" not in first + last
