"""The JSON of a measurement: written, and read back strictly (docs/perf-schema.md describes it)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from repo_builder.core import codec, foreign
from repo_builder.core.bounds import shown
from repo_builder.core.errors import MeasureError, RecipeError
from repo_builder.results import PerfRun

SCHEMA = "repo-builder/perf"
VERSION = 2
_SCALARS = re.compile(r"\[\s+((?:[^][{}\"]|\"[^\"]*\")*?)\s+\]")


def to_json(run: PerfRun) -> dict[str, Any]:
    """Return a run as plain JSON values, with the schema's name and version first."""
    return {"schema": SCHEMA, "schema_version": VERSION, **codec.plain(run, nulls=True)}


def dumps(run: PerfRun) -> str:
    """Return a run as JSON text; lists of figures stand on one line."""
    text = json.dumps(to_json(run), indent=2, ensure_ascii=False, allow_nan=False)
    return _SCALARS.sub(lambda found: "[" + re.sub(r",\s+", ", ", found.group(1)) + "]", text) + "\n"


def read(path: Path) -> PerfRun:
    """Read a run that ``dumps`` wrote.

    Raises:
        MeasureError: The file is missing, is no such run, or is of another version of the schema.
    """
    try:
        document = foreign.parsed(json.loads, path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MeasureError(f"cannot be read ({error})", where=str(path), hint="write one with --json FILE") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise MeasureError("is no measurement of repo-builder", where=str(path), hint="write one with --json FILE")
    if document.get("schema_version") == 1:
        document = _from_first(document)
    if document.get("schema_version") != VERSION:
        raise MeasureError(
            f"is of version {shown(document.get('schema_version'))} of the schema, this is version {VERSION}",
            where=str(path),
        )
    body = {key: value for key, value in document.items() if key not in ("schema", "schema_version")}
    try:
        return codec.build(PerfRun, body)
    except RecipeError as error:
        where = f"{path}: {error.where}" if error.where else str(path)
        raise MeasureError(f"is damaged: {error.message}", where=where, hint=error.hint) from None


def _from_first(document: dict[str, Any]) -> dict[str, Any]:
    """Return a run of the schema's first version as one of the second.

    What runs are compared by is the same in both; layers and the ladder, which are not, are left behind.
    """
    return {**document, "schema_version": 2, "layers": [], "ladder": None}
