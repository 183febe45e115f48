"""What a search is asked for, and what it has found so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repo_builder.core.errors import MeasureError
from repo_builder.core.recipe import Recipe, reading
from repo_builder.measure.load.course import Pace
from repo_builder.measure.wire.transport import Endpoint
from repo_builder.results import Level
from repo_builder.results.tuning import Objective, TuneRun

# Exactly three windows, so that a level takes a known time; what comes into question is measured again in turns.
PACE = Pace(warmup_s=0.3, window_s=0.5, window_requests=50, until_stable=False, most_s=20.0)

MAY_BE_0 = ("max_queue_delay_us", "threads")  # settings of which 0 is a choice
WRITES = {"config": frozenset({"config"}), "recipe": frozenset({"recipe"}), "both": frozenset({"config", "recipe"})}


@dataclass(frozen=True, kw_only=True)
class TuneOptions:
    """What ``repo-builder tune`` was asked for.

    Attributes:
        model: The model's name.
        repository: The model repository that it lies in; not needed with ``endpoint``.
        builds: Folders of other builds of it, as they lie in repositories.
        recipe: The recipe to take data from, and to write into; None looks for one.
        recipe_file: That recipe's file where it is the user's own.
        objective: What is to be high.
        max_p99_ms: The limit; None for none.
        budget_s: Time, seconds.
        most_trials: Most configurations to try, those of earlier runs included; None leaves it to the budget.
        most_levels: Most loads that the search measures; None leaves it to the budget.
        patience: End when so many configurations in a row were no better; None never does.
        choices: Setting → what to choose from, in place of the usual.
        preferred: Whether preferred batch sizes are tried on the best configuration.
        level: Batch size, shapes and shared memory of the load.
        most_in_flight: Largest concurrency.
        pace: How long each level is measured.
        rounds: How often the best ones are measured again, in turns.
        endpoint: A server that allows models to be loaded; None starts one.
        metrics_url: Its metrics.
        ports: HTTP, gRPC and metrics of the server that is started; 0 picks a free one.
        mps: Whether its processes share the GPU through CUDA MPS.
        backend_directory: Native backends for it.
        load_timeout_s: How long a configuration may take to load.
        storage: Database of the trials; None is a file in ``work``.
        fresh: Whether trials of earlier runs are left out.
        work: Folder of the builds' artifacts.
        dataset: Data source instead of the recipe's; ``random`` makes inputs up.
        data_dir: Folder of the data set's files.
        timeout_s: Deadline of every request.
        workers: Processes that make the load.
        cores: Cores of the server's machine; None takes this one's.
        seed: Seed of the search and of made-up inputs.
        apply: What is written in the end: ``recipe``, ``config``.
    """

    model: str
    repository: Path = Path("model_repository")
    builds: tuple[Path, ...] = ()
    recipe: str | None = None
    recipe_file: Path | None = None
    objective: Objective = "throughput"
    max_p99_ms: float | None = None
    budget_s: float = 600.0
    most_trials: int | None = None
    most_levels: int | None = None
    patience: int | None = 12
    choices: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    preferred: bool = True
    level: Level = field(default_factory=Level)
    most_in_flight: int = 256
    pace: Pace = PACE
    rounds: int = 4
    endpoint: Endpoint | None = None
    metrics_url: str | None = None
    ports: tuple[int, int, int] = (0, 0, 0)
    mps: bool = False
    backend_directory: Path | None = None
    load_timeout_s: float = 120.0
    storage: str | None = None
    fresh: bool = False
    work: Path = Path("build")
    dataset: str | None = None
    data_dir: Path | None = None
    timeout_s: float = 10.0
    workers: int | None = None
    cores: int | None = None
    seed: int = 0
    apply: frozenset[str] = frozenset()

    @property
    def max_p99_us(self) -> float | None:
        """The limit in microseconds."""
        return None if self.max_p99_ms is None else self.max_p99_ms * 1000

    @property
    def folder(self) -> Path:
        """Where the trials, the log and the page lie."""
        return self.work / self.model / "tune"

    @property
    def level_s(self) -> float:
        """What a level takes about, its share of loading included, seconds."""
        return self.pace.warmup_s + 3 * self.pace.window_s + 0.7


@dataclass
class Collected:
    """A search as far as it has come; whatever ends it, this is what there is."""

    run: TuneRun | None = None

    def update(self, **changes: Any) -> None:  # noqa: ANN401 - fields of TuneRun
        """Change fields of the run."""
        if self.run is not None:
            self.run = replace(self.run, **changes)

    def note(self, text: str) -> None:
        """Add what a reader should know."""
        if self.run is not None and text not in self.run.notes:
            self.update(notes=(*self.run.notes, text))


def of_recipe(model: str, recipe: str | None) -> dict[str, Any]:
    """Return ``model``, ``recipe`` and ``recipe_file`` of ``TuneOptions``.

    Args:
        model: A name in the repository, or a recipe's file.
        recipe: A recipe that was named beside it.

    Raises:
        RecipeError: The recipe cannot be.
    """
    named = recipe or (model if model.endswith(".toml") or "/" in model else None)
    name = Recipe.load(named).name if named else model
    if named is None and name in reading.built_in():
        named = name
    own = Path(named) if named and named not in reading.built_in() else None
    return {"model": name, "recipe": named, "recipe_file": own}


def written(apply: str | None, *, url: str | None, repository: Path) -> frozenset[str]:
    """Return what is written in the end, as ``apply`` of ``TuneOptions``.

    Args:
        apply: A key of ``WRITES``; None for nothing.
        url: A server that runs already.
        repository: The repository here.

    Raises:
        MeasureError: There is no such thing to write, or nothing here to write it into.
    """
    if apply is None:
        return frozenset()
    if apply not in WRITES:
        raise MeasureError(f"'{apply}' is not something to write", where="apply", hint=f"one of {', '.join(WRITES)}")
    if url and "config" in WRITES[apply] and not repository.is_dir():
        message = f"config.pbtxt is written into a repository here, and there is none at '{repository}'"
        raise MeasureError(message, where="apply", hint="name it with --repository (in Python: repository)")
    return WRITES[apply]
