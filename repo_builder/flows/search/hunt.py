"""The search: from all in int8 to the fastest choice within the limits, by what was measured and nothing else.

1. *Starts*: everything in fp32, in fp16 and fp8 where the target has them, in int8 by each calibrator.
2. *Accuracy*: where int8 costs too much, pieces of the graph are made int8 alone and looked at. The noisiest try other
   calibrators; then pieces go back, most noise for the least time first; those that went back for nothing return.
3. *Speed*: moves are timed against the best so far, in turns: the first convolution, runs of layers that the profile
   finds no faster, single layers, sums and products without a weight, pieces drawn at random. A move is kept where it
   is ``trials.PAYS`` times as fast, its interval is above 1, and the outputs keep the limit. Those that are faster by
   less are tried together: many small gains are one that can be told from noise.
4. *Repairs* of the best mix, and what they leave room for (``mending.py``).

The end of it, where the winner is timed once more and held to samples that chose nothing, is ``confirm.py``.
"""

from __future__ import annotations

from repo_builder.core import progress
from repo_builder.core.errors import MeasureError
from repo_builder.core.pairs import gain
from repo_builder.flows.search.accuracy import accurate
from repo_builder.flows.search.choices import Choice
from repo_builder.flows.search.mending import won_back
from repo_builder.flows.search.moves import drawn, moves
from repo_builder.flows.search.seen import CALIBRATORS
from repo_builder.flows.search.trials import faster
from repo_builder.flows.search.tries import Tries

_FOR_REPAIRS = 0.4  # share of what is left of the budget
_SMALL = 1.003  # times as fast: a gain that is noise or one of many
_ROUNDS = 3  # of moves
_DRAWN = 4  # random moves without success that end a search


class Hunt(Tries):
    """One search."""

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
                best = accurate(self, everything)
                step.note(self.told(best))
        if bench.key(best) != bench.key(bench.rest):
            with progress.step("search: speed") as step:
                self.reserve_s = _FOR_REPAIRS * self.left_s if best.of(self.floor) else 0.0
                best = self.fast(best)
                self.reserve_s = 0.0
                step.note(self.told(best))
            with progress.step("search: repairs") as step:
                best = won_back(self, best)
                step.note(self.told(best))
        return best

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

    def fast(self, best: Choice) -> Choice:
        """Try moves from the best so far; return what is best then."""
        key, refused = self.bench.key, set[str]()
        for _ in range(_ROUNDS):
            small: list[Choice] = []
            for what, choice in moves(self.bench, best, self.floor, float8="fp8" in self.others):
                if not self.left_s:
                    return best
                if key(choice) != key(best) and key(choice) not in refused:
                    if self.pays(what, choice, best):
                        best = choice
                        break
                    refused.add(key(choice))
                    rows = self.bench.speed(choice, best)
                    small += [choice] if rows and gain(rows) > _SMALL and not faster(rows) else []
            else:
                together = best.with_all(small)
                if len(small) < 2 or not self.left_s or not self.pays("small gains together", together, best):
                    break
                best = together
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
