"""Which precision each layer is to have, by measured time and accuracy: one pass over the layers, and the search.

    choices.py    what may be chosen                     bench.py    a choice placed, compiled, timed, looked at
    looks.py      what it leaves of the outputs          seen.py     ranges under any calibrator, and repairs
    ledger.py     what was measured, kept                sensing.py  each layer alone
    tries.py      what was tried, within which limits    hunt.py     the search
    accuracy.py   what goes back                         moves.py    what is tried for speed
    mending.py    repairs as moves                       confirm.py  held to samples that chose nothing
    trials.py     one choice that was tried              front.py    what none beats
    written.py    the result as plain rules

All of it stands on one artifact, the recipe's network with int8 asked of every layer, in ``build/NAME/search``.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repo_builder.compile import CompileTarget
from repo_builder.core import codec, files, progress
from repo_builder.core.details import TriedRecord
from repo_builder.core.errors import DataError, DepartureError, MeasureError, RecipeError
from repo_builder.core.recipe import Precision, Recipe, SearchSpec
from repo_builder.datasets import Dataset
from repo_builder.flows.build import compiling, exporting, piping
from repo_builder.flows.build.options import CACHE, BuildOptions
from repo_builder.flows.search import confirm, front, sensing, written
from repo_builder.flows.search.bench import Bench, machine
from repo_builder.flows.search.choices import Choice, called, searched, widest
from repo_builder.flows.search.hunt import Hunt
from repo_builder.flows.search.ledger import Ledger
from repo_builder.flows.search.trials import lost
from repo_builder.results.sensing import Sensed

__all__ = ["Found", "Sensed", "search", "sense"]

MEASURED, RESULT, RECIPE = "measured.json", "search.json", "searched.toml"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search ended with.

    Attributes:
        recipe: Plain rules, which build the same without a search.
        tried: What was tried, in turn.
        clock: What times are of.
        max_drop: Percentage points that were allowed.
        samples: Validation samples that a choice was looked at on to begin with.
        held: Validation samples that chose nothing, and confirm what was chosen; 0 where there are too few to hold any.
        confirmed: What they say of it, in one sentence.
        seconds: What the measurements took, those of an earlier search included.
        fresh: How many of them were made now.
        path: The recipe as a file.
    """

    recipe: Recipe
    tried: tuple[TriedRecord, ...]
    clock: str
    max_drop: float
    samples: int
    held: int
    confirmed: str
    seconds: float
    fresh: int
    path: Path

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        kept = {"schema": 1, "clock": self.clock, "max_drop": self.max_drop, "seconds": self.seconds}
        kept |= {"samples": self.samples, "held_back": self.held, "confirmed": self.confirmed}
        return {**kept, "recipe": str(self.path), "tried": [codec.plain(row, nulls=True) for row in self.tried]}


def wanted(recipe: Recipe, options: BuildOptions) -> SearchSpec | None:
    """Return the limits of the search that a build is to begin with; None where there is to be none.

    Raises:
        RecipeError: The recipe is to be fine-tuned or repaired, too, which would be done anew for every choice; or a
            layer that a search leaves as it is has no calibrator yet.
    """
    spec = options.search or recipe.search
    if spec is None:
        return None
    if recipe.finetune is not None:
        hint = "search without [finetune] first, then add it to searched.toml"
        raise RecipeError("precisions are not searched while they are trained for", where="finetune", hint=hint)
    if recipe.quantize.repair.asked:
        hint = "leave [quantize.repair] out: the search tries repairs itself, and writes them into searched.toml"
        message = "precisions are not searched while repairs are asked for, which are made for one choice of layers"
        raise RecipeError(message, where="quantize.repair", hint=hint)
    for place, rule in enumerate(recipe.quantize.layers):
        if called(rule) and "best" in (rule.input.calibrator, rule.weight.calibrator):
            message = f"'best' is chosen for a whole network, and a search leaves '{rule.name}' as its rule says"
            hint = "name a calibrator there, or give the layer free with a pattern"
            raise RecipeError(message, where=f"quantize.layers[{place}]", hint=hint)
    return spec


def sense(options: BuildOptions, *, budget_s: float, also: Sequence[Precision] = ()) -> Sensed:
    """Measure each layer alone.

    Args:
        options: As for a build; ``repository`` is not used.
        budget_s: Seconds that may be spent.
        also: Precisions of which the loss alone is measured where the target does not have them.

    Raises:
        RepoBuilderError: The branch tells what failed; what was measured stays and is not measured again.
    """
    target = compiling.choose(dataclasses.replace(options, recipe=widest(options.recipe)))
    if options.recipe.quantize.repair.asked:
        progress.warn("[quantize.repair] is left out: each layer is measured as calibrated")
    dataset = _data(options)
    spec = options.recipe.search or SearchSpec()
    with _bench(options, target, dataset, spec, None) as bench:
        return sensing.run(bench, budget_s=budget_s, name=options.recipe.name, also=also)


