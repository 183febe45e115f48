"""The per-layer table: what each layer was asked to be, what it is, and what calibration found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx

from repo_builder.core.graphs import layer_of
from repo_builder.core.precisions import PRECISIONS
from repo_builder.core.progress import human_bytes
from repo_builder.core.records import FUSED, UNKNOWN, LayerRecord, Verdict, blocked_bytes
from repo_builder.quantize.placement import LayerOutcome
from repo_builder.quantize.ranges import BEST, Ranges
from repo_builder.quantize.rules import LayerPlan

LEAST_SQNR_DB = 10.0  # below, a layer's noise is a third of its signal
_CODED = frozenset(name for name, kind in PRECISIONS.items() if kind.codes == "weight and input")
_SHOWN = 4  # layers that a sentence names


def records(model: onnx.ModelProto, plans: Sequence[LayerPlan], ranges: Ranges) -> tuple[LayerRecord, ...]:
    """Return the rows before a target is known.

    Args:
        model: The fp32 graph.
        plans: What each layer is to become.
        ranges: What calibration found.
    """
    inputs: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        inputs.setdefault(layer_of(node) or "", tuple(node.input[:2]))
    return tuple(_record(item, inputs.get(item.name, ()), ranges) for item in plans)


def _record(plan: LayerPlan, inputs: Sequence[str], ranges: Ranges) -> LayerRecord:
    rule = plan.rule.selector if plan.rule else ""
    row = LayerRecord(name=plan.name, type=plan.type, rule=rule, asked=plan.precision)
    blocks = ranges.blocks.get(plan.name)
    if plan.precision == "int4" and plan.rule is not None and blocks is not None:
        kind = plan.rule.weight.calibrator + (", symmetric" if blocks.zero is None else "")
        return dataclasses.replace(
            row,
            weight_calibrator=kind,
            block=blocks.block,
            weights=blocks.weights,
            weight_bytes=blocks.stored_bytes,
        )
    if not plan.coded:
        return row
    weight = ranges.weights.get(plan.name)
    read = inputs[:1] if weight is not None else inputs
    found = [ranges.tensors[name] for name in read if name in ranges.tensors]
    calibrator: str = plan.coded_rule.input.calibrator
    percentile = plan.coded_rule.input.percentile
    if calibrator == BEST and found:
        name, _, share = max(found, key=lambda item: item.amax).calibrator.partition(" ")
        calibrator, percentile = f"{BEST}: {name}", float(share) if share else None
    return dataclasses.replace(
        row,
        calibrator=calibrator,
        percentile=percentile,
        weight_calibrator=f"{BEST}: {weight.calibrator}" if weight is not None and weight.calibrator else "",
        input_amax=max((item.amax for item in found), default=None),
        weight_amax=None if weight is None else float(weight.amax.max()),
    )


def placed(
    rows: Sequence[LayerRecord], outcomes: Sequence[LayerOutcome], sqnr_db: Mapping[str, float]
) -> tuple[LayerRecord, ...]:
    """Return the rows for a target: what each layer has got is the precision that it has in the placed graph.

    Args:
        rows: From ``records``.
        outcomes: What placement made of each layer.
        sqnr_db: Layer → its signal to noise, where it was measured.
    """
    found = {item.name: item for item in outcomes}
    made = []
    for row in rows:
        outcome = found.get(row.name)
        ratio = sqnr_db.get(row.name)
        got, reason = (outcome.placed, outcome.reason) if outcome else (row.asked, "")
        ratio = None if ratio is None or got == "fp32" else round(ratio, 3)
        made.append(dataclasses.replace(row, got=got, reason=reason, sqnr_db=ratio))
    return tuple(made)


def became(rows: Sequence[LayerRecord], verdicts: Sequence[Verdict]) -> tuple[LayerRecord, ...]:
    """Return the rows with what the runtime made of each layer, where it tells.

    Args:
        rows: From ``placed``.
        verdicts: What the runtime told.
    """
    told = {item.layer: item for item in verdicts if item.got not in (FUSED, UNKNOWN)}
    made = []
    for row in rows:
        item = told.get(row.name)
        if item is not None and item.got != row.got:
            reason = row.reason or f"the runtime runs it in {item.got}{f' ({item.kind})' if item.kind else ''}"
            values = row.got or "" if item.asked == row.got and row.got in _CODED else ""
            row = dataclasses.replace(row, got=item.got, values=values, reason=reason if item.got != row.asked else "")
        made.append(row)
    return tuple(made)


def reasons(rows: Sequence[LayerRecord]) -> tuple[str, ...]:
    """Return a sentence for each reason why layers are not what they were to be, with the layers that it holds for."""
    found: dict[tuple[str, str | None, str], list[str]] = {}
    for row in rows:
        if row.reason:
            found.setdefault((row.asked, row.got, row.reason), []).append(row.name)
    return tuple(
        f"{_listed(names)} {'was' if len(names) == 1 else 'were'} to be {asked} and "
        f"{'is' if len(names) == 1 else 'are'} {got}: {reason}"
        for (asked, got, reason), names in found.items()
    )


def sizes(rows: Sequence[LayerRecord]) -> tuple[str, ...]:
    """Return a sentence on what 4-bit weights take, and what they took; none where there are none."""
    blocked = [row for row in rows if row.precision == "int4"]
    before, after = blocked_bytes(blocked)
    if not after:
        return ()
    sizes = sorted({row.block for row in blocked if row.block})
    many = "1 layer takes" if len(blocked) == 1 else f"{len(blocked)} layers take"
    return (
        f"int4 weights (block {', '.join(map(str, sizes))}) of {many} {human_bytes(after)}, in fp32 "
        f"{human_bytes(before)}: {before / after:.1f} times less",
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def hard_layers(rows: Sequence[LayerRecord]) -> tuple[str, ...]:
    """Return a sentence for each lowered layer whose own noise is a third of its signal or more."""
    return tuple(
        f"{row.name} loses much in {row.precision}: {row.sqnr_db:.1f} dB of signal to noise on its own; give it fp32, "
        "or another calibrator"
        for row in rows
        if row.sqnr_db is not None and row.sqnr_db < LEAST_SQNR_DB
    )
