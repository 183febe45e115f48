"""Accuracy: where int8 costs too much, which pieces of a network go back, and how the others are calibrated.

Pieces of neighbours are made int8 alone and looked at; the noisiest try other calibrators. Then they go back, most
noise for the least time first, until the limit is kept; those that went back for nothing return. That more of them go
back than the limit asks for is tried, too: int8 is no faster everywhere, and a calmer mix as fast is safer.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from repo_builder.core.pairs import gain
from repo_builder.flows.search.choices import Choice
from repo_builder.flows.search.moves import fewest, saved
from repo_builder.flows.search.seen import CALIBRATORS
from repo_builder.flows.search.trials import faster
from repo_builder.flows.search.tries import Tries

CALMER = 0.8  # of the noise: 1 dB
_FOR_PIECES = 0.35  # share of the budget for looking at pieces alone
_FEWEST = 8  # pieces that are looked at
_NOISIEST = 4  # pieces that try other calibrators
_QUIETER = 0.5  # of the noise: 3 dB
_BACK = 12  # pieces that may return, at most
_MORE = (0.125, 0.25, 0.5, 0.75)  # of the pieces that did not have to go back
_AS_FAST = 0.995


def cut(tries: Tries) -> list[tuple[str, ...]]:
    """Cut the free layers into pieces of neighbours, as many as may be looked at, once."""
    if tries.cut:
        return tries.cut
    free, each = tries.bench.space.free, cost_of_a_look(tries)
    most = max(_FEWEST, min(len(free), int(_FOR_PIECES * tries.left_s / max(each, 1e-3))))
    size = -(-len(free) // most)
    tries.cut = [free[start : start + size] for start in range(0, len(free), size)]
    return tries.cut


def ordered(tries: Tries, start: Choice, pieces: Sequence[Sequence[str]], noise: Sequence[float] = ()) -> list[int]:
    """Return the places of pieces, what disturbs most for the least time first."""
    noise = noise or [alone(tries, piece, start) for piece in pieces]
    gains = saved(tries.bench, start, pieces)
    return sorted(range(len(pieces)), key=lambda at: noise[at] / max(gains[at], 1e-9), reverse=True)


def cost_of_a_look(tries: Tries) -> float:
    """Return the seconds that a piece alone takes, about: making its model and looking at a part of the samples."""
    before, free = tries.bench.ledger.spent_s, tries.bench.space.free
    alone(tries, free[: -(-len(free) // _FEWEST)], Choice())
    return tries.bench.ledger.spent_s - before


def accurate(tries: Tries, start: Choice) -> Choice:
    """Put pieces back until the limit is kept; return the choice."""
    pieces = cut(tries)
    noise = [alone(tries, piece, start) for piece in pieces]
    start = calibrated(tries, start, pieces, noise)
    if tries.look("all in int8, calibrators by piece", start).fits(tries.max_drop):
        tries.time(start)
        return start
    gains = saved(tries.bench, start, pieces)
    order = ordered(tries, start, pieces, noise)

    def keeps(count: int) -> bool:
        choice = tries.without(start, pieces, order[:count])
        tries.look(tries.words(choice), choice)
        return tries.fits(choice)

    kept = order[: fewest(len(order), keeps, lambda: tries.left_s > 0)]
    best = tries.without(start, pieces, kept)
    tries.look(tries.words(best), best)
    for at in sorted(kept[:-1], key=lambda at: gains[at], reverse=True)[:_BACK]:
        choice = tries.without(start, pieces, [item for item in kept if item != at])
        if not tries.left_s or gains[at] <= 0:
            break
        tries.look(tries.words(choice), choice)
        if tries.fits(choice):
            kept.remove(at)
            best = choice
    tries.time(best)
    return more_back(tries, best, [pieces[at] for at in order if at not in kept])


def more_back(tries: Tries, best: Choice, pieces: Sequence[Sequence[str]]) -> Choice:
    """Put ever more pieces back, in turn; return what is fastest, or as fast and calmer."""
    for share in _MORE:
        choice = tries.without(best, pieces, range(math.ceil(share * len(pieces))))
        rows = tries.bench.speed(choice, best) if tries.left_s else ()
        if not rows:
            break
        if gain(rows) < _AS_FAST:
            tries.slower(tries.words(choice), choice, best, rows)
            continue
        tries.look(tries.words(choice), choice)
        tries.time(choice)
        if tries.fits(choice) and (faster(rows) or tries.of(choice).noise < CALMER * tries.of(best).noise):
            best = choice
    return best


def alone(tries: Tries, piece: Sequence[str], start: Choice) -> float:
    """Return the noise of a piece that alone is int8."""
    others = [name for name in tries.bench.space.free if name not in piece]
    alike = dataclasses.replace(start, repaired=False)  # what repairs give is of one mix of layers
    return tries.bench.look(alike.but(others, tries.floor), few=True).noise


def calibrated(tries: Tries, start: Choice, pieces: Sequence[Sequence[str]], noise: list[float]) -> Choice:
    """Give the noisiest pieces other calibrators where that makes them quieter; ``noise`` is brought up to date."""
    for at in sorted(range(len(pieces)), key=lambda at: noise[at], reverse=True)[:_NOISIEST]:
        for one in CALIBRATORS:
            if tries.bench.ledger.spent_s > tries.budget_s * 2 / 3:
                return start
            choice = start.by(pieces[at], one)
            found = alone(tries, pieces[at], choice)
            if found < noise[at] * _QUIETER:
                start, noise[at] = choice, found
    return start