def search(
    options: BuildOptions, target: CompileTarget, dataset: Dataset, spec: SearchSpec, timings: Path | None
) -> Found:
    """Choose precisions and write the recipe that says them.

    Args:
        options: The build.
        target: What to compile for.
        dataset: The samples; the test split is not looked at.
        spec: Limits of the search.
        timings: A ``measured.json`` whose measurements are taken instead of new ones.

    Raises:
        DepartureError: Nothing that was tried keeps the limits; the best is named.
        MeasureError: The budget is too small to time anything.
    """
    with _bench(options, target, dataset, spec, timings) as bench:
        if not bench.space.free:
            message = f"no layer of {options.recipe.name} is free to be chosen on {target.name}"
            raise MeasureError(message, hint="layers that a rule calls by their full name stay as they are")
        drawn = random.Random(options.recipe.seed if spec.seed is None else spec.seed)  # noqa: S311 - no secret
        hunt = Hunt(bench=bench, max_drop=spec.max_drop, budget_s=spec.budget_s, random=drawn)
        chosen = confirm.fastest(hunt, hunt.run())
        if not hunt.fits(chosen):
            best = min(hunt.tried.values(), key=lambda item: hunt.cost(item.choice))
            said = f"best is {best.what}: {lost(best.look)}"
            message = f"nothing that was tried keeps the limit of {spec.max_drop:g} points; {said}"
            hint = "raise --max-drop, or free the layers that rules call by their full name"
            raise DepartureError(message, hint=hint)
        settled = confirm.settle(hunt, chosen)
        if settled is None:
            said = lost(hunt.of(chosen).held)
            message = (
                f"nothing that was tried keeps the limit of {spec.max_drop:g} points on the samples held back; {said}"
            )
            hint = (
                "raise --max-drop, give more validation samples, or free the layers that rules call by their full name"
            )
            raise DepartureError(message, hint=hint)
        if timings is not None and bench.ledger.fresh:
            progress.warn(f"{bench.ledger.fresh} measurements are not in {timings} and were made now")
        return _written(options, hunt, settled)


def _written(options: BuildOptions, hunt: Hunt, chosen: Choice) -> Found:
    """Write what was chosen as a recipe of plain rules, and what was tried beside it."""
    bench, path = hunt.bench, options.work / options.recipe.name / RECIPE
    rules = written.rules(options.recipe, bench.space, bench.space.planned(chosen))
    if all(rule.precision == "fp32" for rule in rules):
        rules = ()
    found = Found(
        recipe=searched(options.recipe, rules, repaired=chosen.repaired),
        tried=front.records(hunt, chosen),
        clock=bench.target.clock,
        max_drop=hunt.max_drop,
        samples=bench.looker.samples,
        held=bench.held,
        confirmed=confirm.told(hunt, chosen),
        seconds=round(bench.ledger.spent_s, 1),
        fresh=bench.ledger.fresh,
        path=path,
    )
    comments = [
        f"Found by repo-builder build --search: {hunt.told(chosen)}.",
        found.confirmed,
        f"Limit {hunt.max_drop:g} points; {len(found.tried)} choices; {found.seconds:g} s measured, {found.clock}.",
        f"It builds without a search: repo-builder build {path}",
    ]
    files.write_text(path, written.toml(found.recipe, comments=comments))
    files.write_json(path.parent / "search" / RESULT, found.to_dict())
    return found


def _data(options: BuildOptions) -> Dataset:
    piped = piping.begin(options)
    with progress.step("load data") as step:
        raw = piping.load_data(options, piped)
        dataset = piped.through(raw) if piped else raw
        step.note(dataset.name)
    return dataset


@contextmanager
def _bench(
    options: BuildOptions, target: CompileTarget, dataset: Dataset, spec: SearchSpec, timings: Path | None
) -> Iterator[Bench]:
    """Export the widest recipe and yield the bench on it; what it measures is kept in ``build/NAME/search``."""
    try:
        dataset.split("validation")
    except DataError as error:
        raise DataError(
            f"{error.message}, and precisions are chosen on it", where=error.where, hint=error.hint
        ) from None
    folder = options.work / options.recipe.name / "search"
    wide = dataclasses.replace(options, recipe=widest(options.recipe), work=folder, force=False)
    exported, _ = exporting.run(wide, dataset, target.placement(wide.recipe))
    ledger = Ledger(folder / MEASURED, machine(target, options), replayed=timings)
    seed = options.recipe.seed if spec.seed is None else spec.seed
    with tempfile.TemporaryDirectory(prefix="repo-builder-") as scratch:
        yield Bench(
            exported,
            target,
            wide,
            dataset,
            folder=folder,
            scratch=Path(scratch),
            cache=options.work / CACHE,
            samples=spec.samples,
            seed=seed,
            ledger=ledger,
        )
