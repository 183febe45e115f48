"""The functions of ``import repo_builder``: what the command line calls, with Python's values.

Progress goes to stderr, as on the command line. What goes wrong is a ``RepoBuilderError``, whose text is one sentence.
"""

from __future__ import annotations

from repo_builder.api.building import build, compile
from repo_builder.api.looking import config, init, inspect, layers
from repo_builder.api.measuring import PerfResult, perf
from repo_builder.api.precisions import SenseResult, sense
from repo_builder.api.serving import serve, validate
from repo_builder.api.tuning import TuneResult, tune

__all__ = [
    "PerfResult",
    "SenseResult",
    "TuneResult",
    "build",
    "compile",
    "config",
    "init",
    "inspect",
    "layers",
    "perf",
    "sense",
    "serve",
    "tune",
    "validate",
]
