"""No cell is ever cut, however narrow the terminal is."""

from __future__ import annotations

import io
import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text

from repo_builder.core import tables

PACKAGE = Path(tables.__file__).resolve().parents[1]
CELLS = st.text("abcdefgh.0123456789", min_size=1, max_size=30)


def shown(heads: list[str], rows: list[list[str]], width: int, keys: int = 1) -> str:
    table = Table(title="Layers", title_justify="left", box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="left" if head == heads[0] else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    out = io.StringIO()
    tables.show(table, Console(file=out, width=width, color_system=None), keys=keys)
    return out.getvalue()


@given(st.integers(1, 8).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), min_size=2, max_size=5)))
def test_every_cell_stands_whole_on_one_line(rows: list[list[str]]) -> None:
    heads, body = [f"h{place}" for place in range(len(rows[0]))], rows[1:]
    printed = shown(heads, body, 66)
    assert "…" not in printed
    assert all(len(line) <= 66 for line in printed.splitlines())
    words = printed.split()
    for row in body:
        assert all(cell in words for cell in row)
    assert set(heads) <= set(words)


def test_one_that_fits_is_whole_and_one_that_does_not_repeats_what_rows_are_about() -> None:
    heads, rows = ["form", "output", "a wide heading", "another wide heading"], [["fp32", "logits", "1", "2"]]
    assert len(shown(heads, rows, 80, 2).splitlines()) == 3
    narrow = shown(heads, rows, 40, 2)
    assert narrow.count("fp32") == narrow.count("logits") == 2
    assert narrow.count("Layers") == 1


def test_columns_without_a_word_are_left_out_of_parts() -> None:
    printed = shown(["layer", "got", "reason"], [["a" * 30, "int8", ""]], 40)
    assert "int8" in printed
    assert "reason" not in printed


def test_every_table_of_the_package_is_shown_that_way() -> None:
    """A module that makes a table hands it to `tables.show`; rich's own printing cuts what does not fit."""
    sources = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path.name != "tables.py"}
    making = {path: text for path, text in sources.items() if re.search(r"\bTable\(", text)}
    assert len(making) >= 5
    for path, text in making.items():
        assert "tables.show(" in text, path
        printed = re.findall(r"\.print\((_\w+\(|table\b)[^)]*", text)
        tables_made = re.findall(r"def (_\w+)\([^)]*\) -> (?:Table|Any)", text)
        assert not [call for call in printed if call == "table" or call[:-1] in tables_made], path


def test_a_key_wider_than_the_terminal_is_folded() -> None:
    printed = shown(["layer", "got"], [["x" * 50, "int8"]], 40)
    assert printed.count("x") == 50
    assert "int8" in printed
