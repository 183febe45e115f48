"""``calibrator = "best"``: which calibrator each tensor and each weight gets, by what the network's outputs keep.

First one calibrator for all is looked for, for the tensors and then for the weights. Then neighbours in the graph's
order, an eighth of them at a time, try the others together, and then each alone, those first whose calibrators differ
most. A change stays where the outputs keep more. Every look places the graph and runs it on calibration samples; their
number is bounded, and samples alone decide, so the same samples make the same choice. In the end, samples that chose
nothing judge: a choice that keeps less on them than the one calibrator for all gives way to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import onnx

from repo_builder.core.errors import QuantizeError
from repo_builder.core.recipe import InputQuantizer, WeightQuantizer
from repo_builder.core.records import RepairRecord
from repo_builder.core.tensors import Array
from repo_builder.quantize.placement import Profile, place
from repo_builder.quantize.ranges import BEST, Ranges, TensorRange, WeightRange
from repo_builder.quantize.rules import LayerPlan

if TYPE_CHECKING:
    from repo_builder.quantize.judge import Judge

# (calibrator, percentile): what "best" chooses among; the first wins ties
CANDIDATES: tuple[tuple[str, float | None], ...] = (
    ("max", None),
    ("percentile", 99.999),
    ("percentile", 99.99),
    ("percentile", 99.9),
    ("mse", None),
    ("entropy", None),
)
_LOOKS = 64
_REGIONS = 8
_GAIN_DB = 0.02  # below, a change on these samples is chance


def inputs() -> tuple[InputQuantizer, ...]:
    """Return the candidates for a tensor."""
    return tuple(InputQuantizer(calibrator=name, percentile=share) for name, share in CANDIDATES)  # type: ignore[arg-type]


def weights(spec: WeightQuantizer) -> tuple[WeightQuantizer, ...]:
    """Return the candidates for a weight: the rule's own, or all where it says ``best``."""
    if spec.calibrator != BEST:
        return (spec,)
    return tuple(replace(spec, calibrator=name, percentile=share) for name, share in CANDIDATES)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What may be chosen.

    Attributes:
        ranges: All ranges, the chosen ones at their first candidate.
        tensors: Tensor → calibrator → its range, in the graph's order.
        weights: Layer → calibrator → its weight's range, likewise.
        active: The tensors that the target quantizes; the others get what is best for all.
    """

    ranges: Ranges
    tensors: Mapping[str, Mapping[str, TensorRange]]
    weights: Mapping[str, Mapping[str, WeightRange]]
    active: Collection[str]

    def made(self, chosen: Mapping[str, str]) -> Ranges:
        """Return the ranges under a choice: ``tensor NAME`` or ``weight LAYER`` → calibrator; others keep the first."""
        tensors, layers = dict(self.ranges.tensors), dict(self.ranges.weights)
        for name, found in self.tensors.items():
            tensors[name] = found.get(chosen.get(f"tensor {name}", ""), next(iter(found.values())))
        for name, ranges in self.weights.items():
            layers[name] = ranges.get(chosen.get(f"weight {name}", ""), next(iter(ranges.values())))
        return Ranges(tensors=tensors, weights=layers)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and what it gains.

    Attributes:
        chosen: ``tensor NAME`` or ``weight LAYER`` → calibrator.
        record: What is said of it.
    """

    chosen: dict[str, str]
    record: RepairRecord


def choose(
    model: onnx.ModelProto,
    plans: Sequence[LayerPlan],
    options: Options,
    profile: Profile,
    fits: Judge,
    judges: Judge,
) -> Choice:
    """Choose.

    Args:
        model: The fp32 graph.
        plans: What each layer is to become.
        options: What may be chosen.
        profile: The target that it is placed for.
        fits: Judges by the samples that choose.
        judges: Judges by samples that choose nothing.
    """
    search = _Search(model, plans, options, profile, fits)
    alone = search.one_for_all()
    search.regions()
    search.each()
    told = {what: search.look_with(judges, chosen) for what, chosen in alone.items()}
    uniform = max(told, key=lambda what: told[what])
    chosen, after = search.chosen, search.look_with(judges, search.chosen)
    if after < told[uniform]:
        chosen, after = alone[uniform], told[uniform]
    counts = Counter(chosen.values())
    shares = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    others = ", ".join(f"{what} {db:.1f}" for what, db in told.items())
    did = f"{shares} of {len(chosen)} tensors and weights, {search.looks} looks (one for all: {others} dB)"
    first = told[next(iter(told))]
    record = RepairRecord(
        name="calibrator best",
        did=did,
        samples=len(judges),
        before_db=round(first, 3),
        after_db=round(after, 3),
        kept=True,
    )
    return Choice(chosen=chosen, record=record)


