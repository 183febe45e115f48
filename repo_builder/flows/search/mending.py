"""Repairs as moves: what ``[quantize.repair]`` gives back of the outputs, more layers may spend in int8.

Repairs are made for one mix of layers and cost no time where the network runs, but each takes seconds to make. So they
come last, for the best mix that the search has: where they make it quieter, layers that went back to floating point
return, most time for the least noise first, as long as the limit is kept.
"""

from __future__ import annotations

import dataclasses

from repo_builder.core.pairs import gain
from repo_builder.flows.search.accuracy import cut, ordered
from repo_builder.flows.search.choices import Choice
from repo_builder.flows.search.moves import fewest
from repo_builder.flows.search.trials import faster
from repo_builder.flows.search.tries import Tries

QUIETER = 0.95  # of the noise: less is not worth a repair in the recipe
_AS_FAST = 0.99
_LOOKS = 6  # a bisection of so many pieces asks as often


def mended(tries: Tries, best: Choice) -> Choice | None:
    """Return a choice that was looked at with repairs, looked at as well; None where they leave it no quieter."""
    if best.repaired or not tries.bench.int8(best):
        return None
    choice = dataclasses.replace(best, repaired=True)
    tries.look(f"{tries.of(best).what}, repaired", choice)
    return choice if tries.of(choice).noise < QUIETER * tries.of(best).noise else None


def won_back(tries: Tries, best: Choice) -> Choice:
    """Return the best, or a repaired choice with more of it in int8 that is faster within the limit."""
    back = best.of(tries.floor)
    if not back or not tries.left_s or not tries.fits(best):
        return best
    before = tries.bench.ledger.spent_s
    start = mended(tries, best)
    took = tries.bench.ledger.spent_s - before
    if (
        start is None
        or not tries.fits(start)
        or gain(tries.bench.speed(start, best) or tries.of(best).speed) < _AS_FAST
    ):
        return best
    tries.time(start)
    pieces = [piece for piece in (tuple(name for name in piece if name in back) for piece in cut(tries)) if piece]
    if not pieces or tries.left_s < _LOOKS * took:
        return start
    order = ordered(tries, dataclasses.replace(best, precisions=(), repaired=False), pieces)

    def kept(count: int) -> Choice:
        return start.but([name for at in order[count:] for name in pieces[at]], None)

    def keeps(count: int) -> bool:
        tries.look(tries.words(kept(count)), kept(count))
        return tries.fits(kept(count))

    more = kept(fewest(len(order), keeps, lambda: tries.left_s > 0, always=0))
    rows = tries.bench.speed(more, start) if tries.bench.key(more) != tries.bench.key(start) else ()
    if not rows or not faster(rows):
        return start
    tries.time(more)
    return more
