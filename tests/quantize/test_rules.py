"""Which layer gets which precision."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import LayerRule, QuantizeSpec
from repo_builder.quantize import plan
from repo_builder.quantize.rules import WEIGHTED, WEIGHTLESS

LAYERS = [
    ("features.0", "Conv2d"),
    ("features.1", "ReLU"),
    ("features.2", "MaxPool2d"),
    ("features.3", "Conv2d"),
    ("features.4", "BatchNorm2d"),
    ("add", "Add"),
    ("classifier.0", "Linear"),
    ("last", "Linear"),
]


def precisions(*rules: LayerRule, layers=LAYERS) -> dict[str, str]:
    return {item.name: item.precision for item in plan(layers, QuantizeSpec(layers=rules))}


def test_without_rules_every_layer_with_a_weight_is_fp32_and_nothing_else_is_listed() -> None:
    assert precisions() == {"features.0": "fp32", "features.3": "fp32", "classifier.0": "fp32", "last": "fp32"}


def test_an_optional_rule_may_select_nothing() -> None:
    nothing = {"type": "Conv3d", "precision": "int8"}
    with pytest.raises(RecipeError, match="matches no layer"):
        precisions(LayerRule(**nothing))
    assert precisions(LayerRule(**nothing, optional=True)) == precisions()
    some = LayerRule(type="Conv*", precision="int8", optional=True)
    assert precisions(some)["features.0"] == "int8"


def test_by_type_by_name_and_mixed_the_last_that_matches_wins() -> None:
    found = plan(
        LAYERS,
        QuantizeSpec(
            layers=(
                LayerRule(type="Conv2d", precision="int8"),
                LayerRule(type="Linear", precision="int8"),
                LayerRule(name="features.*", type="Conv*", precision="fp16"),
                LayerRule(name="features.0", precision="int8"),
                LayerRule(name="last", precision="fp32"),
            )
        ),
    )
    assert {item.name: (item.precision, item.rule_index) for item in found} == {
        "features.0": ("int8", 3),
        "features.3": ("fp16", 2),
        "classifier.0": ("int8", 1),
        "last": ("fp32", 4),
    }
    assert str(found[0].rule) == "name=features.0 → int8"


@pytest.mark.parametrize(
    "rule", [LayerRule(type="MaxPool2d", precision="int8"), LayerRule(name="features.2", precision="int8")]
)
def test_pooling_takes_int8_where_it_is_asked_for(rule: LayerRule) -> None:
    assert precisions(rule)["features.2"] == "int8"


@pytest.mark.parametrize(
    "rule",
    [
        LayerRule(precision="int8"),
        LayerRule(name="*", precision="int8"),
        LayerRule(type="*", precision="int8"),
        LayerRule(name="features.?", precision="int8"),
    ],
)
def test_a_wildcard_that_happens_to_match_pooling_or_add_leaves_it_alone(rule: LayerRule) -> None:
    assert set(precisions(rule)) == {"features.0", "features.3", "classifier.0", "last"}


def test_other_names_of_a_type_select_as_the_type_does() -> None:
    layers = [("conv", "Conv2d", "Conv"), ("fc", "Linear", "Gemm"), ("pool", "MaxPool2d", "MaxPool")]
    assert precisions(LayerRule(type="Conv", precision="int8"), layers=layers) == {"conv": "int8", "fc": "fp32"}
    assert precisions(LayerRule(type="Gemm", precision="int8"), layers=layers) == {"conv": "fp32", "fc": "int8"}
    assert precisions(LayerRule(type="MaxPool", precision="int8"), layers=layers)["pool"] == "int8"


@pytest.mark.parametrize(
    ("rule", "message", "hint"),
    [
        (LayerRule(name="feature.0", precision="int8"), "matches no layer", "did you mean 'features.0'"),
        (LayerRule(type="Conv2D", precision="int8"), "matches no layer", "did you mean 'Conv2d'"),
        (LayerRule(type="Linear", name="lost", precision="int8"), "matches no layer", "did you mean 'last'"),
        (LayerRule(name="x", precision="int8"), "matches no layer", "there are: add, classifier.0"),
        (LayerRule(type="ReLU", precision="int8"), "as features.1 (ReLU)", "ReLU takes the precision of what feeds it"),
        (LayerRule(name="features.4", precision="fp16"), "as features.4 (BatchNorm2d)", "what feeds it"),
        (LayerRule(name="features.[2]", precision="int8"), "without a weight", 'type = "MaxPool2d"'),
    ],
)
def test_a_rule_that_does_nothing_is_refused_with_what_it_could_have_meant(
    rule: LayerRule, message: str, hint: str
) -> None:
    with pytest.raises(RecipeError) as raised:
        precisions(LayerRule(precision="fp16"), rule)
    assert raised.value.where == "quantize.layers[1]"
    assert message in raised.value.message
    assert hint in (raised.value.hint or "")


def test_a_network_without_layers_is_told_apart_from_a_misspelt_rule() -> None:
    with pytest.raises(RecipeError, match="the model has no layer that rules are for"):
        precisions(LayerRule(precision="int8"), layers=[("act", "ReLU")])


names = st.sampled_from(["a.0", "a.1", "b", "b.0", "c"])
kinds = st.sampled_from([*sorted(WEIGHTED), *sorted(WEIGHTLESS), "ReLU"])
patterns = st.sampled_from(["*", "a.*", "a.0", "b*", "?", "c"])
rules = st.builds(
    LayerRule,
    type=st.none() | kinds | st.sampled_from(["Conv*", "*Pool*", "*"]),
    name=st.none() | patterns,
    precision=st.sampled_from(["int8", "fp16", "fp32"]),
)


@given(layers=st.dictionaries(names, kinds, min_size=1), rules=st.lists(rules, max_size=4))
def test_each_planned_layer_has_the_precision_of_the_last_rule_that_fits(layers, rules) -> None:
    try:
        found = plan(list(layers.items()), QuantizeSpec(layers=tuple(rules)))
    except RecipeError:
        return
    for item in found:
        fits = [
            rule
            for rule in rules
            if fnmatchcase(item.type, rule.type or "*") and fnmatchcase(item.name, rule.name or "*")
        ]
        if item.type in WEIGHTED:
            assert item.rule == (fits[-1] if fits else None)
        else:
            assert item.rule in fits
        assert item.precision == (item.rule.precision if item.rule else "fp32")
    assert {item.name for item in found} >= {name for name, kind in layers.items() if kind in WEIGHTED}
