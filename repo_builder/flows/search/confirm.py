"""The end of a search: its choice is timed once more, and held to samples that chose nothing.

The best of many choices is taken by how it did on the samples that all of them were looked at on, so that chance is in
it: of two dozen mixes one that loses 0.3 points there loses more elsewhere. A part of the validation split is therefore
held back, and the search's choice has to keep the limit on it with a margin (``holds``). Where it does not, the next
fastest is asked that is more careful by ``CALMER`` (``steps``): asking its neighbours would be drawing until chance is
kind.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from repo_builder.core import progress
from repo_builder.core.details import DropRecord
from repo_builder.core.pairs import gain
from repo_builder.flows.search.accuracy import CALMER, cut, ordered
from repo_builder.flows.search.choices import Choice
from repo_builder.flows.search.mending import mended
from repo_builder.flows.search.trials import PAYS, Trial
from repo_builder.flows.search.tries import Tries

_LONGER_S = 0.4  # CPU or device time a choice and batch size, for what is decided last
_Z95 = 1.645  # one-sided
_NONE_CHANGED = 3.0  # of n samples none changed: at 95 % fewer than 3 in n do ("rule of three")
_SHARES = (0.25, 0.5, 0.75, 0.875)  # of the pieces that are int8 go back where a choice fails


def reach(drop: DropRecord) -> float:
    """Return how far above the points measured the true loss may be, at 95 % (one-sided; Wald, McNemar's cells)."""
    spread = drop.changed - drop.samples * (drop.points / 100) ** 2
    return 100 * max(_Z95 * math.sqrt(max(0.0, spread)), _NONE_CHANGED) / drop.samples


def holds(drop: DropRecord, max_drop: float) -> bool:
    """Whether samples that chose nothing say that a limit is kept.

    The loss that may be, at 95 %, is within the limit; where so few samples cannot say so of any choice that changes as
    many of them, it has to lose nothing on them. Both are one rule: the margin is what chance may hide, at most the
    limit.

    Args:
        drop: What was lost on them.
        max_drop: Most percentage points that may be lost.
    """
    return drop.points + min(reach(drop), max_drop) <= max_drop + 1e-9


@dataclass(frozen=True, kw_only=True)
class Step:
    """A choice that may be taken.

    Attributes:
        gain: How many times as fast as fp32 it is.
        noise: Noise over signal at its outputs, as a ratio of powers; 0 for fp32 itself.
    """

    gain: float
    noise: float


def steps(candidates: Sequence[Step], asked: Callable[[int], bool]) -> int | None:
    """Return the place of the first choice that holds, the fastest first; None where none does.

    Args:
        candidates: What may be taken.
        asked: Whether a place's choice holds; it is asked once of each at most, and of none that is not quieter by
            ``CALMER`` than all that failed.
    """
    left = sorted(range(len(candidates)), key=lambda at: (-candidates[at].gain, candidates[at].noise, at))
    while left:
        first = left[0]
        if asked(first):
            return first
        left = [at for at in left[1:] if candidates[at].noise < CALMER * candidates[first].noise]
    return None


def fastest(hunt: Tries, best: Choice) -> Choice:
    """Return the fastest of the winner and the starts that keep the limit, timed longer against each other."""
    starts = [hunt.bench.rest, *(item.choice for item in hunt.tried.values() if item.what.startswith("all in "))]
    with progress.step("search: confirm") as step:
        for start in dict.fromkeys(starts):
            if hunt.bench.key(start) == hunt.bench.key(best) or not hunt.fits(start):
                continue
            rows = hunt.bench.speed(start, best, seconds=_LONGER_S)
            least = 1.0 / PAYS if start == hunt.bench.rest else 1.0  # int8 has to be worth its while
            if rows and (not hunt.fits(best) or gain(rows) > least):
                best = start
        if not hunt.of(best).speed:
            hunt.time(best)
        step.note(hunt.told(best))
    return best


def settle(hunt: Tries, best: Choice) -> Choice | None:
    """Return the choice that is taken: the search's, or a more careful one that holds; None where none does.

    Args:
        hunt: The search, which has ended; what is measured now is written down there.
        best: Its choice, which keeps the limit on the samples that it was looked at on.
    """
    if not hunt.bench.held:
        progress.warn("too few validation samples to hold any back: what was chosen is not confirmed")
        return best
    with progress.step("search: hold to samples that chose nothing") as step:
        found = best if held(hunt, best) else _slower(hunt, best)
        step.note("nothing holds" if found is None else hunt.told(found))
    return found


def _slower(hunt: Tries, failed: Choice) -> Choice | None:
    """Return the fastest more careful choice that holds."""
    before = hunt.of(failed).noise
    for choice in careful(hunt, failed):
        hunt.look(hunt.words(choice), choice)
        if hunt.fits(choice):
            hunt.time(choice)
    rest = hunt.bench.key(hunt.bench.rest)
    rows = [
        item
        for key, item in hunt.tried.items()
        if hunt.fits(item.choice)
        and item.noise < CALMER * before
        and (key == rest or (item.speed and not item.against and gain(item.speed) >= PAYS))
    ]
    found = steps([_step(hunt, item) for item in rows], lambda at: held(hunt, rows[at].choice))
    return None if found is None else rows[found].choice


def _step(hunt: Tries, item: Trial) -> Step:
    exact = hunt.bench.key(item.choice) == hunt.bench.key(hunt.bench.rest)
    return Step(gain=1.0 if exact else gain(item.speed), noise=item.noise)


def careful(hunt: Tries, best: Choice) -> list[Choice]:
    """Return a choice repaired, where that helps, with ever more of its int8 pieces put back, the noisiest first."""
    bench, said = hunt.bench, dict(best.precisions)
    pieces = [tuple(name for name in piece if name not in said) for piece in cut(hunt)]
    pieces = [piece for piece in pieces if piece]
    order = ordered(hunt, dataclasses.replace(best, precisions=()), pieces)
    start = mended(hunt, best) or best
    found = [start, *(hunt.without(start, pieces, order[: math.ceil(share * len(order))]) for share in _SHARES)]
    return [item for item in dict.fromkeys(found) if bench.key(item) != bench.key(best)]


def held(hunt: Tries, choice: Choice) -> bool:
    """Whether a choice that was looked at holds on the samples that were held back; it is written down."""
    bench, trial = hunt.bench, hunt.of(choice)
    if bench.exact(choice):  # it is what the others are compared with
        return True
    look = bench.hold(choice)
    kept = not look.departs and (look.drop is None or holds(look.drop, hunt.max_drop))
    hunt.tried[bench.key(choice)] = dataclasses.replace(trial, held=look, holds=kept)
    return kept


def told(hunt: Tries, chosen: Choice) -> str:
    """Say in one sentence what the samples that chose nothing say of what is taken."""
    trial, count = hunt.of(chosen), hunt.bench.held
    if not count:
        return "No samples were held back to confirm it: the validation split has too few."
    if trial.held is None:
        return f"{count} validation samples were held back; all in fp32 has nothing to confirm on them."
    if trial.held.drop is None:
        return f"It keeps the limits on {count} validation samples that chose nothing, {trial.held.sqnr_db:.1f} dB."
    drop = trial.held.drop
    most = min(drop.points + reach(drop), 100.0)
    few = "" if most <= hunt.max_drop else "; they are too few to say more, so that it had to lose nothing"
    return f"It lost {drop.points:+.2f} points (at 95 % at most {most:.2f}) on {count} samples that chose nothing{few}."
