"""A choice that was tried, and what its times and its look say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from repo_builder.core.details import SpeedRecord
from repo_builder.core.pairs import gain
from repo_builder.flows.search.choices import Choice
from repo_builder.flows.search.looks import Look

PAYS = 1.02  # less is no reason to change anything
_SLOWEST = 0.98  # at any batch size


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A choice that was tried.

    Attributes:
        what: What it is, in words.
        choice: The choice.
        look: What it leaves of the outputs; None where it was not looked at.
        speed: Against fp32; empty where it was not timed.
        against: What it was timed against instead; empty for fp32.
        held: What it leaves of the samples that chose nothing; None where they were not asked.
        holds: Whether it keeps the limit on them; None where they were not asked.
    """

    what: str
    choice: Choice
    look: Look | None = None
    speed: tuple[SpeedRecord, ...] = ()
    against: str = ""
    held: Look | None = None
    holds: bool | None = None

    @property
    def noise(self) -> float:
        """Noise over signal at the outputs; infinite where it was not looked at."""
        return self.look.noise if self.look else math.inf


def faster(rows: Sequence[SpeedRecord]) -> bool:
    """Whether a choice is faster beyond noise, and slower at no batch size."""
    sure = gain(rows, lambda row: row.low or row.speedup)
    return gain(rows) >= PAYS and sure > 1 and min(row.speedup for row in rows) >= _SLOWEST


def lost(look: Look | None) -> str:
    """Say what a choice costs in accuracy."""
    if look is None:
        return "not looked at"
    if look.departs:
        return look.departs
    if look.drop is None:
        return f"{look.sqnr_db:.1f} dB"
    return f"{look.drop.points:+.2f} points lost on {look.drop.samples} validation samples ({look.sqnr_db:.1f} dB)"
