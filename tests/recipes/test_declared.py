"""What is said of recipes is what is declared: the schema, and the tables of the documentation."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from repo_builder import cli, recipes
from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import parse
from repo_builder.recipes import declared

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = declared.json_schema()
TYPES = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict}


def faults(schema: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """Check a value as a JSON schema's validator does, for the words that this schema uses."""
    known = {"$schema", "title", "description", "default", "type", "enum", "items", "minItems", "pattern", "maxLength"}
    known |= {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "properties", "required"}
    assert set(schema) <= known | {"additionalProperties", "anyOf"}
    if "anyOf" in schema:
        tried = [faults(item, value, path) for item in schema["anyOf"]]
        return min(tried, key=len)
    if "enum" in schema:
        return [] if value in schema["enum"] else [path]
    kind = schema["type"]
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return [path]
    limits = {
        "minimum": lambda limit: value >= limit,
        "maximum": lambda limit: value <= limit,
        "exclusiveMinimum": lambda limit: value > limit,
        "exclusiveMaximum": lambda limit: value < limit,
        "minItems": lambda limit: len(value) >= limit,
        "maxLength": lambda limit: len(value) <= limit,
        "pattern": lambda limit: re.search(limit, value) is not None,
    }
    found = [path for word, holds in limits.items() if word in schema and not holds(schema[word])]
    if kind == "array":
        found += [
            fault for place, item in enumerate(value) for fault in faults(schema["items"], item, f"{path}[{place}]")
        ]
    if kind == "object":
        properties, rest = schema.get("properties", {}), schema["additionalProperties"]
        found += [f"{path}.{name}" for name in schema.get("required", ()) if name not in value]
        for name, item in value.items():
            inner = properties.get(name, rest)
            if inner is not True:
                found += [f"{path}.{name}"] if inner is False else faults(inner, item, f"{path}.{name}")
    return found


@pytest.mark.parametrize("name", recipes.built_in())
def test_a_built_in_recipe_fits_the_schema(name: str) -> None:
    assert faults(SCHEMA, recipes.load(name).to_dict()) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("quantise", {}),
        ("seed", -1),
        ("name", "a/b"),
        ("data.test", 1.5),
        ("train.epochs", 0),
        ("train.learning_rate", 0),
        ("measure.batch_sizes", []),
        ("measure.batch_sizes", [0]),
        ("measure.metric", "nope"),
        ("export.opset", 9),
        ("quantize.layers", [{"precision": "int3"}]),
        ("quantize.layers", [{"type": "Conv2d"}]),
        ("compile.tensorrt.optimization_level", 6),
        ("compile.tensorrt.profiles", [{"shapes": {"x": 3}}]),
        ("repository.max_queue_delay_us", -5),
        ("repository.response_cache", "no"),
    ],
)
def test_the_schema_refuses_what_the_recipe_refuses(path: str, value: Any) -> None:
    document = recipes.load("vgg").to_dict()
    *parents, last = path.split(".")
    node = document
    for part in parents:
        node = node[part]
    node[last] = value
    with pytest.raises(RecipeError):
        parse(document)
    assert [fault for fault in faults(SCHEMA, document) if fault.startswith(f".{path}")]


def writer() -> Any:
    spec = importlib.util.spec_from_file_location("write_recipe_docs", ROOT / "tools" / "write_recipe_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documentation_is_what_is_declared() -> None:
    """Else run tools/write_recipe_docs.py."""
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert writer().page(page) == page
    assert writer().schema() == (ROOT / "docs" / "recipe.schema.json").read_text(encoding="utf-8")


def test_every_table_and_key_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    same = {
        "[[model.outputs]]": "[[model.inputs]]",
        "[[pipeline.inputs]]": "[[model.inputs]]",
        "[quantize.layers.input]": "[quantize.layers.weight]",
    }
    for header, table in declared.tables().items():
        assert f"<!-- table: {same.get(header, header)} -->" in page
        assert "|  |\n" not in f"{table}\n", f"a key of {header} has no meaning in its class's docstring"


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA
