"""A model's serving configuration, searched on the real server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from repo_builder.api import loads
from repo_builder.api.places import REPOSITORY, WORK, one_of, path, positive, servers, whole
from repo_builder.core import files
from repo_builder.core.errors import MeasureError, RepoBuilderError
from repo_builder.flows.tune import Collected, TuneOptions, options, run
from repo_builder.measure.wire.transport import Endpoint
from repo_builder.report import tune_page
from repo_builder.results import SharedMemory, tuning
from repo_builder.results.tuning import Objective, Settings, Trial, TuneRun
from repo_builder.serve import Server


@dataclass(frozen=True, kw_only=True)
class TuneResult:
    """What a search tried, measured and chose.

    Attributes:
        run: All of it.
        error: What ended the search early, or that nothing keeps the limit; None where it is good.
    """

    run: TuneRun
    error: RepoBuilderError | None = None

    @property
    def best(self) -> Settings | None:
        """The chosen configuration; None where none keeps the limit."""
        return self.run.best

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every configuration that was loaded, those of earlier runs included."""
        return self.run.trials

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, as ``tune --json`` prints them."""
        return tuning.to_json(self.run)

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML page.

        Raises:
            OutputError: It cannot be written.
        """
        files.write_text(Path(path), tune_page.render(self.run))
        return Path(path)


