"""What a measurement is asked for, and what it has found so far."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repo_builder.measure.load.abilities import Asks
from repo_builder.measure.load.course import Pace
from repo_builder.measure.wire.made_up import STRING_LENGTH
from repo_builder.measure.wire.transport import Endpoint
from repo_builder.results import Level, LevelResult, PerfRun

RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """What a run may be worse than its baseline, as fractions."""

    accuracy: float = 0.01
    latency: float = 0.1


@dataclass(frozen=True, kw_only=True)
class PerfOptions:
    """What ``repo-builder perf`` was asked for.

    Attributes:
        model: The model's name in the server.
        endpoint: The server.
        version: The model's version; empty for the newest.
        metrics_url: ``host:port`` of the metrics; None is the server's port 8002.
        recipe: The recipe to take data and defaults from; None looks for one.
        work: Folder of the build's artifacts.
        dataset: Data source instead of the recipe's; ``random`` makes inputs up.
        data_dir: Folder of the data set's files.
        input_data: File of inputs for the load, in place of the recipe's or made-up ones.
        string_length: Length of made-up strings, bytes.
        asks: What every request asks for beside its tensors.
        levels: Loads; empty takes the recipe's.
        max_p99_ms: Search the knee under this limit instead, at each batch size of ``levels``.
        pace: How long each level is measured.
        with_accuracy: Whether accuracy is measured first.
        with_explanation: Whether to explain where the time goes.
        reference: An earlier run to compare with.
        tolerances: What the comparison accepts.
        timeout_s: Deadline of every call.
        workers: Processes that make the load; None takes one for every four cores, up to four.
        seed: Seed of made-up inputs and random arrival times.
    """

    model: str
    endpoint: Endpoint
    version: str = ""
    metrics_url: str | None = None
    recipe: str | None = None
    work: Path = Path("build")
    dataset: str | None = None
    data_dir: Path | None = None
    input_data: Path | None = None
    string_length: int = STRING_LENGTH
    asks: Asks = field(default_factory=Asks)
    levels: tuple[Level, ...] = ()
    max_p99_ms: float | None = None
    pace: Pace = field(default_factory=Pace)
    with_accuracy: bool = True
    with_explanation: bool = False
    reference: PerfRun | None = None
    tolerances: Tolerances = field(default_factory=Tolerances)
    timeout_s: float = 10.0
    workers: int | None = None
    seed: int = 0


@dataclass
class Collected:
    """A run as far as it has come; whatever ends it, this is what there is."""

    run: PerfRun | None = None

    def update(self, **changes: Any) -> None:  # noqa: ANN401 - fields of PerfRun
        """Change fields of the run."""
        if self.run is not None:
            self.run = replace(self.run, **changes)

    def keep(self, result: LevelResult) -> None:
        """Add a level."""
        if self.run is not None:
            self.update(levels=(*self.run.levels, result))

    def note(self, text: str) -> None:
        """Add what a reader should know."""
        if self.run is not None:
            self.update(notes=(*self.run.notes, text))
