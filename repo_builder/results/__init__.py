"""What a measurement is, as plain frozen values: the measuring stage makes them, report and JSON show them.

Every field's unit stands in its name; docs/perf-schema.md describes the JSON that they become.
"""

from repo_builder.results.levels import (
    ClientCost,
    Explanation,
    Gpu,
    Hardware,
    LatencySummary,
    Level,
    LevelResult,
    Mode,
    ServerTime,
    SharedMemory,
    Streaming,
    Term,
    Window,
)
from repo_builder.results.run import BuildIdentity, Comparison, PerfRun, Regression, ServerInfo
from repo_builder.results.scores import AccuracyResult, Ladder

__all__ = [
    "AccuracyResult",
    "BuildIdentity",
    "ClientCost",
    "Comparison",
    "Explanation",
    "Gpu",
    "Hardware",
    "Ladder",
    "LatencySummary",
    "Level",
    "LevelResult",
    "Mode",
    "PerfRun",
    "Regression",
    "ServerInfo",
    "ServerTime",
    "SharedMemory",
    "Streaming",
    "Term",
    "Window",
]