def tune(
    model: str | Path,
    *,
    server: Server | None = None,
    url: str | None = None,
    protocol: Literal["grpc", "http"] = "grpc",
    metrics_url: str | None = None,
    timeout_s: float = 10.0,
    objective: Objective = "throughput",
    max_p99_ms: float | None = None,
    budget: float = 600.0,
    trials: int | None = None,
    patience: int = 12,
    rounds: int = 4,
    instances: Sequence[int] | None = None,
    max_batch_size: Sequence[int] | None = None,
    queue_delay_us: Sequence[int] | None = None,
    threads: Sequence[int] | None = None,
    preferred: bool = True,
    builds: Sequence[str | Path] = (),
    batch_size: int = 1,
    max_concurrency: int = 256,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    shared_memory: SharedMemory = "none",
    workers: int | None = None,
    window_ms: float = 500,
    data: str | None = None,
    data_dir: str | Path | None = None,
    repository: str | Path = REPOSITORY,
    cores: int | None = None,
    http_port: int = 0,
    grpc_port: int = 0,
    metrics_port: int = 0,
    mps: bool = False,
    backend_directory: str | Path | None = None,
    load_timeout_s: float = 120.0,
    storage: str | None = None,
    fresh: bool = False,
    seed: int = 0,
    recipe: str | Path | None = None,
    work: str | Path = WORK,
    apply: Literal["config", "recipe", "both"] | None = None,
    on_error: Literal["raise", "return"] = "raise",
) -> TuneResult:
    """Search the serving configuration of a model, as ``repo-builder tune`` does.

    Args:
        model: A name in the repository, or a recipe's file.
        server: What ``serve(open_control=True)`` returned, instead of ``url``.
        url: A server that allows models to be loaded; None starts one.
        protocol: How requests travel.
        metrics_url: ``host:port`` of Triton's metrics; None is the server's port 8002.
        timeout_s: Deadline of every call, seconds.
        objective: What is to be high; ``cost`` is throughput over the cores (instances on a GPU) that are reserved.
        max_p99_ms: Limit of p99, milliseconds; None for none.
        budget: Seconds that may be measured.
        trials: Most configurations, those of earlier runs included; None leaves it to the budget.
        patience: End when so many in a row were no better; 0 never does.
        rounds: How often the best are measured again, in turns.
        instances: Model instances to choose from; None takes the usual, as for the next three.
        max_batch_size: Largest batches to choose from.
        queue_delay_us: Delays of the queue to choose from, microseconds.
        threads: Threads of ONNX Runtime to choose from; 0 is its own choice.
        preferred: Whether preferred batch sizes are tried on the best.
        builds: Folders of other builds of the model.
        batch_size: Samples a request.
        max_concurrency: Most requests in flight.
        shapes: Shapes, batch left out, of inputs with dynamic dimensions.
        shared_memory: Where tensors travel.
        workers: Processes that make the load; None takes one for four cores, at most 4.
        window_ms: Least time of each of the three windows of a level.
        data: Data instead of the recipe's; ``random`` makes inputs up.
        data_dir: Folder of the data set's files.
        repository: The model repository that the model lies in.
        cores: Cores of the server's machine; None takes this one's.
        http_port: Port of HTTP of the server that is started; 0 picks a free one, as for the others.
        grpc_port: Port of gRPC.
        metrics_port: Port of the Prometheus metrics.
        mps: Whether its processes share the GPU through CUDA MPS.
        backend_directory: Native backends for it.
        load_timeout_s: How long a configuration may take to load, seconds.
        storage: Database of the trials, a file or Optuna's URL; None is in ``work``.
        fresh: Whether trials of earlier runs are left out and deleted.
        seed: Seed of the search and of made-up inputs.
        recipe: Where data comes from, and what ``apply`` writes into; None takes the build's.
        work: Folder of the builds' artifacts.
        apply: What the result is written into; the old files are kept.
        on_error: Whether an error is raised, or returned in ``TuneResult.error`` with what was measured before it; one
            before anything is known of the model is always raised.

    Raises:
        ObjectiveMissed: No configuration that was tried keeps the limit.
        MeasureError: A number makes no sense, or the server cannot be reached.
        RepoBuilderError: What ended the search early; trials that were measured stay in their database.
    """
    url, metrics_url = servers(server, url, metrics_url, protocol)
    given = {
        "instances": instances,
        "max_batch_size": max_batch_size,
        "max_queue_delay_us": queue_delay_us,
        "threads": threads,
    }
    asked = TuneOptions(
        **options.of_recipe(str(model), None if recipe is None else str(recipe)),
        repository=Path(repository),
        builds=tuple(map(Path, builds)),
        objective=one_of(get_args(Objective), objective, "objective"),
        max_p99_ms=max_p99_ms if max_p99_ms is None else positive(max_p99_ms, "max_p99_ms"),
        budget_s=positive(budget, "budget"),
        most_trials=trials if trials is None else whole(trials, "trials", 1),
        patience=whole(patience, "patience") or None,
        choices={name: _choices(name, item) for name, item in given.items() if item is not None},
        preferred=preferred,
        level=loads.levels(1, batch_size, None, False, None, dict(shapes or {}), shared_memory)[0],
        most_in_flight=whole(max_concurrency, "max_concurrency", 1),
        pace=replace(options.PACE, window_s=whole(window_ms, "window_ms", 50) / 1000),
        rounds=whole(rounds, "rounds", 2),
        endpoint=Endpoint.parse(url, protocol, "url", tls=None, headers=()) if url else None,
        metrics_url=metrics_url,
        ports=(http_port, grpc_port, metrics_port),
        mps=mps,
        backend_directory=path(backend_directory),
        load_timeout_s=positive(load_timeout_s, "load_timeout_s"),
        storage=storage,
        fresh=fresh,
        work=Path(work),
        dataset=data,
        data_dir=path(data_dir),
        timeout_s=positive(timeout_s, "timeout_s"),
        workers=workers if workers is None else whole(workers, "workers", 1),
        cores=cores if cores is None else whole(cores, "cores", 1),
        seed=whole(seed, "seed"),
        apply=options.written(apply, url=url, repository=Path(repository)),
    )
    return _searched(asked, returns=one_of(("raise", "return"), on_error, "on_error") == "return")


def _choices(name: str, given: Sequence[int]) -> tuple[int, ...]:
    """Return choices in order, each once; 0 only where it means something."""
    least = 0 if name in options.MAY_BE_0 else 1
    if not given:
        raise MeasureError("there is nothing to choose from", where=name, hint="name a value or more, or leave it out")
    return tuple(sorted({whole(item, name, least) for item in given}))


def _searched(asked: TuneOptions, *, returns: bool) -> TuneResult:
    collected = Collected()
    failed: RepoBuilderError | None = None
    try:
        run.tune(asked, collected)
    except RepoBuilderError as error:
        if not returns or collected.run is None:
            raise
        failed = error
    if collected.run is None:
        raise MeasureError("nothing was measured", where=asked.model)
    return TuneResult(run=collected.run, error=failed)
