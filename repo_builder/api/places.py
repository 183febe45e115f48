"""Where files lie unless something else is said, and paths as callers give them."""

from __future__ import annotations

from pathlib import Path

REPOSITORY, WORK = "model_repository", "build"


def path(value: str | Path | None) -> Path | None:
    """Return a path, or None where there is none."""
    return None if value is None else Path(value)
