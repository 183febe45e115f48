from __future__ import annotations

import json
import sys

import pytest

from repo_builder import cli, recipes
from repo_builder.core.recipe import parse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_every_built_in_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes.built_in())
    assert cli.run(["recipes", "--json"]) == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == list(recipes.built_in())


def test_a_shown_recipe_is_toml_that_parses(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "show", "vgg"]) == 0
    assert parse(tomllib.loads(capsys.readouterr().out)) == recipes.load("vgg")
    assert cli.run(["recipes", "show", "vvg"]) == 3
    assert "did you mean 'vgg'" in capsys.readouterr().err
