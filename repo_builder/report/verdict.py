"""What a run comes to, in a few sentences, the worst first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from repo_builder.core.records import AccuracyRecord
from repo_builder.report import numbers
from repo_builder.results import Comparison, LevelResult, PerfRun

Tone = Literal["bad", "warning", "good"]


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One sentence of the verdict and how it is meant."""

    tone: Tone
    text: str


def verdict(run: PerfRun) -> tuple[Sentence, ...]:
    """Return the sentences: what failed, what is doubtful, what was found."""
    found = [*_failures(run), *_doubts(run), *_findings(run)]
    order: dict[Tone, int] = {"bad": 0, "warning": 1, "good": 2}
    return tuple(sorted(found, key=lambda item: order[item.tone]))


def best(run: PerfRun) -> LevelResult | None:
    """Return the level that a search chose, else the one with the highest throughput, among those that are sound."""
    if run.knee is not None:
        return run.levels[run.knee] if run.levels[run.knee].sound else None
    sound = [item for item in run.levels if item.latency and item.sound]
    return max(sound, key=lambda item: item.infer_per_s, default=None)


def _failures(run: PerfRun) -> list[Sentence]:
    found = []
    if run.stopped:
        some = run.accuracy or any(item.requests for item in run.levels)
        rest = "What was measured until then stands below." if some else "Nothing was measured until then."
        found.append(f"The run ended early: {run.stopped}. {rest}")
    if run.ladder and run.ladder.culprit:
        rung = next(item for item in run.ladder.rungs if item.form == run.ladder.culprit)
        above = run.ladder.rungs[run.ladder.rungs.index(rung) - 1]
        how = "; ".join(_departures(above, rung))
        found.append(f"The form '{rung.form}' departs from '{above.form}' by more than the tolerance: {how}.")
    found.extend(_regressions(run.comparison))
    errors = sum(item.errors for item in run.levels)
    if errors:
        said = next((text for item in run.levels if item.errors for text in item.failures), "no reason given")
        found.append(f"{errors:,} requests failed, the first with: {said}.")
    found.extend(f"{item.level}: no request was answered." for item in run.levels if not item.requests)
    if run.comparison and not run.comparison.findings:
        found.append(f"Nothing could be compared with the baseline of {run.comparison.baseline_date}.")
    return [Sentence(tone="bad", text=text) for text in found]


def _departures(above: AccuracyRecord, rung: AccuracyRecord) -> list[str]:
    """Say how a form departs: its top-1, then every output that is beyond the limits."""
    found = [f"output '{item.name}': {item.departs}" for item in rung.outputs if item.departs]
    if above.top1 is not None and rung.top1 is not None and rung.top1 < above.top1:
        found.insert(0, f"top-1 falls from {numbers.percent(above.top1)} to {numbers.percent(rung.top1)}")
    return found


def _regressions(comparison: Comparison | None) -> list[str]:
    worse = comparison.worse if comparison else ()
    return [f"Worse than the baseline: {item.what}, {item.how}." for item in worse]


def _doubts(run: PerfRun) -> list[Sentence]:
    found = [f"Accuracy was not measured: {run.accuracy_skipped}."] if run.accuracy_skipped else []
    if run.not_the_build:
        found.insert(0, _sentence(run.not_the_build))
    for rung in run.ladder.rungs if run.ladder else ():
        far = [f"output '{item.name}': {item.departs}" for item in rung.outputs if item.departs and not rung.departs]
        if far:
            found.append(f"The top-1 of the form '{rung.form}' holds, its values do not: {'; '.join(far)}.")
    unstable = [str(item.level) for item in run.levels if item.stable is False and not item.stopped]
    if unstable:
        found.append(f"Not stable, take with care: {'; '.join(unstable)}.")
    measured = [item for item in run.levels if item.latency and not item.stopped]
    if measured and best(run) is None:
        top = max(measured, key=lambda item: item.infer_per_s)
        found.append(
            f"No level was stable and free of failures, refusals and cache hits: no throughput stands for the model; "
            f"the highest seen was {numbers.rate(top.infer_per_s)} inferences/s at {top.level}."
        )
    for item in run.levels:
        found.extend(f"{item.level}: {note}." for note in item.notes)
    found.extend(_sentence(note) for note in run.notes)
    if run.comparison:
        found.extend(_sentence(note) for note in run.comparison.notes)
    return [Sentence(tone="warning", text=text) for text in found]


def _findings(run: PerfRun) -> list[Sentence]:
    found = []
    if run.identity and run.layers:
        found.append(
            f"The model that runs is the build at hand: recipe '{run.identity.recipe}', "
            f"sha256 {run.identity.engine_sha256[:12]}."
        )
    if run.accuracy:
        found.append(
            f"Top-1 through the server is {numbers.percent(run.accuracy.top1)} "
            f"(95 % interval {numbers.interval(run.accuracy.low, run.accuracy.high)}) "
            f"on {run.accuracy.samples:,} held-out samples."
        )
    if run.ladder and not run.ladder.culprit and len(run.ladder.rungs) > 1:
        found.append(f"No form departs from the one above it, from {run.ladder.rungs[0].form} to served.")
    top = best(run)
    if top and top.latency:
        limit = f" with p99 under {run.max_p99_ms:g} ms" if run.knee is not None else ""
        found.append(
            f"Highest throughput{limit}: {numbers.rate(top.infer_per_s)} inferences/s at {top.level}, "
            f"p50 {numbers.time_us(top.latency.p50_us)}, p99 {numbers.time_us(top.latency.p99_us)}."
        )
    sound = [item for item in run.levels if item.latency and item.sound]
    if len(sound) > 1:
        quick = min(sound, key=lambda item: item.latency.p50_us if item.latency else 0.0)
        if quick is not top and quick.latency:
            found.append(
                f"Lowest latency: p50 {numbers.time_us(quick.latency.p50_us)}, "
                f"p99 {numbers.time_us(quick.latency.p99_us)} at {quick.level}."
            )
    if run.comparison and run.comparison.findings and not run.comparison.worse:
        found.append(f"Nothing is worse than the baseline of {run.comparison.baseline_date}, within the tolerances.")
    return [Sentence(tone="good", text=text) for text in found]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
