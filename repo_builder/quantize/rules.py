"""Which layer gets which precision: the recipe's rules applied to a list of layers. Pure: no torch, no ONNX.

Rules are read top to bottom and the last that selects a layer wins. A rule selects by ``type`` and by ``name``, both
fnmatch patterns, so by-type, by-name and mixed use are one mechanism; a layer that no rule selects stays fp32.

Layers with a weight are selected by any rule that fits. Pooling, Add and the MatMul of attention have no weight; they
take int8 or fp16 only where they are asked for: by a rule with a ``type``, or by a ``name`` without wildcards. (Q/DQ in
front of every pooling that a ``*`` happens to match would cost accuracy and gain nothing.) Everything else, as ReLU or
BatchNorm, takes the precision of what feeds it and cannot be asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from repo_builder.core.errors import RecipeError, did_you_mean
from repo_builder.core.precisions import PRECISIONS
from repo_builder.core.recipe import LayerRule, Precision, QuantizeSpec

WEIGHTED = frozenset({
    "Linear",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
})  # fmt: skip
WEIGHTLESS = frozenset({
    "Add",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "MatMul",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
})  # fmt: skip

_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What one layer is to become.

    Attributes:
        name: Qualified name of the module, or the ONNX node's name.
        type: Layer type, as in ``Conv2d``.
        rule: The rule that won, or None where none selects the layer.
        rule_index: That rule's place in ``quantize.layers``.
        precision: What it is to be, as ``core.precisions`` lists them.
    """

    name: str
    type: str
    rule: LayerRule | None
    rule_index: int | None
    precision: Precision

    @property
    def weighted(self) -> bool:
        """Whether the layer has a weight to quantize."""
        return self.type in WEIGHTED

    @property
    def coded(self) -> bool:
        """Whether the layer's input and weight are to be codes, whose ranges its rule says how to find."""
        return PRECISIONS[self.precision].codes == "weight and input"

    @property
    def coded_rule(self) -> LayerRule:
        """The rule of such a layer."""
        if self.rule is None or not self.coded:
            raise ValueError(f"{self.name} is {self.precision}")
        return self.rule

    @property
    def int8_rule(self) -> LayerRule:
        """The rule of a layer that is int8."""
        if self.rule is None or self.precision != "int8":
            raise ValueError(f"{self.name} is not int8")
        return self.rule


Layer = tuple[str, ...]  # name, type, and other names of that type


def plan(layers: Sequence[Layer], spec: QuantizeSpec) -> tuple[LayerPlan, ...]:
    """Apply the rules to a model's layers.

    Args:
        layers: Name and type of every module without children, or of every ONNX node, in the model's order; further
            names of the type, as ``Gemm`` for ``Linear``, may follow and select as the type does.
        spec: The recipe's rules.

    Returns:
        One plan for each layer with a weight, and for each other layer that a rule asked for, in the same order.

    Raises:
        RecipeError: A rule that is not optional selects no layer, or only layers that cannot take its precision.
    """
    for index, rule in enumerate(spec.layers):
        _check(index, rule, layers)
    plans = []
    for layer in layers:
        name, kind = layer[:2]
        winners = [index for index, rule in enumerate(spec.layers) if _selects(rule, layer)]
        if not winners and kind not in WEIGHTED:
            continue
        winner = winners[-1] if winners else None
        won = None if winner is None else spec.layers[winner]
        precision: Precision = "fp32" if won is None else won.precision
        plans.append(LayerPlan(name=name, type=kind, rule=won, rule_index=winner, precision=precision))
    return tuple(plans)


def _matches(rule: LayerRule, layer: Layer) -> bool:
    return _of_type(rule, layer) and (rule.name is None or fnmatchcase(layer[0], rule.name))


def _of_type(rule: LayerRule, layer: Layer) -> bool:
    return rule.type is None or any(fnmatchcase(kind, rule.type) for kind in layer[1:])


def _selects(rule: LayerRule, layer: Layer) -> bool:
    by_type = rule.type is not None and rule.type != "*"
    by_full_name = rule.name is not None and not _WILDCARDS & set(rule.name)
    takes = layer[1] in WEIGHTED or (layer[1] in WEIGHTLESS and (by_type or by_full_name))
    return takes and _matches(rule, layer)


def _check(index: int, rule: LayerRule, layers: Sequence[Layer]) -> None:
    """Refuse a rule that does nothing and is not optional, and say why."""
    if rule.optional or any(_selects(rule, layer) for layer in layers):
        return
    where = f"quantize.layers[{index}]"
    matched = next((layer for layer in layers if _matches(rule, layer)), None)
    if matched is None or not _usable(layers):
        raise RecipeError(f"the rule '{rule}' matches no layer", where=where, hint=_meant(rule, layers))
    name, kind = matched[:2]
    if kind in WEIGHTLESS:
        raise RecipeError(
            f"the rule '{rule}' matches only layers without a weight, as {name} ({kind})",
            where=where,
            hint=f'ask for them by type = "{kind}" or by their full name',
        )
    raise RecipeError(
        f"the rule '{rule}' matches only layers that cannot be given a precision, as {name} ({kind})",
        where=where,
        hint=f"{kind} takes the precision of what feeds it; rules are for linear, convolution, pooling, Add and MatMul",
    )


def _usable(layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if layer[1] in WEIGHTED | WEIGHTLESS]


def _meant(rule: LayerRule, layers: Sequence[Layer]) -> str:
    usable = _usable(layers)
    of_type = [layer for layer in usable if _of_type(rule, layer)]
    if not usable:
        return "the model has no layer that rules are for"
    if rule.type is not None and not of_type:
        return f"type: {did_you_mean(rule.type, {kind for layer in usable for kind in layer[1:]})}"
    return f"name: {did_you_mean(rule.name or '', [layer[0] for layer in of_type])}"
