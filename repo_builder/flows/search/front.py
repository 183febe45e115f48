"""Which of the choices that were measured none beats at once in time, accuracy and size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from repo_builder.core.details import TriedRecord
from repo_builder.core.pairs import gain
from repo_builder.flows.search.bench import Bench
from repo_builder.flows.search.choices import Choice
from repo_builder.flows.search.hunt import Hunt
from repo_builder.flows.search.trials import Trial


def records(hunt: Hunt, chosen: Choice) -> tuple[TriedRecord, ...]:
    """Return what was tried, in turn, with the front marked."""
    rows = [_record(item, hunt.bench, hunt.max_drop, chosen) for item in hunt.tried.values()]
    front = pareto([_point(row) for row in rows])
    return tuple(_marked(row, on) for row, on in zip(rows, front, strict=True))


def pareto(points: Sequence[tuple[float, ...] | None]) -> list[bool]:
    """Say of each point whether none is as small in every number and smaller in one; what is None is not on it."""
    return [
        point is not None
        and not any(
            other is not None and other != point and all(a <= b for a, b in zip(other, point, strict=True))
            for other in points
        )
        for point in points
    ]


def _point(row: TriedRecord) -> tuple[float, ...] | None:
    """Return time against fp32, what accuracy costs and size; None where it was not timed."""
    if not row.speed or row.against:
        return None
    cost = row.drop.points if row.drop else -(row.sqnr_db or 0.0)
    return 1 / gain(row.speed), cost, float(row.size_bytes or 0)


def _record(trial: Trial, bench: Bench, max_drop: float, chosen: Choice) -> TriedRecord:
    look = trial.look
    seen = look if look and not look.refusal else None  # what does not build has no outputs, and no size
    said = dict(trial.choice.precisions)
    return TriedRecord(
        what=trial.what,
        left=tuple(name for name in bench.space.free if said.get(name, "int8") != "int8"),
        speed=trial.speed,
        sqnr_db=seen.sqnr_db if seen else None,
        fits=look.fits(max_drop) if look else None,
        chosen=bench.key(trial.choice) == bench.key(chosen),
        drop=seen.drop if seen else None,
        held=trial.held.drop if trial.held else None,
        holds=trial.holds,
        size_bytes=seen.size_bytes if seen else None,
        against=trial.against,
    )


def _marked(row: TriedRecord, front: bool) -> TriedRecord:
    return dataclasses.replace(row, front=front)
