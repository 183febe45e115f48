"""``repo-builder tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repo_builder.cli import server_options
from repo_builder.cli.durations import Seconds
from repo_builder.cli.perf_options import RECIPE, Number

if TYPE_CHECKING:
    from repo_builder.flows.tune import TuneOptions
    from repo_builder.results.tuning import TuneRun

_PATH = click.Path(path_type=Path)
_ABOVE_0 = Number(0, min_open=True)
# option → setting
_CHOICES = {
    "instances": "instances",
    "max_batch_size": "max_batch_size",
    "queue_delay_us": "max_queue_delay_us",
    "threads": "threads",
}
# options that are handed on under their own names
_AS_THEY_ARE = (
    "repository", "builds", "objective", "max_p99_ms", "most_trials", "preferred", "rounds", "metrics_url", "cores",
    "mps", "backend_directory", "storage", "fresh", "work", "dataset", "data_dir", "timeout_s", "workers", "seed",
)  # fmt: skip
_WRITES = ("config", "recipe", "both")


_OPTIONS = (
    click.option(
        "--max-p99-ms", type=_ABOVE_0, help="Search the highest throughput at which 99 % of the requests take less."
    ),
    click.option(
        "--objective", type=click.Choice(["throughput", "cost"]), default="throughput", show_default=True,
        help="cost: throughput over the cores (instances on a GPU) that the configuration reserves.",
    ),
    click.option(
        "--budget", type=Seconds(), default="10m", show_default=True,
        help="How long may be measured, as in 90s or 10m.",
    ),
    click.option("--trials", "most_trials", type=click.IntRange(1), help="Most configurations, earlier ones included."),
    click.option(
        "--patience", type=click.IntRange(0), default=12, show_default=True,
        help="End when so many in a row were no better; 0 never does.",
    ),
    # what is searched
    click.option(
        "--instances",
        help="Instances to choose from: 1,2,4 or 1:4:x2. [default: up to twice the cores; 1 to 8 a GPU]",
    ),
    click.option(
        "--max-batch-size", help="Largest batches, written alike. [default: powers of two up to the present one]"
    ),
    click.option("--queue-delay-us", help="Microseconds, written alike. [default: 0,100,500,2000]"),
    click.option(
        "--threads", help="Threads of ONNX Runtime, written alike. [default: powers of two up to the cores]"
    ),
    click.option("--preferred/--no-preferred", default=True, help="Try preferred batch sizes on the best. [yes]"),
    click.option("--build", "builds", multiple=True, type=_PATH, metavar="DIR", help="Another build's model folder."),
    # load
    click.option("--batch-size", type=click.IntRange(1), default=1, show_default=True, help="Samples in a request."),
    click.option(
        "--max-concurrency", type=click.IntRange(1, 4096), default=256, show_default=True,
        help="Most requests in flight.",
    ),
    click.option(
        "--shape", metavar="NAME:D,D",
        help="Shape, batch left out, of an input whose dimensions vary; several behind semicolons.",
    ),
    click.option(
        "--shared-memory", type=click.Choice(["none", "system", "cuda"]), default="none", show_default=True,
        help="Whether tensors travel through memory that client and server share.",
    ),
    click.option(
        "--workers", type=click.IntRange(1),
        help="Processes that make the load.  [default: one for 4 cores, at most 4]",
    ),
    click.option(
        "--window-ms", type=click.IntRange(50), default=500, show_default=True,
        help="A load is measured in windows of at least this time.",
    ),
    click.option(
        "--rounds", type=click.IntRange(2, 50), default=4, show_default=True,
        help="How often the best are measured again, in turns.",
    ),
    click.option(
        "--timeout", "--timeout-s", "timeout_s", type=_ABOVE_0, default=10.0, show_default=True, metavar="SECONDS",
        help="Deadline of every call to the server.",
    ),
    click.option(
        "--data", "--dataset", "dataset", metavar="SOURCE",
        help="Samples instead of the recipe's: a .npz, a .csv, a folder, a built-in, module:function, or random.",
    ),
    click.option("--data-dir", type=_PATH, help="Folder of the data set's files, instead of a download."),
    # the server
    click.option(
        "--repository", type=_PATH, default=Path("model_repository"), show_default=True,
        help="Model repository that MODEL lies in.",
    ),
    click.option("--url", help="A server that allows this client to load models, instead of one started for it."),
    click.option(
        "--protocol", type=click.Choice(["grpc", "http"]), default="grpc", show_default=True,
        help="How requests travel.",
    ),
    click.option("--metrics-url", help="host:port of Triton's metrics.  [default: the server's port 8002]"),
    click.option("--cores", type=click.IntRange(1), help="Cores of its machine. [default: this one's]"),
    *server_options.ports(0, 0, 0),
    server_options.MPS,
    server_options.BACKEND_DIRECTORY,
    server_options.load_timeout(),
    # trials
    click.option("--storage", help="Database of the trials: a file, or Optuna's URL. [default: in build/NAME/tune]"),
    click.option("--fresh", is_flag=True, help="Leave the trials of earlier runs out, and delete them."),
    click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True,
        help="Of the search and of made-up inputs.",
    ),
    click.option("--recipe", help=RECIPE),
    click.option(
        "--work", type=_PATH, default=Path("build"), show_default=True,
        help="Folder of intermediate artifacts.",
    ),
    # what comes out
    click.option(
        "--apply", "apply_to", is_flag=False, flag_value="both", metavar="[config|recipe|both]",
        help="Write the result into the placed config.pbtxt, the recipe, or both; the old ones are kept.",
    ),
    click.option(
        "--json", "json_to", is_flag=False, flag_value="-", metavar="[FILE]",
        help="Print the result as JSON; with a FILE, print tables and write the JSON there.",
    ),
    click.option(
        "--report", type=_PATH, metavar="FILE.html",
        help="Write one self-contained page with charts.  [default: build/NAME/tune/report.html]",
    ),
)  # fmt: skip


def _with_options(function: Any) -> Any:  # noqa: ANN401 - click's decorators
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@click.command("tune")
@click.argument("model", required=False)
@_with_options
def command(model: str | None, json_to: str | None, report: Path | None, **asked: Any) -> None:  # noqa: ANN401
    """Search the serving configuration of MODEL: a name in the repository, or a recipe file.

    Configurations are loaded into a Triton that is started for it and measured with perf's levels. The trials lie in a
    database: what is killed goes on where it was, and machines of one kind may share one (--storage). A search changes
    how a model is served, never what it answers; that is checked in the end.

    \b
    repo-builder tune vgg --max-p99-ms 20
    repo-builder tune vgg --max-p99-ms 20 --budget 3m --apply config
    repo-builder tune my_model.toml --objective cost --instances 1,2 --apply
    repo-builder tune vgg --url gpu-7:8001 --max-p99-ms 5
    """
    if model is None and json_to not in (None, "-") and not str(json_to).endswith(".json"):
        model, json_to = json_to, "-"  # "tune --json MODEL" means the flag
    if model is None and asked["apply_to"] not in (None, *_WRITES):
        model, asked["apply_to"] = asked["apply_to"], "both"  # and so does "tune --apply MODEL"
    if model is None:
        raise click.UsageError("Missing argument 'MODEL'.")

    from repo_builder.core import files
    from repo_builder.core.errors import OutputError
    from repo_builder.flows.tune import Collected, tune

    options = _options(model, **asked)
    page = report or options.folder / "report.html"
    for path in (page, *([] if json_to in (None, "-") else [Path(str(json_to))])):
        if path.is_dir():
            raise OutputError("is a folder", where=str(path), hint="name a file")
        files.require_writable(path.parent)
    collected = Collected()
    try:
        tune(options, collected)
    except BaseException:
        try:
            _show(collected.run, json_to, page)
        except OutputError as second:
            click.echo(f"also: {second}", err=True)
        raise
    _show(collected.run, json_to, page)


def _options(
    model: str,
    *,
    url: str | None,
    protocol: str,
    apply_to: str | None,
    recipe: str | None,
    **asked: Any,  # noqa: ANN401 - the rest of click's values
) -> TuneOptions:
    """Return what was asked for.

    Raises:
        click.UsageError: Options contradict each other.
        MeasureError: A number or the URL cannot be understood.
        RecipeError: The recipe cannot be.
    """
    import dataclasses

    from repo_builder.flows.tune import TuneOptions
    from repo_builder.flows.tune.options import PACE, of_recipe, written
    from repo_builder.measure.load import grid
    from repo_builder.measure.wire.transport import Endpoint
    from repo_builder.results import Level

    if apply_to is not None and apply_to not in _WRITES:
        raise click.UsageError(f"'{apply_to}' is not something to write: --apply config, recipe or both")
    shapes = grid.shapes(asked["shape"]) if asked["shape"] else {}
    return TuneOptions(
        **of_recipe(model, recipe),
        **{key: asked[key] for key in _AS_THEY_ARE},
        budget_s=asked["budget"],
        patience=asked["patience"] or None,
        choices={setting: _whole(asked, option) for option, setting in _CHOICES.items() if asked[option] is not None},
        level=Level(batch_size=asked["batch_size"], shapes=shapes, shared_memory=asked["shared_memory"]),
        most_in_flight=asked["max_concurrency"],
        pace=dataclasses.replace(PACE, window_s=asked["window_ms"] / 1000),
        endpoint=Endpoint.parse(url, protocol, tls=None, headers=()) if url else None,  # type: ignore[arg-type]
        ports=(asked["http_port"], asked["grpc_port"], asked["metrics_port"]),
        load_timeout_s=asked["load_timeout"],
        apply=written(apply_to, url=url, repository=asked["repository"]),
    )


def _whole(asked: dict[str, Any], option: str) -> tuple[int, ...]:
    """Read ``1,2,4`` or ``1:16:x2``; 0 only where it means something."""
    from repo_builder.measure.load import grid

    parts = [item.strip() for item in asked[option].split(",")]
    zero = option in ("queue_delay_us", "threads")
    rest = ",".join(item for item in parts if not (zero and item == "0"))
    found = grid.whole_numbers(rest, f"--{option.replace('_', '-')}") if rest else ()
    return tuple(sorted({*found, *([0] if zero and "0" in parts else [])}))


def _show(run: TuneRun | None, json_to: str | None, page: Path) -> None:
    """Print the run, and write the page and the JSON; what cannot be written does not stop the next."""
    from repo_builder.core import files, progress
    from repo_builder.core.errors import OutputError
    from repo_builder.report import tune_page, tune_terminal
    from repo_builder.results import tuning

    if run is None or not run.trials:
        return
    failed: OutputError | None = None
    if json_to == "-":
        click.echo(tuning.dumps(run), nl=False)
    else:
        tune_terminal.show(run, progress.stdout_console())
    outputs = {page: ("page", tune_page.render)}
    outputs |= {} if json_to in (None, "-") else {Path(str(json_to)): ("JSON", tuning.dumps)}
    for path, (what, render) in outputs.items():
        try:
            files.write_text(path, render(run))
        except OutputError as error:  # noqa: PERF203 - two files
            failed = failed or error
        else:
            click.echo(f"{what}: {path}", err=True)
    if failed:
        raise failed
