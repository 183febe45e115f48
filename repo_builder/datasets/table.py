"""A .csv file with a header: one row a sample, one column a feature, and one for the label."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repo_builder.core import files
from repo_builder.core.errors import DataError, did_you_mean
from repo_builder.core.tensors import Array, TensorSpec
from repo_builder.datasets.labels import class_numbers
from repo_builder.datasets.preprocessing import normalise
from repo_builder.datasets.source import Source


def read(
    path: Path,
    inputs: tuple[TensorSpec, ...],
    *,
    label: str | None = None,
    features: Sequence[str] = (),
    classes: Sequence[str] = (),
    delimiter: str = ",",
    scale: float = 1.0,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
) -> Source:
    """Read a table whose features fill the model's only input in row-major order.

    Args:
        path: The file, UTF-8.
        inputs: The model's input.
        label: Column of the label; left out, the column ``label`` or else the last one; ``""`` for none.
        features: Columns of the features in the order of the input; all but the label where they are left out.
        classes: Names of the classes; the sorted names in the column, or numbers, where they are left out.
        delimiter: What stands between columns.
        scale: See ``preprocessing.normalise``.
        mean: See there.
        std: See there.

    Raises:
        DataError: A column is missing, or a cell is no number; the message has the line.
    """
    if len(inputs) != 1:
        raise DataError(f"a table fills one input; the model has {len(inputs)}", where=str(path), hint="use .npz")
    header, rows, lines = _rows(path, delimiter)
    target = label if label is not None else ("label" if "label" in header else header[-1])
    columns = list(features) or [name for name in header if name != target]
    for name in [*columns, *([target] if target else [])]:
        if name not in header:
            raise DataError(f"there is no column '{name}'", where=str(path), hint=did_you_mean(name, header))
    values = _values(path, rows, lines, {name: header.index(name) for name in columns})
    spec = inputs[0]
    if -1 not in spec.shape and values.shape[1] == np.prod(spec.shape):
        values = values.reshape(len(rows), *spec.shape)

    def prepare(raw: dict[str, Array]) -> dict[str, Array]:
        return {spec.name: normalise(raw[spec.name], scale=scale, mean=mean, std=std)}

    def place(number: int) -> str:
        return f"line {lines[number]}"

    cells = _targets([row[header.index(target)] for row in rows]) if target else None
    labels, names = class_numbers(cells, classes, origin=str(path), place=place)
    return Source(
        origin=str(path), inputs={spec.name: values}, labels=labels, classes=names, prepare=prepare, place=place
    )


def _rows(path: Path, delimiter: str) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the header, the rows that are not blank, and the line that each of them ends on."""
    rows, lines = [], []
    with files.parsing(path, DataError, "cannot be read"), path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header = [name.strip() for name in next(reader, [])]
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise DataError(
                    f"line {reader.line_num} has {len(row)} columns, the header has {len(header)}",
                    where=str(path),
                    hint="set data.arguments.delimiter if columns are not separated by it" if len(row) == 1 else None,
                )
            rows.append([cell.strip() for cell in row])
            lines.append(reader.line_num)
    if not rows:
        raise DataError("there are no samples", where=str(path), hint="a header line and one line a sample are needed")
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"the header names '{twice}' twice", where=str(path))
    return header, rows, lines


def _values(path: Path, rows: list[list[str]], lines: list[int], columns: dict[str, int]) -> Array:
    """Return the features as float64 (rows, columns)."""
    places = columns.values()
    try:
        return np.array([[float(row[place]) for place in places] for row in rows], np.float64)
    except ValueError:
        line, name, cell = next(
            (line, name, row[place])
            for line, row in zip(lines, rows, strict=True)
            for name, place in columns.items()
            if not _is_number(row[place])
        )
        raise DataError(
            f"line {line}, column '{name}': '{cell}' is no number",
            where=str(path),
            hint="name the label's column with data.arguments.label, or the features' with .features",
        ) from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _targets(cells: list[str]) -> Array:
    """Return the label's column as numbers where all of it is numbers, else as text."""
    try:
        return np.array([float(cell) for cell in cells])
    except ValueError:
        return np.array(cells)
