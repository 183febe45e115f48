"""The search: from all in int8 to the fastest choice within the limits, by what was measured and nothing else.

1. *Starts*: everything in fp32, in fp16 and fp8 where the target has them, in int8 by each calibrator.
2. *Accuracy*: where int8 costs too much, pieces of the graph are made int8 alone and looked at. The noisiest try other
   calibrators; then pieces go back, most noise for the least time first; those that went back for nothing return.
3. *Speed*: moves are timed against the best so far, in turns: the first convolution, runs of layers that the profile
   finds no faster, single layers, sums and products without a weight, pieces drawn at random. A move is kept where it
   is ``trials.PAYS`` times as fast, its interval is above 1, and the outputs keep the limit.

The end of it, where the winner is timed once more and held to samples that chose nothing, is ``confirm.py``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from repo_builder.core import progress
from repo_builder.core.details import SpeedRecord
from repo_builder.core.errors import MeasureError
from repo_builder.core.recipe import Precision
from repo_builder.flows.search.bench import Bench
from repo_builder.flows.search.choices import Choice
from repo_builder.flows.search.looks import Look
from repo_builder.flows.search.moves import drawn, fewest, moves, saved
from repo_builder.flows.search.seen import CALIBRATORS
from repo_builder.flows.search.trials import Trial, faster, lost

_FOR_PIECES = 0.35  # share of the budget for looking at pieces alone
_FOR_SURE = 0.25  # share of what is left of it for twice as many samples of one choice
_FEWEST = 8  # pieces that are looked at
_NOISIEST = 4  # pieces that try other calibrators
_QUIETER = 0.5  # of the noise: 3 dB
_BACK = 12  # pieces that may return, at most
_ROUNDS = 3  # of moves
_DRAWN = 4  # random moves without success that end a search


@dataclass(kw_only=True)
class Hunt:
    """One search.

    Attributes:
        bench: What measures.
        max_drop: Percentage points that may be lost.
        budget_s: Seconds that may be spent.
        random: What draws.
        tried: What was tried, in turn, by the key of its graph.
        cut: The pieces of the graph that were looked at alone; empty where none were.
    """

    bench: Bench
    max_drop: float
    budget_s: float
    random: random.Random
    tried: dict[str, Trial] = field(default_factory=dict)
    cut: list[tuple[str, ...]] = field(default_factory=list)

    def run(self) -> Choice:
        """Search; return the choice that is taken, among those in ``tried``.

        Raises:
            MeasureError: The budget is over before one choice was timed.
            CompileError: The network does not build in fp32.
        """
        bench = self.bench
        with progress.step("search: starts") as step:
            self.look("all in fp32", bench.rest)
            self.time(bench.rest)
            everything = self.everything()
            step.note(self.told(everything))
        if not self.left_s:
            hint = f"give --budget at least {4 * bench.ledger.spent_s:.0f}s"
            raise MeasureError(f"the budget of {self.budget_s:g} s was over when all in int8 had been timed", hint=hint)
        best = everything
        if not self.fits(best):
            with progress.step("search: accuracy") as step:
                best = self.accurate(everything)
                step.note(self.told(best))
        if bench.key(best) != bench.key(bench.rest):
            with progress.step("search: speed") as step:
                best = self.fast(best)
                step.note(self.told(best))
        return best

    @property
    def left_s(self) -> float:
        """Seconds that may still be spent; 0 where none are."""
        return max(0.0, self.budget_s - self.bench.ledger.spent_s)

    @property
    def floor(self) -> Precision:
        """What a layer is that int8 does not suit: fp16 where the target has it, else fp32."""
        return "fp16" if "fp16" in self.others else "fp32"

    @property
    def others(self) -> tuple[Precision, ...]:
        """The precisions below fp32 that the target has beside int8."""
        return tuple(item for item in self.bench.target.below_fp32(self.bench.options.recipe) if item != "int8")

    def look(self, what: str, choice: Choice) -> Look:
        """Look at as many samples as it takes to say that the limit is kept, and write it down."""
        key, bench = self.bench.key(choice), self.bench
        old = self.tried.get(key)
        if old and old.look:
            return old.look
        most = 0 if key == bench.key(bench.rest) else bench.looker.available  # fp32 keeps any limit
        before, found = bench.ledger.spent_s, bench.look(choice)
        while found.by_chance(self.max_drop) and found.samples < most:
            took, before = bench.ledger.spent_s - before, bench.ledger.spent_s
            if 2 * took > _FOR_SURE * self.left_s:
                break
            found = bench.look(choice, count=2 * found.samples)
        self.tried[key] = Trial(what=old.what if old else what, choice=choice, look=found)
        return found

    def time(self, choice: Choice) -> tuple[SpeedRecord, ...]:
        """Time a choice that was looked at against fp32, and write it down."""
        found = self.bench.speed(choice, self.bench.rest)
        key = self.bench.key(choice)
        old = self.tried[key]
        self.tried[key] = Trial(what=old.what, choice=choice, look=old.look, speed=found)
        return found

    def of(self, choice: Choice) -> Trial:
        """Return the trial of a choice that was looked at."""
        return self.tried[self.bench.key(choice)]

    def fits(self, choice: Choice) -> bool:
        """Whether a choice that was looked at is within the limits."""
        found = self.of(choice).look
        return found is not None and found.fits(self.max_drop)

    def told(self, choice: Choice) -> str:
        """Say where the search stands."""
        trial = self.of(choice)
        speeds = " and ".join(f"{row.speedup:.2f} times at batch {row.batch_size}" for row in trial.speed)
        return f"{trial.what}: {speeds or 'not timed'}, {lost(trial.look)}"

    def everything(self) -> Choice:
        """Try all in one precision; return all in int8 by the calibrator that costs least."""
        bench = self.bench
        for precision in self.others:
            alike = Choice().but(bench.space.free, precision)
            self.look(f"all in {precision}", alike)
            self.time(alike)
        best = Choice()
        self.look("all in int8", best)
        self.time(best)
        if not self.fits(best):
            best = self.quietest(best)
        return best

    def quietest(self, best: Choice) -> Choice:
        """Return all in int8 by the calibrator that leaves least noise on a part of the samples."""
        bench = self.bench
        noise = {"": bench.look(best, few=True).noise}
        tried = {"": best}
        for one in CALIBRATORS:
            if bench.ledger.spent_s > self.budget_s / 3:
                break
            named = f"{one.calibrator} {one.percentile:g}" if one.percentile else one.calibrator
            tried[named] = Choice().by(bench.space.free, one)
            noise[named] = bench.look(tried[named], few=True).noise
        named = min(noise, key=lambda name: noise[name])
        if named:
            self.look(f"all in int8, {named}", tried[named])
            best = tried[named]
            self.time(best)
        return best

    def cost(self, choice: Choice) -> tuple[bool, float, float]:
        """Order choices by what they cost in accuracy."""
        found = self.of(choice).look or self.bench.look(choice)
        return not found.fits(self.max_drop), found.drop.likely if found.drop else 0.0, found.noise

    def pieces(self) -> list[tuple[str, ...]]:
        """Cut the free layers into pieces of neighbours, as many as may be looked at, once."""
        if self.cut:
            return self.cut
        free, each = self.bench.space.free, self.cost_of_a_look()
        most = max(_FEWEST, min(len(free), int(_FOR_PIECES * self.left_s / max(each, 1e-3))))
        size = -(-len(free) // most)
        self.cut = [free[start : start + size] for start in range(0, len(free), size)]
        return self.cut

    def ordered(self, start: Choice, pieces: Sequence[Sequence[str]], noise: Sequence[float] = ()) -> list[int]:
        """Return the places of pieces, what disturbs most for the least time first."""
        noise = noise or [self.alone(piece, start) for piece in pieces]
        gains = saved(self.bench, start, pieces)
        return sorted(range(len(pieces)), key=lambda at: noise[at] / max(gains[at], 1e-9), reverse=True)

    def cost_of_a_look(self) -> float:
        """Return the seconds that a piece alone takes, about: making its model and looking at a part of the samples."""
        before, free = self.bench.ledger.spent_s, self.bench.space.free
        self.alone(free[: -(-len(free) // _FEWEST)], Choice())
        return self.bench.ledger.spent_s - before

    def accurate(self, start: Choice) -> Choice:
        """Put pieces back until the limit is kept; return the choice."""
        pieces = self.pieces()
        noise = [self.alone(piece, start) for piece in pieces]
        start = self.calibrated(start, pieces, noise)
        if self.look("all in int8, calibrators by piece", start).fits(self.max_drop):
            self.time(start)
            return start
        gains = saved(self.bench, start, pieces)
        order = self.ordered(start, pieces, noise)

        def keeps(count: int) -> bool:
            choice = self.without(start, pieces, order[:count])
            self.look(self.words(choice), choice)
            return self.fits(choice)

        kept = order[: fewest(len(order), keeps, lambda: self.left_s > 0)]
        best = self.without(start, pieces, kept)
        self.look(self.words(best), best)
        for at in sorted(kept[:-1], key=lambda at: gains[at], reverse=True)[:_BACK]:
            choice = self.without(start, pieces, [item for item in kept if item != at])
            if not self.left_s or gains[at] <= 0:
                break
            self.look(self.words(choice), choice)
            if self.fits(choice):
                kept.remove(at)
                best = choice
        self.time(best)
        return best

    def alone(self, piece: Sequence[str], start: Choice) -> float:
        """Return the noise of a piece that alone is int8."""
        others = [name for name in self.bench.space.free if name not in piece]
        return self.bench.look(start.but(others, self.floor), few=True).noise

    def calibrated(self, start: Choice, pieces: Sequence[Sequence[str]], noise: list[float]) -> Choice:
        """Give the noisiest pieces other calibrators where that makes them quieter; ``noise`` is brought up to date."""
        for at in sorted(range(len(pieces)), key=lambda at: noise[at], reverse=True)[:_NOISIEST]:
            for one in CALIBRATORS:
                if self.bench.ledger.spent_s > self.budget_s * 2 / 3:
                    return start
                choice = start.by(pieces[at], one)
                found = self.alone(pieces[at], choice)
                if found < noise[at] * _QUIETER:
                    start, noise[at] = choice, found
        return start

    def without(self, start: Choice, pieces: Sequence[Sequence[str]], places: Iterable[int]) -> Choice:
        """Return a choice with pieces put back."""
        return start.but([name for at in places for name in pieces[at]], self.floor)

    def words(self, choice: Choice) -> str:
        """Say what a choice is: which layers are not int8."""
        names = [name for name in self.bench.space.free if name in dict(choice.precisions)]
        if len(names) == len(self.bench.space.free):
            return f"all in {self.floor}"
        shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        return f"int8 but {shown}" if names else "all in int8"

    def fast(self, best: Choice) -> Choice:
        """Try moves from the best so far; return what is best then."""
        key, refused = self.bench.key, set[str]()
        for _ in range(_ROUNDS):
            for what, choice in moves(self.bench, best, self.floor, float8="fp8" in self.others):
                if not self.left_s:
                    return best
                if key(choice) != key(best) and key(choice) not in refused:
                    if self.pays(what, choice, best):
                        best = choice
                        break
                    refused.add(key(choice))
            else:
                break
        failures = 0
        while failures < _DRAWN and self.left_s:
            choice = drawn(self.bench, best, self.floor, self.random)
            old = key(choice) in refused or key(choice) == key(best)
            if old or not self.pays(self.words(choice), choice, best):
                failures += 1
                refused.add(key(choice))
            else:
                best, failures = choice, 0
        return best

    def pays(self, what: str, choice: Choice, best: Choice) -> bool:
        """Whether a move is faster beyond noise and within the limits; it is written down if it is worth a look."""
        rows = self.bench.speed(choice, best)
        if not rows or not faster(rows):
            refused = Trial(what=what, choice=choice, speed=rows, against=self.of(best).what)
            self.tried.setdefault(self.bench.key(choice), refused)
            return False
        self.look(what, choice)
        self.time(choice)
        return self.fits(choice)
