"""Write the tables of docs/recipes.md, and docs/recipe.schema.json, from the declarations of recipes.

A table stands between ``<!-- table: [data] -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from repo_builder.recipes import declared

DOCS = Path(__file__).resolve().parents[1] / "docs"
_TABLE = re.compile(r"(<!-- table: (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def page(text: str) -> str:
    """Return docs/recipes.md with its tables as they are declared."""
    tables = declared.tables()
    return _TABLE.sub(lambda found: f"{found[1]}{tables[found['name']]}\n{found[3]}", text)


def schema() -> str:
    """Return docs/recipe.schema.json."""
    return json.dumps(declared.json_schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write both files."""
    recipes = DOCS / "recipes.md"
    recipes.write_text(page(recipes.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "recipe.schema.json").write_text(schema(), encoding="utf-8")


if __name__ == "__main__":
    main()
