"""The per-layer table, and what both ways to it share. numpy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from repo_builder.core.errors import QuantizeError, did_you_mean
from repo_builder.core.records import LayerRecord
from repo_builder.core.tensors import Array
from repo_builder.quantize import LayerPlan, Ranges

MAX_SQNR_DB = 200.0  # what a layer without any quantization noise is given


def split(calibration: Mapping[str, Array], names: Sequence[str], size: int) -> list[dict[str, Array]]:
    """Return calibration data as batches of at most ``size`` samples, inputs in the order of ``names``.

    Raises:
        QuantizeError: An input is missing, or there is no sample.
    """
    missing = [name for name in names if name not in calibration]
    if missing:
        hint = did_you_mean(missing[0], calibration)
        raise QuantizeError(f"the calibration data has no input '{missing[0]}'", hint=hint)
    count = min(len(calibration[name]) for name in names)
    if count == 0:
        raise QuantizeError("there is no calibration sample", hint="set data.calibration to at least 1")
    return [{name: calibration[name][start : start + size] for name in names} for start in range(0, count, size)]


def check_inputs(ranges: Mapping[str, Ranges]) -> None:
    """Refuse a layer whose input was never anything but zero.

    Raises:
        QuantizeError: There is one.
    """
    for name, found in ranges.items():
        if any(float(amax) == 0 for amax in found.inputs):
            raise QuantizeError(
                "its input is zero in every calibration sample, which leaves no range for int8",
                where=name,
                hint="leave the layer in fp32, or calibrate on more samples",
            )


def decibels(signal: float, noise: float) -> float:
    """Return 10·log10(signal / noise), limited to ±200 dB so that it is a number in JSON."""
    if noise == 0:
        return MAX_SQNR_DB
    if signal == 0:
        return -MAX_SQNR_DB
    return max(-MAX_SQNR_DB, min(MAX_SQNR_DB, 10 * math.log10(signal / noise)))


def record(planned: LayerPlan, ranges: Ranges | None, sqnr_db: float | None) -> LayerRecord:
    """Return a layer's row; an Add is given the larger of its two ranges."""
    rule = planned.rule.selector if planned.rule else ""
    if ranges is None:
        return LayerRecord(name=planned.name, type=planned.type, rule=rule, asked=planned.precision)
    spec = planned.int8_rule.input
    return LayerRecord(
        name=planned.name,
        type=planned.type,
        rule=rule,
        asked=planned.precision,
        calibrator=spec.calibrator,
        percentile=spec.percentile,
        input_amax=max(float(amax) for amax in ranges.inputs),
        weight_amax=None if ranges.weight is None else float(ranges.weight.max()),
        sqnr_db=None if sqnr_db is None else round(sqnr_db, 3),
    )
