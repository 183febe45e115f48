"""Plain rules that say what was chosen: few, and exactly that."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from repo_builder import recipes
from repo_builder.core.recipe import InputQuantizer, LayerRule, parse, reading
from repo_builder.flows.search.choices import Choice, Space, called, searched, widest
from repo_builder.flows.search.written import rules, toml
from repo_builder.quantize.rules import plan

LAYERS = tuple(
    (name, kind)
    for name, kind in (
        ("stem", "Conv2d"), ("body.0.a", "Conv2d"), ("body.0.b", "Conv2d"), ("body.1.a", "Conv2d"), ("sum", "Add"),
        ("odd[1].c*", "Conv2d"), ("head.one", "Linear"), ("head.two", "Linear"),
    )
)  # fmt: skip
NAMES = [name for name, kind in LAYERS if kind != "Add"]
RECIPE = recipes.load("jsc-tiny", ('quantize.layers=[{type="Conv2d", precision="int8"}]',))
MSE = InputQuantizer(calibrator="mse")


def space(recipe=RECIPE) -> Space:
    plans = plan(list(LAYERS), widest(recipe).quantize)
    return Space(layers=LAYERS, plans=plans, free=tuple(NAMES), sums=("sum",))


def given_by(recipe) -> dict[str, tuple[str, InputQuantizer]]:
    found = plan(list(LAYERS), recipe.quantize)
    return {
        item.name: (item.precision, item.rule.input if item.rule and item.precision == "int8" else InputQuantizer())
        for item in found
    }


@given(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["fp32", "fp16"])),
    st.lists(st.sampled_from(NAMES)),
    st.booleans(),
)
def test_rules_give_every_layer_what_was_chosen(low: dict[str, str], others: list[str], summed: bool) -> None:
    choice = Choice().by(others, MSE)
    for name, precision in low.items():
        choice = choice.but([name], precision)  # type: ignore[arg-type]
    choice = choice.but(["sum"], "fp32") if summed else choice
    where = space()
    made = searched(RECIPE, rules(RECIPE, where, where.planned(choice)))
    found = given_by(made)
    for item in where.planned(choice):
        precision, calibrator = found.get(item.name, ("fp32", InputQuantizer()))
        assert precision == item.precision
        assert item.rule is not None
        assert precision != "int8" or calibrator == item.rule.input
    assert parse(reading.parsed(toml(made))) == made  # and the file says it again
    assert made.quantize.keep == "all"
    assert made.search is None


def test_what_is_alike_is_one_rule() -> None:
    where = space()
    choice = Choice().but(["body.0.a", "body.0.b"], "fp32")
    text = [str(rule) for rule in rules(RECIPE, where, where.planned(choice))]
    assert text == ["type=Conv2d → int8", "type=Linear → int8", "name=body.0.* → fp32"]


def test_a_layer_that_is_called_by_its_full_name_is_left_alone() -> None:
    recipe = recipes.load("jsc-tiny", ('quantize.layers=[{name="stem", precision="fp16"}]',))
    found = {item.name: item.precision for item in plan(list(LAYERS), widest(recipe).quantize)}
    assert found["stem"] == "fp16"
    assert found["body.0.a"] == "int8"
    assert called(LayerRule(name="stem", precision="fp16"))
    assert not called(LayerRule(name="body.*", precision="fp16"))


def test_comments_and_reasons_stay_on_their_line() -> None:
    text = toml(RECIPE, comments=["found\nby a search"], reasons={"Conv2d": "as\nmeasured"})
    assert text.startswith("# found by a search\n")
    assert "[[quantize.layers]] # as measured\n" in text
    assert parse(reading.parsed(text)) == RECIPE