@dataclass
class _Search:
    """The choice so far, and what the outputs keep with it."""

    model: onnx.ModelProto
    plans: Sequence[LayerPlan]
    options: Options
    profile: Profile
    judge: Judge
    chosen: dict[str, str] = field(default_factory=dict)
    db: float = -math.inf
    looks: int = 0

    def look_with(self, judge: Judge, chosen: Mapping[str, str]) -> float:
        """Return what the outputs keep under a choice, dB."""
        try:
            return judge.keeps(place(self.model, self.plans, self.options.made(chosen), self.profile).model)
        except QuantizeError:  # a calibrator's range may be too small for a scale
            return -math.inf

    def one_for_all(self) -> dict[str, dict[str, str]]:
        """Try every calibrator on all tensors, then on all weights; return each for all of them."""
        tried: dict[str, dict[str, str]] = {}
        tensors = [f"tensor {name}" for name in self.options.tensors]
        weights = [f"weight {name}" for name in self.options.weights]
        base = {unit: next(self._of(unit)) for unit in (*tensors, *weights)}
        for units in filter(None, (tensors, weights)):
            for name in (_name(*item) for item in CANDIDATES):
                chosen = {**(self.chosen or base), **{unit: name for unit in units if name in self._of(unit)}}
                tried.setdefault(name, {**base, **{unit: name for unit in base if name in self._of(unit)}})
                self._try(chosen, 0.0)
        return tried

    def regions(self) -> None:
        """Try the others on neighbours together."""
        for units in (self._units("tensor"), self._units("weight")):
            size = max(2, -(-len(units) // _REGIONS))
            for start in range(0, len(units) if len(units) > size else 0, size):
                some = units[start : start + size]
                for name in dict.fromkeys(name for unit in some for name in self._of(unit)):
                    self._try({**self.chosen, **{unit: name for unit in some if name in self._of(unit)}}, _GAIN_DB)

    def each(self) -> None:
        """Try the others on each alone, those first whose calibrators differ most."""
        units = sorted([*self._units("tensor"), *self._units("weight")], key=lambda unit: -self._spread(unit))
        for unit in units:
            for name in self._of(unit):
                self._try({**self.chosen, unit: name}, _GAIN_DB)

    def _try(self, chosen: dict[str, str], least: float) -> None:
        """Look at a choice that differs from the present one in a range, and take it where it keeps more."""
        same = self.chosen and all(
            self._size(unit, name) == self._size(unit, self.chosen[unit]) for unit, name in chosen.items()
        )
        if same or self.looks >= _LOOKS:
            return
        self.looks += 1
        db = self.look_with(self.judge, chosen)
        if db > self.db + least or not self.chosen:
            self.chosen, self.db = chosen, db

    def _units(self, kind: str) -> list[str]:
        """Return what is chosen for, in the graph's order: tensors that the target quantizes, or weights."""
        if kind == "weight":
            return [f"weight {name}" for name in self.options.weights]
        return [f"tensor {name}" for name in self.options.tensors if name in self.options.active]

    def _of(self, unit: str) -> Iterator[str]:
        kind, _, name = unit.partition(" ")
        yield from (self.options.tensors if kind == "tensor" else self.options.weights)[name]

    def _size(self, unit: str, name: str) -> bytes:
        """Return the range that a calibrator gives, to see whether two differ."""
        kind, _, owner = unit.partition(" ")
        if kind == "tensor":
            return repr(self.options.tensors[owner][name].amax).encode()
        amax: Array = self.options.weights[owner][name].amax
        return amax.tobytes()

    def _spread(self, unit: str) -> float:
        """Return the ratio of the widest range to the narrowest."""
        kind, _, owner = unit.partition(" ")
        if kind == "tensor":
            sizes = [item.amax for item in self.options.tensors[owner].values()]
        else:
            sizes = [float(item.amax.sum()) for item in self.options.weights[owner].values()]
        return max(sizes) / max(min(sizes), 1e-38)


def _name(calibrator: str, percentile: float | None) -> str:
    return calibrator if percentile is None else f"{calibrator} {percentile:g}"
