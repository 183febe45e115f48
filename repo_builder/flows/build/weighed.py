"""What weighing lower precisions ends in, and the sentences that tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from repo_builder.core.details import SpeedRecord, TriedRecord
from repo_builder.quantize.table import LEAST_SQNR_DB


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What stays int8.

    Attributes:
        left: Layer → why it is left in fp32.
        tried: What was weighed, in turn.
        notes: Sentences for the user.
        unrepaired: Whether the outputs keep more of this choice without the codes and shifts that repairs found.
    """

    left: dict[str, str] = field(default_factory=dict)
    tried: tuple[TriedRecord, ...] = ()
    notes: tuple[str, ...] = ()
    unrepaired: bool = False


def some(names: Sequence[str], most: int = 3) -> str:
    """Name the first of some layers."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def speeds(rows: Sequence[SpeedRecord]) -> str:
    """Say how fast a choice is at each batch size."""
    return " and ".join(f"{row.speedup:.2f} times as fast as fp32 at batch {row.batch_size}" for row in rows)


def told(form: str, row: TriedRecord) -> str:
    """Say in one phrase what is taken."""
    return f"{row.what} in {form}, {speeds(row.speed)}" if row.speed else f"{form} does not pay here: fp32"


def sentence(form: str, row: TriedRecord) -> str:
    """Say in one sentence what a choice gives."""
    facts = [f"the outputs keep {row.sqnr_db:.1f} dB" if row.sqnr_db is not None else "", speeds(row.speed)]
    found = ", ".join(item for item in facts if item) or f"{form} does not pay here: the network comes out in fp32"
    end = " (taken)" if row.chosen else (" (too little)" if row.fits is False else "")
    return f"{form}, {row.what}: {found}{end}"


def hardest(ratios: Mapping[str, float]) -> tuple[str, ...]:
    """Name the layers that keep too little on their own, the worst first: no sentence where there are none."""
    low = sorted((db, name) for name, db in ratios.items() if db < LEAST_SQNR_DB)
    named = ", ".join(f"{name} {db:.1f} dB" for db, name in low)
    return (f"layers that keep less than {LEAST_SQNR_DB:g} dB on their own: {named}",) if low else ()
