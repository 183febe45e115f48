"""A made-up run that has every part, as an earlier version wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from repo_builder.results import PerfRun, schema


@pytest.fixture(scope="session")
def perf_run() -> PerfRun:
    return schema.read(Path(__file__).resolve().parents[1] / "goldens" / "perf" / "run.json")
