"""What a build comes to: which precision to serve on this machine and why, what stands beside it, what would turn it.

Every figure is of times taken in turns (CPU time of one thread, or the GPU's own clock) with its 95 % interval; where
an interval holds 1, nothing is called faster or slower.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from repo_builder.core.artifacts import EngineArtifact
from repo_builder.core.details import OnnxRuntimeDetails, SpeedRecord, TriedRecord
from repo_builder.core.precisions import LOWERED, lowered
from repo_builder.core.progress import human_bytes
from repo_builder.core.records import AS_IT_CAME, AccuracyRecord, LayerRecord, blocked_bytes

_SHOWN = 4  # alternatives
_PRECISIONS = ("fp32", "fp16", "bf16")  # a choice may be timed against the whole network in one of these


def verdict(engine: EngineArtifact) -> tuple[str, ...]:
    """Return the verdict's lines: what to serve, what was measured beside it, what would change it."""
    return (f"Verdict: {_serve(engine)}", *_beside(engine), f"It would change with {'; '.join(_changes(engine))}.")


def clock(engine: EngineArtifact) -> str:
    """Return what an engine's times are of."""
    if isinstance(engine.details, OnnxRuntimeDetails):
        return f"CPU time of one thread of {engine.environment.get('cpu') or 'this CPU'}, in turns"
    return f"the GPU's own time on {getattr(engine.details, 'gpu', '') or 'this GPU'}, in turns"


def speeds(rows: Sequence[SpeedRecord], against: str = "") -> str:
    """Return ``2.19 times as fast as fp32 at batch 1 (2.10 – 2.25), 2.41 at batch 32 (2.38 – 2.47)``."""
    parts = []
    for place, row in enumerate(rows):
        ends = "" if row.low is None or row.high is None else f" ({row.low:.2f} – {row.high:.2f})"
        other = against if against in _PRECISIONS else f"'{against}'" if against else "fp32"
        times = f" times as fast as {other}" if place == 0 else ""
        parts.append(f"{row.speedup:.2f}{times} at batch {row.batch_size}{ends}")
    return ", ".join(parts)


def asked(layers: Sequence[LayerRecord]) -> str:
    """Return what layers were to be that are stored as codes, as in ``int4 and int8``."""
    return lowered(row.asked for row in layers) or "int8"


def cost(row: TriedRecord) -> str:
    """Return what a choice costs in accuracy with its standard error, as far as it was measured.

    Where samples that chose nothing were asked, it is what they say.
    """
    drop = row.held or row.drop
    if drop is not None:
        said = "points of top-1" if drop.labelled else "points of agreement with fp32"
        on = "validation samples that chose nothing" if row.held else "validation samples"
        return f"{drop.points:.2f} ± {drop.likely - drop.points:.2f} {said} lost on {drop.samples:,} {on}"
    return "" if row.sqnr_db is None or row.sqnr_db >= 200 else f"outputs keep {row.sqnr_db:.1f} dB"


def standing(row: TriedRecord) -> str:
    """Return how a choice stands to the limit, as far as that is known; empty where it keeps it."""
    if row.fits is None:
        return "outputs not looked at"
    if not row.fits:
        return "beyond the limit"
    return "not within the limit for sure on samples that chose nothing" if row.holds is False else ""


def refused(row: TriedRecord) -> bool:
    """Whether a choice was seen to break the limit, or not to keep it for sure."""
    return row.fits is False or row.holds is False


def _serve(engine: EngineArtifact) -> str:
    rows, form, other = _speed(engine), _form(engine), _reference(engine)
    rounded = [row for row in engine.layers if row.values == "fp8"]
    if rounded:
        paced = f": {speeds(rows)}" if rows else ""
        what = f"its {len(rounded)} layers in fp8 are computed in float on rounded values, to tell their accuracy alone"
        return f"serve something else here: {what}{paced}. {_accuracy(engine.accuracy)}".rstrip()
    if form == "fp32" or (other != "fp32" and not rows):
        return f"serve {form} here{_why_reference(engine)}. {_accuracy(engine.accuracy)}".rstrip()
    said = {row.verdict for row in rows}
    accuracy = _accuracy(engine.accuracy)
    if not rows and engine.layers and all(row.rule == AS_IT_CAME for row in engine.layers):
        return f"serve it as it came, {form}: no rule asks for anything. {accuracy}".rstrip()
    if not rows:
        return f"{form} was built as the recipe asks; nothing was timed beside it. {accuracy}".rstrip()
    if said == {"slower"}:
        why = f"not the {form} that was built as asked: it is {speeds(rows, other)}"
        return f"serve {other} here, {why}. {accuracy}".rstrip()
    if "slower" in said:
        return f"it depends on the batch: {form} is {speeds(rows, other)}. {accuracy}".rstrip()
    if "faster" not in said:
        return f"{form} and {other} are alike here: {speeds(rows, other)}; {other} is simpler. {accuracy}".rstrip()
    return f"serve {form} here: {speeds(rows, other)}. {accuracy}".rstrip()


def _speed(engine: EngineArtifact) -> tuple[SpeedRecord, ...]:
    """Return the built model's times against fp32: from the build's end, else from the search that chose it."""
    details = engine.details
    if isinstance(details, OnnxRuntimeDetails) and details.speed:
        return details.speed
    return next((row.speed for row in details.tried if row.chosen), ())


