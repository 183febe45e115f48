"""A whole measurement, and two of them compared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from repo_builder.core.records import LayerRecord
from repo_builder.results.levels import LevelResult
from repo_builder.results.scores import AccuracyResult, Ladder


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """The server that was measured, as it describes itself."""

    url: str
    protocol: str
    name: str
    version: str


@dataclass(frozen=True, kw_only=True)
class BuildIdentity:
    """Which build a model is, as ``build`` writes it into config.pbtxt.

    Attributes:
        engine_sha256: Hash of the compiled model's file.
        build_key: Hash of everything that the compiled model depends on.
        recipe: Name of its recipe.
    """

    engine_sha256: str
    build_key: str
    recipe: str


@dataclass(frozen=True, kw_only=True)
class Regression:
    """One figure set against the baseline's; ``worse`` tells whether it is a regression.

    Attributes:
        what: The figure, as in ``p99 at concurrency 4 × batch 1``.
        before: The baseline's value; a fraction for top-1, microseconds for latencies.
        after: This run's.
        low: Lower end of the change: a difference for top-1, a fraction for latencies.
        high: Upper end of it.
        tolerance: Change that is accepted.
        how: How sure that is.
        worse: Whether it is a regression.
    """

    what: str
    before: float
    after: float
    low: float
    high: float
    tolerance: float
    how: str
    worse: bool


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A run set against a baseline.

    Attributes:
        baseline_date: When the baseline was measured.
        findings: One entry a figure.
        notes: What could not be compared.
    """

    baseline_date: str
    findings: tuple[Regression, ...]
    notes: tuple[str, ...] = ()

    @property
    def worse(self) -> tuple[Regression, ...]:
        """The regressions."""
        return tuple(item for item in self.findings if item.worse)


@dataclass(frozen=True, kw_only=True)
class PerfRun:
    """A whole measurement.

    Attributes:
        model: The model's name.
        model_version: The version that answered.
        backend: Its backend.
        server: The server.
        date: When it began, ISO 8601 with the time zone.
        recipe: Name of the recipe, or empty; with where it was found.
        data: What was sent: name of the data set, or how inputs were made up.
        data_fingerprint: Hash of the held-out data; empty for made-up inputs.
        accuracy: Accuracy through the server; None where it was not measured.
        accuracy_skipped: Why not; empty where it was.
        metrics: What the recipe's own metric says, by name.
        ladder: Every form of the model that is at hand, down to the served one; None where there is only that.
        levels: One entry a level, in the order of measuring.
        knee: Index of the level with the highest throughput under ``max_p99_ms``; None where none was searched.
        max_p99_ms: Limit of that search.
        identity: Which build the served configuration says that it is; None where it says none.
        not_the_build: Why the build at hand is not the model that runs; empty where it is, or where there is none.
        layers: The build's layers; empty where no build is at hand, or another one runs.
        searched: Page of what a search tried before it chose these layers; empty where none did, or it is not at hand.
        comparison: Set against a baseline; None without one.
        environment: Versions, CPU and GPUs of the client's machine.
        notes: What a reader should know.
        stopped: Why the run ended early; empty where it did not.
    """

    model: str
    model_version: str
    backend: str
    server: ServerInfo
    date: str
    recipe: str = ""
    data: str = ""
    data_fingerprint: str = ""
    accuracy: AccuracyResult | None = None
    accuracy_skipped: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    ladder: Ladder | None = None
    levels: tuple[LevelResult, ...] = ()
    knee: int | None = None
    max_p99_ms: float | None = None
    identity: BuildIdentity | None = None
    not_the_build: str = ""
    layers: tuple[LayerRecord, ...] = ()
    searched: str = ""
    comparison: Comparison | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stopped: str = ""

    def __post_init__(self) -> None:
        """Refuse a knee that is none of the levels."""
        if self.knee is not None and not 0 <= self.knee < len(self.levels):
            raise ValueError(f"the knee, {self.knee}, is none of the {len(self.levels)} levels")
