"""Layers as rules see them: what is listed is what a rule selects."""

from __future__ import annotations

import json

import pytest

from repo_builder import cli
from repo_builder.core.recipe import LayerRule, QuantizeSpec
from repo_builder.flows.layers import layers
from repo_builder.quantize import plan


def test_a_built_ins_layers_are_those_that_its_rules_may_name(capsys: pytest.CaptureFixture[str]) -> None:
    found = layers("jsc-tiny")
    linear = [item for item in found if item.type == "Linear"]
    assert len(linear) == 1
    assert linear[0].selected_by == "any rule"
    assert "Gemm" in linear[0].aliases
    listed = [(item.name, item.type, *item.aliases) for item in found]
    for kind in (linear[0].type, *linear[0].aliases):
        rule = LayerRule(type=kind, precision="int8")
        assert [item.name for item in plan(listed, QuantizeSpec(layers=(rule,))) if item.rule] == [linear[0].name]
    assert cli.run(["layers", "jsc-tiny", "--json"]) == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)["layers"]] == [item.name for item in found]


def test_a_model_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["layers", "missing.onnx"]) == 5
    assert "missing.onnx" in capsys.readouterr().err
