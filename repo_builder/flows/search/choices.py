"""What a search chooses from: which layers are free, and one choice of a precision and a calibrator for each.

A choice is written down as what differs from *all free layers in int8, by the calibrators of their rules*. Nodes
without a weight (sums, pools, the products of attention) take what placement makes of them, until a choice says more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from repo_builder.core import codec
from repo_builder.core.precisions import LOWERED, PRECISIONS
from repo_builder.core.recipe import (
    InputQuantizer,
    LayerRule,
    Precision,
    QuantizeSpec,
    Recipe,
    RepairSpec,
    WeightQuantizer,
)
from repo_builder.core.recipe.precision import FP8_CALIBRATORS
from repo_builder.quantize.rules import WEIGHTED, Layer, LayerPlan

_WILDCARDS = frozenset("*?[")
REPAIRS = RepairSpec(equalize=True, rounding="adaptive", correct_bias=True)  # smoothing has a strength to be found
_PLAIN = frozenset({"max", "percentile", "mse", "entropy", "dynamic"})


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One precision for every layer, as what differs from int8.

    Attributes:
        precisions: (layer, what it is), sorted by layer.
        calibrators: (layer, how its input's range is found), sorted by layer; for others it is their rule's.
        repaired: Whether ``REPAIRS`` are made for it, of which those stay that help.
    """

    precisions: tuple[tuple[str, Precision], ...] = ()
    calibrators: tuple[tuple[str, InputQuantizer], ...] = ()
    repaired: bool = False

    def but(self, names: Iterable[str], precision: Precision | None) -> Choice:
        """Return the choice with layers of another precision; None takes back what was said of them."""
        chosen = dict(self.precisions)
        for name in names:
            chosen.pop(name, None)
            if precision is not None:
                chosen[name] = precision
        return dataclasses.replace(self, precisions=tuple(sorted(chosen.items())))

    def by(self, names: Iterable[str], calibrator: InputQuantizer) -> Choice:
        """Return the choice with the inputs of layers calibrated otherwise."""
        chosen = dict(self.calibrators) | dict.fromkeys(names, calibrator)
        return dataclasses.replace(self, calibrators=tuple(sorted(chosen.items())))

    def with_all(self, others: Iterable[Choice]) -> Choice:
        """Return the choice with what others say that differs from it; of two that differ the later counts."""
        mine, chosen = dict(self.precisions), dict(self.precisions)
        for other in others:
            said = dict(other.precisions)
            for name in mine.keys() | said.keys():
                if said.get(name) != mine.get(name):
                    chosen.pop(name, None)
                    chosen |= {name: said[name]} if name in said else {}
        return dataclasses.replace(self, precisions=tuple(sorted(chosen.items())))

    def of(self, precision: Precision) -> frozenset[str]:
        """Return the layers that the choice says to be of a precision."""
        return frozenset(name for name, said in self.precisions if said == precision)


@dataclass(frozen=True, kw_only=True)
class Space:
    """The layers of a network, and what may be chosen of them.

    Attributes:
        layers: All of them as rules see them, in the graph's order.
        plans: All that is free in int8, all else as the recipe's rules say.
        free: Layers with a weight that are int8 on the target and that no rule calls by their full name, in order.
        sums: Nodes without a weight that placement makes int8 between such layers, in order.
        products: Products of two activations, as in attention, which are float unless they are asked for.
    """

    layers: tuple[Layer, ...]
    plans: tuple[LayerPlan, ...]
    free: tuple[str, ...]
    sums: tuple[str, ...] = ()
    products: tuple[str, ...] = ()

    def planned(self, choice: Choice) -> tuple[LayerPlan, ...]:
        """Return what a choice makes of every layer, in the graph's order."""
        known = {item.name: item for item in self.plans}
        said, calibrators = dict(choice.precisions), dict(choice.calibrators)
        found = []
        for name, kind, *_ in self.layers:
            plan = known.get(name)
            if plan is None and name in said:
                plan = LayerPlan(name=name, type=kind, rule=None, rule_index=None, precision="fp32")
            if plan is not None:
                found.append(_changed(plan, said.get(name, plan.precision), calibrators.get(name)))
        return tuple(found)

    def key(self, choice: Choice) -> list[Any]:
        """Return what a choice's graph depends on beside the model and its samples, as JSON values."""
        return [
            [item.name, item.precision, *([codec.plain(item.rule)] if item.precision in LOWERED else [])]
            for item in self.planned(choice)
        ]


def _changed(plan: LayerPlan, precision: Precision, calibrator: InputQuantizer | None) -> LayerPlan:
    rule = plan.rule or LayerRule(name=plan.name, precision=precision)
    weight = rule.weight if precision == "int4" else rule.weight.without_blocks()
    found: dict[str, Any] = {"input": rule.input, "weight": weight}
    if calibrator is not None and rule.input.calibrator != "dynamic":
        found["input"] = calibrator
    if precision == "fp8":  # it takes fewer calibrators, and the plain one for the others
        plain = {"calibrator": "max", "percentile": None}
        for key, spec in found.items():
            found[key] = spec if spec.calibrator in FP8_CALIBRATORS else dataclasses.replace(spec, **plain)
    rule = dataclasses.replace(rule, type=None, name=plan.name, precision=precision, **found)
    return dataclasses.replace(plan, rule=rule, rule_index=None, precision=precision)


def called(rule: LayerRule | None) -> bool:
    """Whether a rule calls a layer by its full name: a search leaves such a one as it is."""
    return rule is not None and rule.name is not None and not _WILDCARDS & set(rule.name)


def widest(recipe: Recipe) -> Recipe:
    """Return the recipe with int8 asked of every layer that no rule calls by its full name.

    Rules that ask for int8 stay, for how they calibrate; others by type or pattern give way. Repairs are left out: they
    are made for one choice of layers.
    """
    kept = [_fixed(rule) for rule in recipe.quantize.layers if rule.precision == "int8" or called(rule)]
    rules = (LayerRule(precision="int8"), *kept)
    spec = dataclasses.replace(recipe.quantize, keep="all", layers=rules, repair=RepairSpec())
    return dataclasses.replace(recipe, search=None, finetune=None, quantize=spec)


def _fixed(rule: LayerRule) -> LayerRule:
    """Return a rule by calibrators that find one range: which is best, the search finds out itself."""
    found = rule if rule.input.calibrator in _PLAIN else dataclasses.replace(rule, input=InputQuantizer())
    if found.weight.calibrator in _PLAIN or found.precision == "int4":
        return found
    return dataclasses.replace(found, weight=WeightQuantizer(per_channel=found.weight.per_channel))


def searched(recipe: Recipe, rules: tuple[LayerRule, ...], *, repaired: bool = False) -> Recipe:
    """Return the recipe that a search ends with: plain rules, each taken as it stands, its choice's repairs."""
    old = recipe.quantize
    if any(PRECISIONS[rule.precision].codes != "none" for rule in rules):
        repair = REPAIRS if repaired else RepairSpec()
        spec = dataclasses.replace(old, keep="all", layers=rules, repair=repair)
    else:  # what else the table says is of layers of codes, and there are none
        spec = QuantizeSpec(backend=old.backend, batch_size=old.batch_size, keep="all", layers=rules)
    return dataclasses.replace(recipe, search=None, quantize=spec)


def weighted(layer: Layer) -> bool:
    """Whether a layer has a weight."""
    return layer[1] in WEIGHTED
