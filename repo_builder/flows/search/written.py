"""A choice as plain rules, few enough to be read, and the recipe that says them as TOML."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from repo_builder.core import codec
from repo_builder.core.precisions import LOWERED, PRECISIONS
from repo_builder.core.recipe import LayerRule, Recipe
from repo_builder.flows.search.choices import Space, called
from repo_builder.quantize.rules import Layer, LayerPlan, plan

_SPECIAL = re.compile(r"([*?\[])")


def rules(recipe: Recipe, space: Space, plans: Sequence[LayerPlan]) -> tuple[LayerRule, ...]:
    """Return rules that give every layer what the plans do: one a type for what most are, then what differs.

    Args:
        recipe: Its rules that call layers by their full name stay.
        space: The layers.
        plans: What each is to become.
    """
    wanted = {item.name: _bare(item) for item in plans}
    pinned = tuple(rule for rule in recipe.quantize.layers if called(rule))
    general = tuple(_by_type(space.layers, plans))
    exceptions: list[LayerRule] = []
    while True:
        spec = dataclasses.replace(recipe.quantize, keep="all", layers=(*general, *pinned, *exceptions))
        found = {item.name: _bare(item) for item in plan(list(space.layers), spec)} if spec.layers else {}
        wrong = [name for name in wanted if not _alike(found.get(name), wanted[name])]
        if not wrong:
            return spec.layers
        exceptions.append(_exception(wrong[0], wanted, wrong, space.layers))


def _bare(item: LayerPlan) -> LayerRule:
    """Return what a plan says of its layer, whatever selects it."""
    if item.rule is None or item.precision not in LOWERED:
        return LayerRule(precision=item.precision)
    return dataclasses.replace(item.rule, type=None, name=None, precision=item.precision)


def _alike(found: LayerRule | None, wanted: LayerRule) -> bool:
    return found == wanted or (found is None and wanted == LayerRule(precision="fp32"))


def _by_type(layers: Sequence[Layer], plans: Sequence[LayerPlan]) -> Iterator[LayerRule]:
    """Yield one rule for each type of layer with a weight: what most of its layers are, where that is not fp32."""
    kinds: dict[str, Counter[LayerRule]] = {}
    for item in plans:
        if item.weighted:
            kinds.setdefault(item.type, Counter())[_bare(item)] += 1
    for kind, counts in sorted(kinds.items()):
        most = max(counts, key=lambda rule: (counts[rule], rule.precision))
        if most.precision != "fp32":
            yield dataclasses.replace(most, type=kind)


def _exception(name: str, wanted: Mapping[str, LayerRule], wrong: Iterable[str], layers: Sequence[Layer]) -> LayerRule:
    """Return a rule for a layer, and for all that share a beginning with it where they are to be the same."""
    mine, open_ = wanted[name], set(wrong)
    for end in (match.end() for match in re.finditer(r"[./]", name)):
        pattern = f"{_escaped(name[:end])}*"
        shared = [layer[0] for layer in layers if layer[0] in wanted and fnmatchcase(layer[0], pattern)]
        if len(open_.intersection(shared)) > 1 and all(wanted[item] == mine for item in shared):
            return dataclasses.replace(mine, name=pattern)
    return dataclasses.replace(mine, name=_escaped(name))


def _escaped(text: str) -> str:
    return _SPECIAL.sub(r"[\1]", text)


def toml(recipe: Recipe, *, comments: Sequence[str] = (), reasons: Mapping[str, str] | None = None) -> str:
    """Return a recipe as TOML.

    Args:
        recipe: The recipe.
        comments: Lines above it.
        reasons: Selector of a rule (its name, or its type) → a comment behind it.
    """
    lines = [f"# {_line(item)}" for item in comments]
    document = codec.plain(recipe)
    quantize = document.pop("quantize", {})
    found = quantize.pop("layers", [])
    lines += _table("", document)
    lines += ["", "[quantize]", *_pairs(quantize)]
    for rule in found:
        shown = {key: value for key, value in rule.items() if key != "num_bits"}
        coded = PRECISIONS[shown["precision"]].codes
        of_others = {"weight and input": (), "weight": ("input",), "none": ("input", "weight")}[coded]
        shown = {key: value for key, value in shown.items() if key not in of_others}
        why = (reasons or {}).get(rule.get("name") or rule.get("type") or "", "")
        lines += ["", "[[quantize.layers]]" + (f" # {_line(why)}" if why else ""), *_pairs(shown)]
    return "\n".join(lines) + "\n"


def _table(path: str, values: Mapping[str, Any]) -> list[str]:
    plain = {key: value for key, value in values.items() if not _is_table(value)}
    lines = ["", f"[{path}]"] if path and plain else []
    lines += _pairs(plain)
    for key, value in values.items():
        if _is_table(value):
            lines += _table(f"{path}.{_key(key)}" if path else _key(key), value)
    return lines


def _is_table(value: Any) -> bool:  # noqa: ANN401 - any TOML value
    return isinstance(value, dict) and bool(value)


def _pairs(values: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in values.items()]


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:  # noqa: ANN401 - any TOML value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{ " + ", ".join(_pairs(value)) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _line(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
