"""Repairs of what int8 loses, without training: each is tried, judged by the network's outputs, and kept or dropped.

    protocol.py   what a repair is given and gives back
    equalize.py   channels between two layers brought to one size (chains.py: which layers)
    smooth.py     outliers of norms moved into the weights behind them
    rounding.py   weights rounded up or down as the layer's outputs ask (patches.py: what weights multiply)
    bias.py       shifts of means taken back in biases
    linear.py     layers as repairs see them, and how a graph gets new constants

The first two change the fp32 graph without changing what it computes; the others stand in the ranges and take effect
where a layer is int8. A new repair is a file, a row of ``TABLE`` and a key of ``RepairSpec``.

Judged is the graph placed for a target, on calibration samples that no repair has seen, against the graph that came.
Ranges are found on all calibration samples, those included, before and after a repair alike, and ``best`` chooses for
the graph that came and for each that a repair made: both sides of a comparison are what a build would place. So what
stays is never worse on these samples than no repair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from repo_builder.core import progress
from repo_builder.core.recipe import RepairSpec
from repo_builder.core.records import RepairRecord
from repo_builder.quantize.judge import Judge
from repo_builder.quantize.placement import place
from repo_builder.quantize.repair.bias import correct_bias
from repo_builder.quantize.repair.equalize import equalize
from repo_builder.quantize.repair.protocol import Repair, Repaired, State, Work
from repo_builder.quantize.repair.rounding import adaptive
from repo_builder.quantize.repair.smooth import smooth

__all__ = ["TABLE", "Repaired", "Row", "State", "Work", "repaired"]

_NOISE_DB = 0.005  # a repair that gains less than what is shown gains nothing, and is not worse


@dataclass(frozen=True, kw_only=True)
class Row:
    """A repair's row.

    Attributes:
        key: Its key in the recipe.
        asked: Whether a recipe asks for it.
        repair: What it does.
    """

    key: str
    asked: Callable[[RepairSpec], bool]
    repair: Repair


# in the order in which they are made
TABLE = (
    Row(key="equalize", asked=lambda spec: spec.equalize, repair=equalize),
    Row(key="smooth", asked=lambda spec: spec.smooth is not None, repair=smooth),
    Row(key="rounding", asked=lambda spec: spec.rounding == "adaptive", repair=adaptive),
    Row(key="correct_bias", asked=lambda spec: spec.correct_bias, repair=correct_bias),
)


def repaired(state: State, work: Work, judge: Judge) -> tuple[State, tuple[RepairRecord, ...]]:
    """Make the repairs that the recipe asks for, and say of each what it did and gained.

    Args:
        state: The network as it came, calibrated.
        work: What the repairs share.
        judge: Knows the network's outputs in fp32 on samples that ``work`` has not.

    Raises:
        QuantizeError: The network does not run, or a layer has no range.
    """
    records: list[RepairRecord] = []
    db = _keeps(state, work, judge)
    for row in (row for row in TABLE if row.asked(work.spec.repair)):
        with progress.step(f"repair: {row.key}") as step:
            state, record = _tried(row, state, work, judge, db)
            step.note(str(record))
        if record.kept and record.after_db is not None:
            db = record.after_db
        records.append(record)
    return state, tuple(records)


def _tried(row: Row, state: State, work: Work, judge: Judge, before: float) -> tuple[State, RepairRecord]:
    """Make one repair, and keep it or not."""
    made = row.repair(state, work)
    if made.state is None:
        return state, RepairRecord(
            name=row.key, did=made.did, samples=len(judge), before_db=round(before, 3), kept=False
        )
    after = _keeps(made.state, work, judge)
    kept = after >= before - _NOISE_DB or work.spec.repair.keep == "all"
    record = RepairRecord(
        name=row.key,
        did=made.did,
        samples=len(judge),
        before_db=round(before, 3),
        after_db=round(after, 3),
        kept=kept,
    )
    return (made.state if kept else state), record


def _keeps(state: State, work: Work, judge: Judge) -> float:
    return judge.keeps(place(state.model, work.plans, state.ranges, work.profile).model)
