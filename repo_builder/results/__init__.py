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
    Term,
    Window,
)
from repo_builder.results.run import Comparison, LayerPrecision, PerfRun, Regression, ServerInfo
from repo_builder.results.scores import AccuracyResult, Agreement, Ladder, Rung

__all__ = [
    "AccuracyResult",
    "Agreement",
    "ClientCost",
    "Comparison",
    "Explanation",
    "Gpu",
    "Hardware",
    "Ladder",
    "LatencySummary",
    "LayerPrecision",
    "Level",
    "LevelResult",
    "Mode",
    "PerfRun",
    "Regression",
    "Rung",
    "ServerInfo",
    "ServerTime",
    "SharedMemory",
    "Term",
    "Window",
]
