"""What a choice of precisions leaves of the outputs, against fp32 on the same validation samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from repo_builder.compile import Runner
from repo_builder.core import loading
from repo_builder.core.artifacts import OnnxArtifact
from repo_builder.core.details import DropRecord
from repo_builder.core.errors import MeasureError
from repo_builder.core.samples import Batches
from repo_builder.core.tensors import Array
from repo_builder.datasets import Samples
from repo_builder.flows.build import running
from repo_builder.measure.judge import agreement
from repo_builder.measure.judge.ladder import scored_output
from repo_builder.measure.judge.limits import Limits

FEW = 256  # samples of a quick look
_MARGIN_DB = 1.0  # other samples must keep the limit, too
_Z95 = 1.96
_NOT_BUILT = "it does not build: "
_NONE_CHANGED = 3.0  # of n samples none changed: at 95 % fewer than 3 in n do ("rule of three")


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen.

    Attributes:
        sqnr_db: Least signal to noise of an output, dB.
        relative_error: Largest error of an output over what varies between samples; None where it is not known.
        drop: Accuracy lost; None where outputs are no classes.
        departs: How an output goes beyond the recipe's limits, in one phrase; empty where none does.
        size_bytes: Size of the model file.
    """

    sqnr_db: float
    relative_error: float | None = None
    drop: DropRecord | None = None
    departs: str = ""
    size_bytes: int = 0

    @classmethod
    def refused(cls, why: str) -> Look:
        """Return the look at what does not build."""
        return cls(sqnr_db=-agreement.MOST_DB, departs=f"{_NOT_BUILT}{why}")

    @property
    def refusal(self) -> str:
        """Why there was nothing to look at; empty where it builds."""
        return self.departs.removeprefix(_NOT_BUILT) if self.departs.startswith(_NOT_BUILT) else ""

    @property
    def noise(self) -> float:
        """Noise over signal, as a ratio of powers: of layers that are alone in int8 they add up, about."""
        return 10 ** (-self.sqnr_db / 10)

    def fits(self, max_drop: float) -> bool:
        """Whether it is within the limits; accuracy by what was lost, not by what might be.

        With one standard error on top, 10 of 1,024 samples that change sides, five each way, were beyond 0.3 points:
        no search over few samples could keep that limit. Where this is so by chance (``by_chance``), the search looks
        at more samples; the order of choices has that error in it (``likely``), and what is chosen is scored on the
        test split, where its interval is told.

        Args:
            max_drop: Most percentage points that may be lost, where outputs are classes.
        """
        return not self.departs and (self.drop is None or self.drop.points <= max_drop + 1e-9)

    def by_chance(self, max_drop: float) -> bool:
        """Whether it is within the limit here, and more samples may say that it is not: the interval holds the limit.

        What is beyond the limit is not asked again: that would give what chance refuses a second draw, and cost most
        where least is to be had.
        """
        return self.drop is not None and self.fits(max_drop) and self.drop.high > max_drop

    @property
    def samples(self) -> int:
        """Number of samples that accuracy is of; 0 where outputs are no classes."""
        return self.drop.samples if self.drop else 0


class Looker:
    """Compares with fp32.

    Args:
        exported: The artifact, whose fp32 graph is the reference.
        batches: How the model takes samples.
        split: The validation samples.
        order: Places of all of them as drawn: so many looked at are the first so many of these.
        samples: How many are looked at where they decide.
    """

    def __init__(
        self, exported: OnnxArtifact, batches: Batches, split: Samples, *, order: Sequence[int], samples: int
    ) -> None:
        recipe = exported.recipe
        self._exported, self._batches, self._split, self._order = exported, batches, split, order
        self._inputs: Mapping[str, Array] = {}
        self._exact: Mapping[str, Array] = {}
        self._taken = 0
        self.classes = recipe.measure.task == "classification"
        self.labels = None if split.labels is None or not self.classes else split.labels[list(order)]
        self.scored = scored_output(recipe.model.outputs, recipe.measure.output, len(exported.classes))
        self.available = len(order)
        self.samples = min(samples, self.available)
        self.few = min(FEW, self.samples)
        self.limits = Limits.of(recipe.measure, ["int8"])

    def inputs(self, count: int) -> Mapping[str, Array]:
        """Return the first samples, ``(count, *shape)`` by input name; what was taken once is not copied again."""
        if count > self._taken:
            places = list(self._order[:count])
            self._inputs = {name: value[places] for name, value in self._split.inputs.items()}
            self._taken, self._exact = count, {}
        return {name: value[:count] for name, value in self._inputs.items()}

    def exact(self, count: int) -> Mapping[str, Array]:
        """Return the outputs of the fp32 graph on the first samples."""
        self.inputs(count)
        if not self._exact:
            with loading.needs("onnxruntime", what="comparing with fp32"):
                from repo_builder.compile.onnxruntime.target import OnnxRuntimeRunner
            with OnnxRuntimeRunner(self._exported.model) as model:
                self._exact = running.run(model, self._batches, self._inputs)
        return {name: value[:count] for name, value in self._exact.items()}

    def look(self, model: Runner, count: int) -> Look:
        """Run a model on the first samples and compare."""
        found = running.run(model, self._batches, self.inputs(count))
        least, errors, departs = [], [], ""
        bound = self.limits.least_db("placed") + _MARGIN_DB
        for name, exact in self.exact(count).items():
            try:
                row = agreement.compare(exact, found[name], name=name)
            except MeasureError:
                whole = DropRecord(points=100.0, low=100.0, high=100.0, samples=count, labelled=self.labels is not None)
                departs = f"output '{name}' is not finite"
                return Look(sqnr_db=-agreement.MOST_DB, drop=whole if self.classes else None, departs=departs)
            least.append(agreement.MOST_DB if row.sqnr_db is None else row.sqnr_db)
            errors.append(row.relative_error or 0.0)
            if not (self.classes and name == self.scored):
                how = self.limits.departure(row, bound, discrete=exact.dtype.kind != "f")
                departs = departs or (how and f"output '{name}': {how}")
        cost = self._drop(found[self.scored], count) if self.classes else None
        return Look(sqnr_db=round(min(least), 3), relative_error=max(errors), drop=cost, departs=departs)

    def _drop(self, found: Array, count: int) -> DropRecord:
        exact = self.exact(count)[self.scored].argmax(axis=-1)
        given = found.argmax(axis=-1)
        truth = exact if self.labels is None else self.labels[:count]
        lost, won = int(np.sum((exact == truth) & (given != truth))), int(np.sum((exact != truth) & (given == truth)))
        return drop(lost, won, given.size, labelled=self.labels is not None)


def drop(lost: int, won: int, count: int, *, labelled: bool) -> DropRecord:
    """Return the accuracy lost, with the 95 % interval of a difference of paired proportions (Wald, McNemar's cells).

    Args:
        lost: Samples that fp32 has right and the other wrong.
        won: The other way round.
        count: Samples.
        labelled: Whether right is by labels.
    """
    points = 100 * (lost - won) / count
    spread = lost + won - (lost - won) ** 2 / count
    reach = 100 * max(_Z95 * math.sqrt(spread), _NONE_CHANGED) / count  # one that changed tells no more than none did
    return DropRecord(
        points=points,
        low=max(-100.0, points - reach),
        high=min(100.0, points + reach),
        samples=count,
        labelled=labelled,
        changed=lost + won,
    )
