"""One scorer for every form of a model that a build makes, and the gate: what departs is not placed unasked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from repo_builder.core import progress
from repo_builder.core.errors import DepartureError
from repo_builder.core.kept import Forms
from repo_builder.core.recipe import Recipe
from repo_builder.core.records import AccuracyRecord, LayerRecord
from repo_builder.datasets import Samples
from repo_builder.measure.judge import ladder
from repo_builder.measure.judge.limits import Limits

# The form that a step makes → the step, as a message names it; any other is a compile target's.
_STEPS = {
    "fake-quantized": "quantizing",
    "onnx": "exporting",
    "exported": "exporting",
    "fine-tuned": "fine-tuning",
    "pipeline": "joining the network with the pipeline's steps",
    "placed": "quantizing (placing Q/DQ and fp16 regions)",
}
_LAYERS = 3
HARD_DB = 10.0  # a layer that keeps less is named


def score_forms(
    forms: Forms, samples: Samples, classes: tuple[str, ...], recipe: Recipe, layers: Sequence[LayerRecord] = ()
) -> tuple[AccuracyRecord, ...]:
    """Score forms of one model on one set of samples; each is compared with the one before it, in all outputs.

    Args:
        forms: In the order in which one derives from another.
        samples: The held-out samples.
        classes: Names of the classes.
        recipe: Tells whether outputs are classes, which one is scored, and what is accepted.
        layers: The model's; their lowest precision decides what is accepted where the recipe does not.

    Raises:
        MeasureError: An output is not finite, or cannot be scored.
    """
    labelled = recipe.measure.task == "classification"
    found = ladder.climb(
        {form.replace("_", "-"): outputs for form, outputs in forms.items()},
        samples.labels if labelled else None,
        scored=ladder.scored_output(recipe.model.outputs, recipe.measure.output, len(classes)),
        limits=Limits.of(recipe.measure, (item.exactness for item in layers)),
        classes=classes,
    )
    return found.rungs


def hold(records: Sequence[AccuracyRecord], layers: Sequence[LayerRecord], *, accept: bool) -> tuple[str, ...]:
    """Refuse forms that depart from the one before by more than the limits; warn of what is doubtful.

    Args:
        records: All forms, from the first to the compiled one.
        layers: The per-layer table, to name the layers that keep least.
        accept: Whether what departs is placed all the same.

    Returns:
        One sentence a form that departs.

    Raises:
        DepartureError: A form departs, and that is not accepted.
    """
    for sentence in doubts(records):
        progress.warn(sentence)
    found = departures(records, layers)
    if found and not accept:
        hint = (
            "nothing was placed: give the layers that are named fp16 or fp32, calibrate them otherwise, or place it as "
            "it is with --accept-departure"
        )
        raise DepartureError("; ".join(found), hint=hint)
    for sentence in found:
        progress.warn(f"{sentence} (accepted)")
    return found


def departures(records: Sequence[AccuracyRecord], layers: Sequence[LayerRecord]) -> tuple[str, ...]:
    """Return one sentence a form that departs: the step, the outputs, and the layers that keep least."""
    found = []
    for above, record in itertools.pairwise(records):
        if not record.departs:
            continue
        step = _STEPS.get(record.form, f"compiling for {record.form}")
        parts = [f"'{item.name}': {item.departs}" for item in record.outputs if item.departs]
        if _fell(above, record):
            parts.insert(0, f"top-1 falls from {above.top1:.4f} to {record.top1:.4f}")
        named = "" if step == "exporting" else _lowest(layers)
        found.append(
            f"{step} changed the model: '{record.form}' departs from '{above.form}' ({'; '.join(parts)}){named}"
        )
    return tuple(found)


def doubts(records: Sequence[AccuracyRecord]) -> tuple[str, ...]:
    """Return one sentence an output that is beyond the limits although the form's top-1 holds."""
    return tuple(
        f"output '{item.name}' of the form '{record.form}': {item.departs}, though its top-1 holds"
        for record in records
        if not record.departs
        for item in record.outputs
        if item.departs
    )


def _fell(above: AccuracyRecord, record: AccuracyRecord) -> bool:
    return above.top1 is not None and record.top1 is not None and record.top1 < above.top1


def _lowest(layers: Sequence[LayerRecord]) -> str:
    """Name the layers that keep least of their signal; nothing where none was measured."""
    measured = sorted((item.sqnr_db, item.name) for item in layers if item.sqnr_db is not None)
    if not measured:
        return ""
    hard = [item for item in measured if item[0] < HARD_DB] or measured[:1]
    named = ", ".join(f"{name} {ratio:.1f} dB" for ratio, name in hard[:_LAYERS])
    more = f" and {len(hard) - _LAYERS} more under {HARD_DB:g} dB" if len(hard) > _LAYERS else ""
    return f"; least signal to noise of a layer on its own: {named}{more}"
