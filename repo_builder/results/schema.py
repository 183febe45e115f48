"""The JSON of a measurement: written, and read back strictly (docs/perf-schema.md describes it)."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from repo_builder.core import codec
from repo_builder.core.errors import MeasureError, RecipeError
from repo_builder.results import PerfRun

SCHEMA = "repo-builder/perf"
VERSION = 1
_SCALARS = re.compile(r"\[\s+((?:[^][{}\"]|\"[^\"]*\")*?)\s+\]")


def to_json(run: PerfRun) -> dict[str, Any]:
    """Return a run as plain JSON values, with the schema's name and version first."""
    return {"schema": SCHEMA, "schema_version": VERSION, **dataclasses.asdict(run)}


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
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MeasureError(f"cannot be read ({error})", where=str(path), hint="write one with --json FILE") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise MeasureError("is no measurement of repo-builder", where=str(path), hint="write one with --json FILE")
    if document.get("schema_version") != VERSION:
        raise MeasureError(
            f"is of version {document.get('schema_version')} of the schema, this is version {VERSION}", where=str(path)
        )
    body = {key: value for key, value in document.items() if key not in ("schema", "schema_version")}
    try:
        return codec.build(PerfRun, _without_nulls(body))
    except RecipeError as error:
        raise MeasureError(f"is damaged: {error.message}", where=f"{path}: {error.where}", hint=error.hint) from None


def _without_nulls(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Leave out keys whose value is null: every field that may be null is null by default."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
