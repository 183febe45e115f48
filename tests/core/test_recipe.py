from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder import recipes
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import LayerRule, Recipe, SearchSpec, WeightQuantizer, parse
from repo_builder.core.recipe.search import limits

MINIMAL: dict[str, Any] = {
    "name": "net",
    "model": {
        "source": "vgg",
        "inputs": [{"name": "image", "dtype": "fp32", "shape": [3, 32, 32]}],
        "outputs": [{"name": "logits", "dtype": "fp32", "shape": [10]}],
    },
    "data": {"source": "digits"},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(MINIMAL)
    node: Any = document
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return document


def test_a_minimal_recipe_has_defaults() -> None:
    recipe = parse(MINIMAL)
    assert recipe.export.opset == 17
    assert recipe.quantize.backend == "onnxruntime"
    assert recipe.model.inputs[0].shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("quantise", {}, r"quantise: unknown key .* did you mean 'quantize'\?"),
        ("data.calibraton", 3, r"data\.calibraton: unknown key .* did you mean 'calibration'"),
        ("data.test", 1.5, r"data\.test: 1\.5 is not a fraction"),
        ("data.test", "x", r"data\.test: expected a number, found 'x'"),
        ("data.test", 0.95, "validation and test leave nothing"),
        ("data", 3, "data: expected a table, found 3"),
        ("data.calibration", True, "expected a whole number, found True"),
        ("data.calibration", 0, "at least one sample"),
        ("name", "a/b", "cannot name a folder"),
        ("name", "", "cannot name a folder"),
        ("model.inputs", [], "there is no input"),
        ("model.inputs", "x", "expected an array"),
        ("model.inputs", [{"name": "x", "dtype": "float7", "shape": [1]}], r"inputs\[0\]\.dtype: 'float7' is no data"),
        ("model.inputs", [{"name": "x", "dtype": "fp32"}], r"inputs\[0\]: the key 'shape' is missing"),
        ("compile.target", "cuda", "'cuda' is not one of auto, onnxruntime, tensorrt"),
        ("compile.tensorrt", {"workspace_mib": 0}, r"compile\.tensorrt\.workspace_mib: 0 must be at least 1"),
        ("compile.tensorrt", {"optimization_level": 6}, r"optimization_level: 6 is not in 0 to 5"),
        ("compile.tensorrt", {"timing_cache": "no"}, r"compile\.tensorrt\.timing_cache: expected"),
        ("compile.tensorrt", {"profiles": [{}, {"max_batch": 4}]}, r"profiles\[1\]: 1 <= min_batch .*: 1, 8, 4"),
        ("compile.tensorrt", {"profiles": [{"min_batch": 0}]}, r"profiles\[0\]\.min_batch: 0 must be at least 1"),
        ("compile.tensorrt", {"profiles": [{"batch": 4}]}, r"profiles\[0\]\.batch: unknown key"),
        ("export.opset", 9, "9 is not in 13 to 23"),
        ("seed", 10**400, r"seed: a number of about 401 digits is too large"),
        ("seed", 2**40, r"seed: 1099511627776 must be below 4294967296"),
        ("name", "a" * 300, "longer than 200 bytes"),
        ("quantize.repair", {"smooth": 1.5}, r"quantize\.repair\.smooth: 1\.5 is not in 0 to 1"),
        ("quantize.repair", {"rounding": "up"}, r"quantize\.repair\.rounding: 'up' is not one of nearest, adaptive"),
        ("quantize.repair", {"relu6": "relu"}, r"quantize\.repair\.relu6: says how to equalize, and equalize is off"),
        ("quantize.repair", {"keep": "all"}, r"quantize\.repair\.keep: keeps all of no repairs"),
        ("quantize.repair", {"equalise": True}, r"quantize\.repair\.equalise: unknown key .* did you mean 'equalize'"),
        ("quantize.repair", {"correct_bias": True}, r"quantize\.repair: repairs what int8 loses, and no rule asks for"),
        ("quantize.batch_size", 0, r"quantize\.batch_size: 0 must be at least 1"),
        ("quantize.batch_size", 2**31, r"quantize\.batch_size: 2147483648 must be at most 2147483647"),
        ("train.learning_rate", float("nan"), r"train\.learning_rate: nan is not a finite number"),
        ("train.learning_rate", 0, r"train\.learning_rate: 0\.0 must be above 0"),
        ("train.epochs", 0, r"train\.epochs: 0 must be at least 1"),
        ("train.weight_decay", -0.1, r"train\.weight_decay: -0\.1 must not be negative"),
        ("measure.batch_sizes", [0], r"measure\.batch_sizes\[0\]: 0 must be at least 1"),
        ("measure.batch_sizes", [], r"measure\.batch_sizes: \(\) must not be empty"),
        ("measure.concurrency", [1, -1], r"measure\.concurrency\[1\]: -1 must be at least 1"),
        ("measure.metric", "nope", r"measure\.metric: 'nope' is not module:function"),
        (
            "measure.accuracy_tolerance",
            0.005,
            r"unknown key .* write accuracy_tolerance_points = 0\.5$",
        ),
        ("measure.accuracy_tolerance", 0.007, r"write accuracy_tolerance_points = 0\.7$"),
        ("measure.accuracy_tolerance", 1, r"write accuracy_tolerance_points = 100$"),
        ("measure.accuracy_tolerance", 10**400, r"write accuracy_tolerance_points$"),
        ("measure.accuracy_tolerance", float("nan"), r"write accuracy_tolerance_points$"),
        ("measure.accuracy_tolerance", "1 %", r"write accuracy_tolerance_points$"),
        ("measure.accuracy_tolerance_points", 100.5, r"100\.5 must be at most 100"),
        ("measure.output_tolerance", float("inf"), r"measure\.output_tolerance: inf is not a finite number"),
        ("compile.onnxruntime.intra_op_thread_count", -3, r"intra_op_thread_count: -3 must not be negative"),
        ("compile.tensorrt.profiles", [{"shapes": {"x": 3}}], r"profiles\[0\]\.shapes\.x: expected a table, found 3"),
        (
            "compile.tensorrt.profiles",
            [{"shapes": {"x": {"mim": [3]}}}],
            r"shapes\.x: unknown key 'mim' .* 'min'",
        ),
        ("repository.max_queue_delay_us", -5, r"max_queue_delay_us: -5 must not be negative"),
        ("repository.keep_versions", 0, r"keep_versions: 0 must be at least 1"),
        ("model.source", "", r"model\.source: '' is empty or holds a NUL"),
        ("model.checkpoint", "a\0b", r"model\.checkpoint: .* is empty or holds a NUL"),
        ("model.inputs", [{"name": "x", "dtype": "fp32", "shape": [-2]}], r"shape\[0\]: -2 must be at least -1"),
        ("model.outputs", [{"name": "y", "dtype": "fp32", "shape": [1]}] * 2, r"model\.outputs: 'y' is named twice"),
        ("model.arguments", {"a": 10**400}, r"model\.arguments\.a: a number of about 401 digits is too large"),
        ("repository.warmup_batch_sizes", [128], r"128 is not between 1 and max_batch_size \(64\)"),
        ("repository.instance_count", 0, "must be at least 1"),
        ("repository.max_batch_size", -1, "must not be negative"),
        ("quantize.layers", [{"precision": "int3"}], "'int3' is not one of int4, int8, fp8, fp16, fp32"),
        ("quantize.layers", [{"precision": "int8", "num_bits": 4}], "4 bits are not supported"),
        ("quantize.layers", [{"precision": "int8", "input": {"percentile": 99}}], "takes no percentile"),
        ("quantize.layers", [{"precision": "int8", "weight": {"calibrator": "percentile"}}], "needs a percentile"),
        ("quantize.layers", [{"precision": "int8", "weight": {"calibrator": "gptq"}}], "gptq chooses codes of int4"),
        ("quantize.layers", [{"precision": "fp8", "weight": {"calibrator": "gptq"}}], "the rule asks for fp8"),
        ("quantize.layers", [{"precision": "int8", "input": {"calibrator": "gptq"}}], "'gptq' is not one of"),
        (
            "quantize.layers",
            [{"precision": "int8", "input": {"calibrator": "percentile", "percentile": 101}}],
            r"input\.percentile: 101\.0 is not in \(0, 100\]",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_key_path(path: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(changed(path, value))


@pytest.mark.parametrize("precision", ["int8", "fp8", "fp16", "fp32"])
def test_a_rule_of_int4_has_a_form_in_every_precision(precision: Any) -> None:
    rule = LayerRule(precision="int4", weight=WeightQuantizer(calibrator="gptq", block=64, symmetric=True))
    assert rule.of(precision).weight == WeightQuantizer()
    assert rule.of("int4") == rule


names = st.text("abcdefghij-_.0123456789", min_size=1, max_size=12).filter(lambda text: text[0].isalnum())
calibrators = st.one_of(
    st.sampled_from(["max", "mse", "entropy"]).map(lambda name: {"calibrator": name}),
    st.floats(0.1, 100).map(lambda share: {"calibrator": "percentile", "percentile": share}),
)
rules = st.fixed_dictionaries(
    {"precision": st.sampled_from(["int8", "fp16", "fp32"])},
    optional={
        "type": st.sampled_from(["Conv2d", "Linear", "*"]),
        "name": st.text("abc.*?[]", min_size=1, max_size=8),
        "input": calibrators,
        "weight": calibrators,
    },
)
documents = st.fixed_dictionaries(
    {
        "name": names,
        "model": st.just(MINIMAL["model"]),
        "data": st.fixed_dictionaries({"source": names}, optional={"calibration": st.integers(1, 9999)}),
    },
    optional={
        "seed": st.integers(0, 2**31),
        "quantize": st.fixed_dictionaries({"layers": st.lists(rules, max_size=4)}),
        "measure": st.fixed_dictionaries({"batch_sizes": st.lists(st.integers(1, 64), min_size=1, max_size=4)}),
    },
)


@given(documents)
def test_a_recipe_survives_the_way_through_json(document: dict[str, Any]) -> None:
    recipe = parse(document)
    again = parse(json.loads(json.dumps(recipe.to_dict())))
    assert isinstance(again, Recipe)
    assert again == recipe


def test_repairs_and_fine_tuning_are_not_made_of_one_network() -> None:
    quantize = {"layers": [{"type": "*", "precision": "int8"}], "repair": {"correct_bias": True}}
    assert parse({**MINIMAL, "quantize": quantize}).quantize.repair.asked
    with pytest.raises(RecipeError, match=r"quantize\.repair: repairs a network that \[finetune\] trains"):
        parse({**MINIMAL, "quantize": quantize, "finetune": {}})


def test_limits_of_a_search_lie_over_the_recipes_and_are_of_one() -> None:
    table = SearchSpec(max_drop=0.5, budget_s=60)
    assert limits(None, False) is None
    assert limits(table, False) == table
    assert limits(None, True) == SearchSpec()
    assert limits(table, True, max_drop=0.1, seed=None) == SearchSpec(max_drop=0.1, budget_s=60)
    with pytest.raises(RecipeError, match="max_drop: there is no search"):
        limits(None, False, max_drop=0.1)
    with pytest.raises(RecipeError, match=r"search\.max_drop"):
        limits(None, True, max_drop=-1.0)
    assert recipes.load("vgg").search is None
    assert recipes.load("vgg", ("search.max_drop=1.0",)).search == SearchSpec(max_drop=1.0)
