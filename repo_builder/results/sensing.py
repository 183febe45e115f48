"""What each layer alone costs and gains in a lower precision, as ``sense`` measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from repo_builder.core import codec
from repo_builder.core.details import DropRecord, SpeedRecord
from repo_builder.core.recipe import Precision


@dataclass(frozen=True, kw_only=True)
class LayerSense:
    """One layer in one lower precision, all others in fp32.

    Attributes:
        name: The layer.
        type: Its type.
        precision: The precision.
        speed: The network's time against all in fp32, one row a batch size; empty where it does not build, and where
            the target has no such arithmetic.
        saved_us: Time that the network saves at the first batch size, microseconds, with the low and high end of its
            95 % interval; None where ``speed`` is empty.
        sqnr_db: Least signal to noise of an output, dB; None where it does not build.
        drop: Accuracy that it costs; None where outputs are no classes, or it does not build.
        refused: Why it does not build; empty where it does.
        untimed: Why its time is unknown though it builds; empty where it was timed.
    """

    name: str
    type: str
    precision: Precision
    speed: tuple[SpeedRecord, ...] = ()
    saved_us: tuple[float, float, float] | None = None
    sqnr_db: float | None = None
    drop: DropRecord | None = None
    refused: str = ""
    untimed: str = ""

    @property
    def faster(self) -> bool:
        """Whether it is faster beyond noise at some batch size, and slower at none."""
        said = {row.verdict for row in self.speed}
        return "faster" in said and "slower" not in said


@dataclass(frozen=True, kw_only=True)
class Sensed:
    """What a pass found.

    Attributes:
        model: The recipe's name.
        target: The compile target.
        clock: What times are of.
        rows: The layers, what pays best first.
        everything: All of them together in the lowest precision.
        unmeasured: Layers that the budget left out.
        samples: Validation samples that were looked at.
        seconds: What the measurements took, those of earlier passes included.
        fresh: How many of them were made now.
    """

    model: str
    target: str
    clock: str
    rows: tuple[LayerSense, ...]
    everything: LayerSense
    unmeasured: tuple[str, ...] = ()
    samples: int = 0
    seconds: float = 0.0
    fresh: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values, as ``sense --json`` prints them."""
        return {"schema": 1, **codec.plain(self, nulls=True)}
