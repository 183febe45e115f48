"""What a search has tried so far, within which limits; what may be asked and said of a choice."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from repo_builder.core.details import SpeedRecord
from repo_builder.core.recipe import Precision
from repo_builder.flows.search.bench import Bench
from repo_builder.flows.search.choices import Choice
from repo_builder.flows.search.looks import Look
from repo_builder.flows.search.trials import Trial, faster, lost

_FOR_SURE = 0.25  # share of what is left of the budget for twice as many samples of one choice


@dataclass(kw_only=True)
class Tries:
    """What was tried.

    Attributes:
        bench: What measures.
        max_drop: Percentage points that may be lost.
        budget_s: Seconds that may be spent.
        random: What draws.
        tried: What was tried, in turn, by the key of its graph.
        cut: The pieces of the graph that were looked at alone; empty where none were.
        reserve_s: Seconds of the budget that are kept for later.
    """

    bench: Bench
    max_drop: float
    budget_s: float
    random: random.Random
    tried: dict[str, Trial] = field(default_factory=dict)
    cut: list[tuple[str, ...]] = field(default_factory=list)
    reserve_s: float = 0.0

    @property
    def left_s(self) -> float:
        """Seconds that may still be spent; 0 where none are."""
        return max(0.0, self.budget_s - self.reserve_s - self.bench.ledger.spent_s)

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

    def without(self, start: Choice, pieces: Sequence[Sequence[str]], places: Iterable[int]) -> Choice:
        """Return a choice with pieces put back."""
        return start.but([name for at in places for name in pieces[at]], self.floor)

    def words(self, choice: Choice) -> str:
        """Say what a choice is: which layers are not int8."""
        names = [name for name in self.bench.space.free if name in dict(choice.precisions)]
        if len(names) == len(self.bench.space.free):
            return f"all in {self.floor}"
        end = ", repaired" if choice.repaired else ""
        shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        return (f"int8 but {shown}" if names else "all in int8") + end

    def pays(self, what: str, choice: Choice, best: Choice) -> bool:
        """Whether a move is faster beyond noise and within the limits; it is written down if it is worth a look."""
        rows = self.bench.speed(choice, best)
        if not rows or not faster(rows):
            self.slower(what, choice, best, rows)
            return False
        self.look(what, choice)
        self.time(choice)
        return self.fits(choice)

    def slower(self, what: str, choice: Choice, best: Choice, rows: tuple[SpeedRecord, ...]) -> None:
        """Write down a choice that was timed against another, and is not worth a look."""
        refused = Trial(what=what, choice=choice, speed=rows, against=self.of(best).what)
        self.tried.setdefault(self.bench.key(choice), refused)
