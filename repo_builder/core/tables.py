"""Tables for a terminal: whole where it is wide enough, else in parts one below another; no cell is ever cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table

_GAP = 2


def show(table: Table, console: Console, *, keys: int = 1) -> None:
    """Print a table; one that is too wide in parts, each of which begins with the first columns.

    Args:
        table: A table without a box.
        console: Where to.
        keys: Columns that say what a row is about.
    """
    widths = [_width(column, console) for column in table.columns]
    if sum(widths) + _GAP * len(widths) <= console.width + _GAP:
        console.print(table)
        return
    said = [place for place, column in enumerate(table.columns) if place < keys or any(map(str, column.cells))]
    columns, widths = [table.columns[place] for place in said], [widths[place] for place in said]
    own = sum(widths[:keys]) + _GAP * keys
    groups = list(_groups(widths[keys:], max(console.width - own, console.width // 2)))
    for place, group in enumerate(groups or [()]):
        if place:
            console.print()
        chosen = [*columns[:keys], *(columns[keys + number] for number in group)]
        console.print(_part(table, chosen, titled=place == 0))


def _width(column: Column, console: Console) -> int:
    return max(console.measure(item).maximum for item in (column.header, *column.cells))


def _groups(widths: Sequence[int], room: int) -> Iterator[tuple[int, ...]]:
    """Yield numbers of columns that have room beside each other, at least one at a time."""
    group: list[int] = []
    for number, width in enumerate(widths):
        if group and sum(widths[item] + _GAP for item in group) + width > room:
            yield tuple(group)
            group = []
        group.append(number)
    if group:
        yield tuple(group)


def _part(table: Table, columns: Sequence[Column], *, titled: bool) -> Table:
    """Return a table of some columns of another one."""
    from rich.table import Table

    part = Table(box=None, pad_edge=False, title=table.title if titled else None, title_justify="left")
    part.title_style = table.title_style
    for column in columns:
        part.add_column(column.header, justify=column.justify, overflow="fold")
    cells = [list(column.cells) for column in columns]
    for place, row in enumerate(table.rows):
        part.add_row(*(item[place] for item in cells), style=row.style)
    return part
