"""Moves of the search away from the best choice so far: what is slow, has no weight, or is drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from repo_builder.core.recipe import Precision
from repo_builder.flows.search.bench import Bench
from repo_builder.flows.search.choices import Choice

_FIRST_BACK = 16  # of so many pieces one goes back first
_ALWAYS = 6  # looks: a sixteenth, an eighth, ... a half, three quarters, seven eighths of the pieces


def fewest(count: int, keeps: Callable[[int], bool], goes_on: Callable[[], bool], *, always: int = _ALWAYS) -> int:
    """Return how many pieces go back at least, of an order in which those that disturb most come first.

    Few are tried first, then twice as many, so that a budget that ends leaves most of a network in int8; a bisection
    follows. Until something keeps the limit so many looks are made whatever the budget says: else a small one would
    always end with nothing in int8.

    Args:
        count: Number of pieces; all of them keep any limit.
        keeps: Whether the limit is kept where so many go back.
        goes_on: Whether there is budget left.
        always: Looks that are made whatever it says, until something keeps the limit.
    """
    low, high, looks = 0, count, 0  # so many are too few; so many are enough
    while high - low > 1 and (goes_on() or (high == count and looks < always)):
        middle = (low + high) // 2
        if high == count:
            middle = min(middle, max(2 * low, -(-high // _FIRST_BACK)))
        looks += 1
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


def moves(bench: Bench, best: Choice, floor: Precision, *, float8: bool = False) -> Iterator[tuple[str, Choice]]:
    """Yield moves away from a choice, what promises most first.

    Args:
        bench: What measures.
        best: The choice.
        floor: What a layer is that int8 does not suit.
        float8: Whether the target has fp8.
    """
    space = bench.space
    int8 = [name for name in space.free if name not in dict(best.precisions)]
    put_back = [name for name in space.free if name in best.of(floor)]
    if float8 and put_back:
        yield f"fp8 in place of {floor}", best.but(put_back, "fp8")
    runs, first = bench.groups(best)
    if first:
        yield "int8 but the first convolution", best.but(set(first) & set(int8), floor)
    before, after = bench.layer_times(bench.rest), bench.layer_times(best)
    if before is not None and after is not None:
        cost = {name: after.layers.get(name, 0.0) - before.layers.get(name, 0.0) for name in space.free}
        losing = [
            name
            for run in runs
            for name in run.layers
            if sum(cost.get(item, 0.0) for item in run.layers)
            + sum(after.quantizing.get(tensor, 0.0) for tensor in run.tensors)
            > 0
        ]
        if losing:
            yield "int8 but runs that are no faster", best.but(set(losing) & set(int8), floor)
        slow = [name for name in int8 if cost[name] > 0]
        if slow:
            yield "int8 but layers that are slower alone", best.but(slow, floor)
    sums = [name for name in space.sums if name not in dict(best.precisions)]
    if sums:
        yield "sums and pools in fp32", best.but(sums, "fp32")
        for part in _halves(sums):
            yield (
                f"{part[0]}{f' and {len(part) - 1} more' if len(part) > 1 else ''} in fp32",
                best.but(part, "fp32"),
            )
    products = [name for name in space.products if name not in dict(best.precisions)]
    if products:
        yield "products of attention in int8", best.but(products, "int8")


def saved(bench: Bench, start: Choice, pieces: Sequence[Sequence[str]]) -> list[float]:
    """Return how much time each piece saves in int8, microseconds: by the profile, else alike for every layer."""
    before, after = bench.layer_times(bench.rest), bench.layer_times(start)
    if before is None or after is None:
        return [float(len(piece)) for piece in pieces]
    return [sum(before.layers.get(name, 0.0) - after.layers.get(name, 0.0) for name in piece) for piece in pieces]


def drawn(bench: Bench, best: Choice, floor: Precision, chance: random.Random) -> Choice:
    """Return the best with a random piece of neighbours the other way round."""
    free = bench.space.free
    size = chance.choice([1, 1, 2, max(1, len(free) // 8)])
    start = chance.randrange(len(free))
    piece = free[start : start + size]
    there = sum(name in dict(best.precisions) for name in piece)
    return best.but(piece, None if 2 * there >= len(piece) else floor)


def _halves(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield halves and quarters of a list of neighbours."""
    for parts in (2, 4):
        size = -(-len(names) // parts)
        if size < len(names):
            yield from (names[start : start + size] for start in range(0, len(names), size))
