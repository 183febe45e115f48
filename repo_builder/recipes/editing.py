"""Values written into a recipe's text, so that its comments and its order stay."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from repo_builder.core.errors import RecipeError
from repo_builder.core.recipe import reading

Values = Mapping[str, Mapping[str, Any]]  # table, as in ``compile.onnxruntime`` → key → whole number or list of them


def with_values(text: str, values: Values, *, where: str) -> str:
    """Return a recipe's text with keys of plain tables set; what comes of it is read back and compared.

    Args:
        text: The TOML.
        values: Table by its dotted name, then the key; a value is a whole number or a list of such.
        where: What to call the text in an error.

    Raises:
        RecipeError: The tables are written in a form that is not edited here; the lines to write by hand are named.
    """
    wanted = reading.parsed(text)
    for table, keys in values.items():
        node = wanted
        for part in table.split("."):
            node = node.setdefault(part, {})
        node.update({key: list(item) if isinstance(item, tuple) else item for key, item in keys.items()})
    for table, keys in values.items():
        if keys:
            text = _with_table(text, table, {key: _written(item) for key, item in keys.items()})
    try:
        found = reading.parsed(text)
    except ValueError:
        found = {}
    if found != wanted:
        lines = "; ".join(
            f"{table}.{key} = {_written(item)}" for table, keys in values.items() for key, item in keys.items()
        )
        raise RecipeError("its tables are not written line by line", where=where, hint=f"write by hand: {lines}")
    return text


def _with_table(text: str, table: str, keys: Mapping[str, str]) -> str:
    lines = text.splitlines()
    header = re.compile(rf"\s*\[\s*{re.escape(table)}\s*\]\s*(#.*)?")
    start = next((place for place, line in enumerate(lines) if header.fullmatch(line)), None)
    if start is None:
        return text.rstrip("\n") + "\n\n" + "\n".join([f"[{table}]", *(f"{k} = {v}" for k, v in keys.items())]) + "\n"
    end = next((place for place in range(start + 1, len(lines)) if re.match(r"\s*\[", lines[place])), len(lines))
    body = lines[start + 1 : end]
    for key, value in keys.items():
        body = _with_key(body, key, value)
    return "\n".join([*lines[: start + 1], *body, *lines[end:]]) + "\n"


def _with_key(body: list[str], key: str, value: str) -> list[str]:
    """Replace a key's value, over several lines where it is an array, or add it behind the table's last line."""
    begins = re.compile(rf"\s*{re.escape(key)}\s*=")
    place = next((number for number, line in enumerate(body) if begins.match(line)), None)
    if place is None:
        last = max((number for number, line in enumerate(body) if line.strip()), default=-1)
        return [*body[: last + 1], f"{key} = {value}", *body[last + 1 :]]
    end = place
    while end + 1 < len(body) and not _whole("\n".join(body[place : end + 1])):
        end += 1
    comment = re.search(r"\s+#[^\"'\]]*$", body[end])
    return [*body[:place], f"{key} = {value}{comment.group(0) if comment else ''}", *body[end + 1 :]]


def _whole(text: str) -> bool:
    try:
        reading.parsed(text)
    except ValueError:
        return False
    return True


def _written(value: Any) -> str:  # noqa: ANN401 - a whole number, or several
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)
