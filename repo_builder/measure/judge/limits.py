"""How far one form of a model may depart from the one before it.

The figures of ``LEAST`` are from ``benchmarks/output_limits.py``, and docs/measuring.md says how they were chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from repo_builder.core.recipe import MeasureSpec
from repo_builder.core.records import OutputRecord


@dataclass(frozen=True, kw_only=True)
class Least:
    """What an output must keep of the form before, where the recipe does not say.

    Attributes:
        changed_db: Signal to noise where the step changes precisions (quantizing, compiling), dB.
        same_db: Signal to noise where the step should change nothing (exporting, serving), dB.
        equal: Fraction of values that must be equal, for outputs that are no floating-point numbers.
    """

    changed_db: float
    same_db: float
    equal: float


# The lowest precision of the model's layers → what every output must keep.
LEAST: dict[str, Least] = {
    "int4": Least(changed_db=10.0, same_db=20.0, equal=0.8),
    "int8": Least(changed_db=10.0, same_db=20.0, equal=0.8),
    # of fp8's own builds: ordinary ones keep 11 to 31 dB, up to 14 less than in int8, and broken ones under 9
    "fp8": Least(changed_db=10.0, same_db=20.0, equal=0.8),
    "fp16": Least(changed_db=25.0, same_db=30.0, equal=0.98),
    "fp32": Least(changed_db=40.0, same_db=40.0, equal=0.995),
}
# What a step does to a model, by the form that it makes: the first is held to fp32's limits whatever follows, and the
# others change nothing.
EXPORTED, SERVED, PIPELINE = "exported", "served", "pipeline"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one recipe accepts.

    Attributes:
        top1_fall: Fall of top-1, as a fraction, where outputs are classes.
        output_tolerance: Largest absolute difference of outputs that are not classes; None for a signal to noise.
        least: What is held to otherwise.
        fixed: Whether the recipe says the signal to noise, for every step.
    """

    top1_fall: float
    output_tolerance: float | None
    least: Least
    fixed: bool = False

    @classmethod
    def of(cls, spec: MeasureSpec, precisions: Iterable[str]) -> Limits:
        """Return the limits of a recipe for a model of layers of these precisions.

        Args:
            spec: The recipe's ``[measure]``.
            precisions: Precisions of its layers; none at all is fp32.
        """
        found = set(precisions)
        lowest = next((item for item in LEAST if item in found), "fp32")
        least = LEAST[lowest]
        if spec.output_sqnr_db is not None:
            least = Least(changed_db=spec.output_sqnr_db, same_db=spec.output_sqnr_db, equal=least.equal)
        return cls(
            top1_fall=spec.accuracy_tolerance_points / 100,
            output_tolerance=spec.output_tolerance,
            least=least,
            fixed=spec.output_sqnr_db is not None,
        )

    def least_db(self, form: str) -> float:
        """Return the signal to noise that a form must keep of the one above it, dB."""
        if form == EXPORTED and not self.fixed:
            return LEAST["fp32"].same_db
        return self.least.same_db if form in (SERVED, PIPELINE) else self.least.changed_db

    def departure(self, found: OutputRecord, least_db: float, *, discrete: bool) -> str:
        """Say in one phrase how an output departs; nothing where it does not.

        Args:
            found: The output, compared with the form above.
            least_db: From ``least_db``.
            discrete: Whether its values are no floating-point numbers; numbers need to be equal or close.
        """
        if self.output_tolerance is not None and found.max_abs_diff is not None:
            far = found.max_abs_diff > self.output_tolerance
            return f"differs by up to {found.max_abs_diff:.3g}, more than {self.output_tolerance:g}" if far else ""
        equal = found.agreement or 0.0
        if discrete and equal >= self.least.equal:
            return ""
        if found.sqnr_db is None:
            return f"{100 * equal:.1f} % of its values are equal, under {100 * self.least.equal:g} %"
        if found.sqnr_db < least_db:
            return f"signal to noise is {found.sqnr_db:.1f} dB, under {least_db:g} dB"
        if found.relative_error is not None and found.relative_error > 1 and not self.fixed:
            return f"its error is {found.relative_error:.2g} times what varies between samples"
        return ""
