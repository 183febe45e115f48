"""What each layer alone costs and gains in a lower precision: one pass over the network, told before it starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from repo_builder.core import progress
from repo_builder.core.errors import MeasureError
from repo_builder.core.recipe import Precision
from repo_builder.flows.search.bench import Bench
from repo_builder.flows.search.choices import Choice
from repo_builder.results.sensing import LayerSense, Sensed


def run(bench: Bench, *, budget_s: float, name: str, also: Sequence[Precision] = ()) -> Sensed:
    """Measure every free layer alone in each lower precision of the target, what takes most time first.

    Args:
        bench: What measures.
        budget_s: Seconds that may be spent; layers beyond are left out and named.
        name: The model's.
        also: Precisions of which the loss alone is measured where the target does not have them.

    Raises:
        MeasureError: There is nothing to measure, or the budget is over before the first layer.
    """
    space, ledger = bench.space, bench.ledger
    lower = bench.target.below_fp32(bench.options.recipe)
    if not space.free:
        hint = "layers that a rule calls by their full name stay as they are"
        raise MeasureError(f"no layer of {name} is free to be {' or '.join(lower)} on {bench.target.name}", hint=hint)
    untimed = tuple(item for item in dict.fromkeys(also) if item not in (*lower, "fp32"))
    everything = _everything(bench, (*lower, *untimed), budget_s)
    kinds = {layer[0]: layer[1] for layer in space.layers}
    rows: list[LayerSense] = []
    left: list[str] = []
    for layer in progress.bar(_largest(bench), "sensing layers"):
        if ledger.spent_s >= budget_s:
            left.append(layer)
            continue
        others = [item for item in space.free if item != layer]
        for precision in (*lower, *untimed):
            choice = Choice().but(others, "fp32").but([layer], None if precision == "int8" else precision)
            rows.append(_sensed(bench, layer, kinds[layer], precision, choice, timed=precision in lower))
    if not rows:
        hint = f"give --budget at least {2 * ledger.spent_s:.0f}s"
        raise MeasureError(f"the budget of {budget_s:g} s was over before the first layer was timed", hint=hint)
    return Sensed(
        model=name,
        target=bench.target.name,
        clock=bench.target.clock,
        rows=tuple(sorted(rows, key=_rank)),
        everything=everything,
        unmeasured=tuple(left),
        samples=bench.looker.few,
        seconds=round(ledger.spent_s, 1),
        fresh=ledger.fresh,
    )


def _everything(bench: Bench, lower: Sequence[Precision], budget_s: float) -> LayerSense:
    """Measure all layers together, and tell by that what each alone will take."""
    bench.look(bench.rest, few=True)
    before = bench.ledger.spent_s
    found = _sensed(bench, "all of them", "", lower[0], Choice())
    each, count = bench.ledger.spent_s - before, len(bench.space.free)
    progress.stderr_console().print(
        f"{count} layers in {' and '.join(lower)}, each alone: about {_time(each * count * len(lower))} of measuring, "
        f"{_time(each)} each; the budget is {_time(budget_s)}",
        markup=False,
    )
    return found


def _rank(row: LayerSense) -> tuple[bool, float]:
    """Order rows: those that are faster by time saved for the noise, then the others by what they leave of a signal."""
    kept = -math.inf if row.sqnr_db is None else row.sqnr_db
    if row.faster and row.saved_us is not None:
        return False, -row.saved_us[0] / max(10 ** (-kept / 10), 1e-20)
    return True, -kept


def _largest(bench: Bench) -> Sequence[str]:
    """Return the free layers, those that take most time first where the target tells."""
    times = bench.layer_times(bench.rest)
    key: Callable[[str], float] = (lambda name: -times.layers.get(name, 0.0)) if times else (lambda _: 0.0)
    return sorted(bench.space.free, key=key)


def _sensed(
    bench: Bench, name: str, kind: str, precision: Precision, choice: Choice, *, timed: bool = True
) -> LayerSense:
    look = bench.look(choice, few=True)
    speed = bench.speed(choice, bench.rest) if timed else ()
    saved = None
    if speed:
        first = speed[0]
        low, high = (first.reference_us * (1 - 1 / (ratio or first.speedup)) for ratio in (first.low, first.high))
        saved = (round(first.reference_us * (1 - 1 / first.speedup), 2), round(low, 2), round(high, 2))
    return LayerSense(
        name=name,
        type=kind,
        precision=precision,
        speed=speed,
        saved_us=saved,
        sqnr_db=None if look.refusal else look.sqnr_db,
        drop=None if look.refusal else look.drop,
        refused=look.refusal,
        untimed="" if timed or look.refusal else f"unknown: {bench.target.name} here has no {precision}",
    )


def _time(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
