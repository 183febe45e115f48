"""What a search came to, in sentences: the same on a terminal and on a page."""

from __future__ import annotations

import statistics

from repo_builder.report import numbers
from repo_builder.results.tuning import Comparison, Estimate, Finalist, TuneRun

_LIMITS = {
    "queue": "the queue: requests wait for the model",
    "compute": "the model's own execution",
    "input and output": "copying tensors in the server",
    "network": "the way between client and server",
    "client": "the client",
    "unexplained": "time in the server that its statistics do not name",
    "cache": "the response cache",
}


def sentences(run: TuneRun) -> list[tuple[str, str]]:
    """Return what is to be said: a tone (``good``, ``warning``, ``bad``) and a sentence each."""
    found: list[tuple[str, str]] = []
    if run.stopped:
        found.append(("bad", f"ended early: {run.stopped}; its trials are kept, and the same command goes on"))
    if run.best is not None:
        found += _chosen(run)
    elif not run.stopped:
        found.append(("bad", _missed(run)))
    for item in run.comparisons:
        found.append(_compared(item))
    same = run.same_outputs
    if same is not None and same.bit_equal:
        text = f"the answers are the same to the bit ({same.samples} requests): these settings change no accuracy"
        found.append(("good", text))
    elif same is not None:
        text = f"answers differ by up to {same.max_abs_diff:.3g} from those of the present configuration"
        found.append(("warning", f"{text}: run repo-builder perf on it to see the accuracy"))
    found += [("good", f"written: {', '.join(run.applied)}")] if run.applied else []
    return found


def _chosen(run: TuneRun) -> list[tuple[str, str]]:
    entry = next((item for item in run.finalists if item.chosen), None)
    if entry is None or run.best is None:
        return []
    limit = f" under {run.max_p99_ms:g} ms" if run.max_p99_ms is not None else ""
    rate, p99 = statistics.median(entry.infer_per_s), statistics.median(entry.p99_us)
    each = rate / run.best.units(run.cores)
    cost = f" ({numbers.rate(each)} for each core or instance reserved)" if run.objective == "cost" else ""
    found = [
        (
            "good",
            f"best{limit}: {run.best}, {numbers.rate(rate)} inferences/s{cost} with a p99 of {numbers.time_us(p99)} at "
            f"concurrency {entry.concurrency} (medians of {len(entry.infer_per_s)} rounds)",
        )
    ]
    if run.best == run.present:
        found.append(("good", "that is the configuration that stands there already"))
    level = run.best_level
    if level is not None and level.limit:
        what = _LIMITS.get(level.limit, level.limit)
        found.append(("warning" if level.limit == "client" else "good", f"what limits there: {what}. {level.advice}"))
    return found


def _missed(run: TuneRun) -> str:
    levels = [(item.p99_us.value, trial, item) for trial in run.trials for item in trial.levels if item.whole]
    if not levels:
        return "nothing could be measured"
    p99_us, trial, level = min(levels, key=lambda item: item[0])
    limit = f"{run.max_p99_ms:g} ms" if run.max_p99_ms is not None else "the limit"
    return (
        f"nothing keeps {limit}; the best found: {trial.settings}, p99 {numbers.time_us(p99_us)} with "
        f"{numbers.rate(level.infer_per_s.value)} inferences/s at concurrency {level.concurrency}"
    )


def _compared(item: Comparison) -> tuple[str, str]:
    low, high = item.ratio.low, item.ratio.high
    sure = "" if low > 1 or high < 1 else ", which is no difference that these rounds can tell"
    taken = "" if item.kept or "preferred" not in item.what else "; none are written"
    text = f"{item.what}: × {item.ratio.value:.3f} [{low:.3f} – {high:.3f}] in {item.rounds} rounds{sure}{taken}"
    return ("good" if item.kept and low > 1 else "warning" if item.kept else "good"), text


def rate(value: Estimate) -> str:
    """Return a throughput with its interval."""
    return f"{numbers.rate(value.value)} [{numbers.rate(value.low)} – {numbers.rate(value.high)}]"


def time(value: Estimate) -> str:
    """Return a latency with its interval."""
    low, high = numbers.time_us(value.low), numbers.time_us(value.high)
    middle = numbers.time_us(value.value)
    if len({item.split()[-1] for item in (low, middle, high)}) == 1:  # the unit is said once
        low, high = low.split()[0], high.split()[0]
    return f"{middle} [{low} – {high}]"


def median(item: Finalist) -> tuple[float, float]:
    """Return the median throughput and p99 of a finalist's rounds."""
    return statistics.median(item.infer_per_s), statistics.median(item.p99_us)