def _form(engine: EngineArtifact) -> str:
    """Return what the model is made of, as in ``int8 (8 of 9 layers)``."""
    counts = Counter(row.precision for row in engine.layers)
    low = [item for item in (*LOWERED, "fp16", "bf16") if counts[item]]
    if not low:
        return "fp32"
    if len(counts) == 1:
        return low[0]
    return " and ".join(f"{item} ({counts[item]} of {len(engine.layers)} layers)" for item in low)


def _why_reference(engine: EngineArtifact) -> str:
    timed = [row for row in _timed(engine) if not _is_fp32(row)]
    best = max(timed, key=_gain, default=None)
    if best is None:
        asked = any(row.asked != "fp32" for row in engine.layers)
        return (
            ", as nothing that was asked below it keeps the outputs" if asked else ", as nothing below it was asked for"
        )
    why = "keeps too little of the outputs" if refused(best) else "does not pay"
    return f": the fastest below it ({_name(best, engine)}) {why}, {speeds(best.speed, best.against)}"


def _accuracy(records: Sequence[AccuracyRecord]) -> str:
    if not records:
        return "No accuracy was measured here."
    first, last = records[0], records[-1]
    if first.top1 is not None and last.top1 is not None:
        both = f"Top-1 {100 * last.top1:.2f} %, fp32 {100 * first.top1:.2f} %"
        return f"{both} ({100 * (last.top1 - first.top1):+.2f} points), on {last.samples:,} held-out samples."
    kept = min((item.sqnr_db for item in records if item.sqnr_db is not None), default=None)
    return (
        "" if kept is None else f"Outputs keep {kept:.1f} dB of the form before on {last.samples:,} held-out samples."
    )


def _beside(engine: EngineArtifact) -> list[str]:
    """Return one line an alternative that was timed, the fastest first."""
    rows = [row for row in _timed(engine) if not row.chosen and not _is_fp32(row)]
    rows.sort(key=_gain, reverse=True)
    if not rows:
        return []
    lines = []
    for row in rows[:_SHOWN]:
        parts = [speeds(row.speed, row.against), cost(row), standing(row)]
        lines.append(f"  {_name(row, engine)}: {'; '.join(item for item in parts if item)}")
    more = [f"  and {len(rows) - _SHOWN} more that were slower"] if len(rows) > _SHOWN else []
    return [f"Measured beside it ({clock(engine)}):", *lines, *more]


def _changes(engine: EngineArtifact) -> list[str]:
    rows, tried = _speed(engine), _timed(engine)
    found = []
    mine = next((_gain(row) for row in tried if row.chosen), _mean(rows) if rows else 1.0)
    better = [row for row in tried if refused(row) and _gain(row) > mine * 1.02]
    if better:
        best = max(better, key=_gain)
        what = f"{_gain(best):.2f} times as fast as {_reference(engine)}, {cost(best)}"
        found.append(f"a limit that admits '{_name(best, engine)}' ({what})")
    unsure = [str(row.batch_size) for row in rows if row.verdict == "alike" and _form(engine) != "fp32"]
    if unsure and len(unsure) < len(rows):
        found.append(f"batches of {' and '.join(unsure)} alone, where the two are alike")
    sizes = sorted({row.batch_size for row in rows} | {row.batch_size for item in tried for row in item.speed})
    if sizes:
        batches = " and ".join(map(str, sizes))
        found.append(f"another machine, or batches far from {batches} ({clock(engine)})")
    before, after = blocked_bytes(row for row in engine.layers if row.asked == "int4")
    if after:
        told = f"{human_bytes(before)} of weights take {human_bytes(after)} in int4"
        found.append(f'memory as the aim (keep = "all"): {told}')
    seen = _resolution(engine.accuracy)
    if seen:
        found.append(f"more held-out samples: a fall of {seen:.2g} points may not show on these")
    if not engine.details.searched and any(row.asked != "fp32" for row in engine.layers):
        found.append("build --search, which weighs every layer and calibrator on the validation split")
    return found or ["rules that ask for less than fp32 ([[quantize.layers]], or build --search)"]


def _resolution(records: Sequence[AccuracyRecord]) -> float:
    """Return the fall in points that may hide where no sample changed sides ("rule of three": 3 in n at 95 %)."""
    last = records[-1] if records else None
    return 0.0 if last is None or last.top1 is None or not last.samples else 100 * 3 / last.samples


def _timed(engine: EngineArtifact) -> list[TriedRecord]:
    """Return what was timed against the network in one precision, fp32 or another."""
    return [row for row in engine.details.tried if row.speed and row.against in ("", *_PRECISIONS)]


def _reference(engine: EngineArtifact) -> str:
    """Return the precision of the whole network that choices were timed against."""
    return next((row.against for row in engine.details.tried if row.against in _PRECISIONS), "fp32")


def _name(row: TriedRecord, engine: EngineArtifact) -> str:
    """Return what a choice is, in words: those of a build without a search leave out that they are of int8."""
    return row.what if engine.details.searched else f"{asked(engine.layers)}, {row.what}"


def _is_fp32(row: TriedRecord) -> bool:
    """Whether a choice is the reference itself."""
    return row.what in ("all in fp32", "none of them")


def _gain(row: TriedRecord) -> float:
    return _mean(row.speed)


def _mean(rows: Sequence[SpeedRecord]) -> float:
    return math.exp(sum(math.log(row.speedup) for row in rows) / len(rows))
