"""A run as one self-contained HTML page."""

from __future__ import annotations

from repo_builder.results import PerfRun


def render(run: PerfRun) -> str:
    """Return the page."""
    return run.model
