"""``repo-builder serve``."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repo_builder.core.errors import MissingDependency, RepoBuilderError, ServeError

if TYPE_CHECKING:
    from types import FrameType

    from repo_builder.serve import Detached, Server


@click.command("serve")
@click.argument("repository", required=False, type=click.Path(path_type=Path))
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- TRITON OPTIONS]")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "container", "embedded"]),
    default="auto",
    show_default=True,
    help="container: NVIDIA's image, needs docker or podman. embedded: the tritonserver of nvidia-pytriton, Linux "
    "x86-64. auto: whichever works here.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind to; 0.0.0.0 for all.")
@click.option("--http-port", default=8000, show_default=True, help="0 picks a free one, as for the others.")
@click.option("--grpc-port", default=8001, show_default=True)
@click.option("--metrics-port", default=8002, show_default=True)
@click.option("--model", "models", multiple=True, metavar="M", help="Load this model only; may be given several times.")
@click.option("--timeout", default=120.0, show_default=True, metavar="SECONDS", help="How long to wait until ready.")
@click.option("--detach", is_flag=True, help="Leave it running when it is ready.")
@click.option("--status", is_flag=True, help="Show the servers that were left running.")
@click.option("--stop", is_flag=True, help="Stop those: the one of REPOSITORY, or all.")
@click.option("--image", help="Container image instead of the release that fits the repository's plans.")
@click.option(
    "--mps",
    is_flag=True,
    help="Let the instances of a plan use the GPU at the same time instead of in turns, through CUDA MPS of NVIDIA's "
    "driver. Only embedded needs it.",
)
@click.option("--print-command", is_flag=True, help="Print the container's command and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(repository: Path | None, options: tuple[str, ...], status: bool, stop: bool, **given: Any) -> None:  # noqa: ANN401
    """Serve a model repository with Triton.

    REPOSITORY is the folder that `repo-builder build` wrote, by default model_repository. Triton's log goes to stderr;
    Ctrl-C stops it. What follows `--` is handed to tritonserver as it is.

    \b
    repo-builder serve                                   until Ctrl-C
    repo-builder serve --detach && repo-builder perf vgg && repo-builder serve --stop
    repo-builder serve --model vgg --http-port 0         one model, any free port for HTTP
    repo-builder serve --mps                             several instances of a plan at the same time on the GPU
    repo-builder serve --print-command                   the docker command, to be run elsewhere
    repo-builder serve model_repository -- --log-verbose=1
    """
    if repository is not None and str(repository).startswith("-"):
        options, repository = (str(repository), *options), None
    if options and not options[0].startswith("-"):
        raise click.UsageError(f"unexpected argument '{options[0]}': options of tritonserver follow a --")
    if status:
        _status(repository, as_json=given["as_json"])
    elif stop:
        _stop(repository)
    elif given["print_command"]:
        _print_command(repository or Path("model_repository"), options, given)
    else:
        _serve(repository or Path("model_repository"), options, given)


def _serve(repository: Path, options: tuple[str, ...], given: dict[str, Any]) -> None:
    from repo_builder import serve
    from repo_builder.cli import serve_mps
    from repo_builder.core.progress import stderr_console, step

    console = stderr_console()
    runtime, why = serve.choose_runtime(given["runtime"], image=given["image"], mps=given["mps"])
    console.print(f"runtime: {runtime} ({why})", markup=False)
    wanted = {key: given[key] for key in ("host", "http_port", "grpc_port", "metrics_port", "models", "image", "mps")}
    server = serve.start(
        repository,
        runtime=runtime,
        options=options,
        detach=given["detach"],
        preflight=lambda folder: _preflight(folder, given["models"], container=runtime == "container"),
        **wanted,
    )
    if runtime == "embedded":
        serve_mps.before(server, repository)
    if given["detach"]:
        with step("start triton") as current, _log_told(server):
            server.wait_ready(given["timeout"])
            current.note(f"{_urls(server)}, process {server.pid}, log {server.log}")
        _report(server, repository, as_json=given["as_json"])
        return
    with server:
        _foreground(server, repository, given)


def _preflight(repository: Path, models: tuple[str, ...], *, container: bool) -> None:
    """Refuse plans that cannot be served on this machine."""
    names = {path.parents[1].name for path in repository.glob("*/*/*.plan")}
    chosen = sorted(name for name in names if not models or name in models)
    if not chosen:
        return
    from repo_builder.compile.inspection import ask_engine
    from repo_builder.repository.validate import Missing, preflight

    refusals: list[RepoBuilderError] = []
    for item in preflight(repository, chosen, ask_engine=None if container else ask_engine):
        kind = MissingDependency if isinstance(item, Missing) else ServeError
        told = kind(item.message, where=str(repository / item.path), hint=item.hint)
        if item.level == "error":
            refusals.append(told)
        else:
            click.echo(f"{item.level}: {told}", err=True)
    for refusal in refusals[1:]:
        click.echo(f"also: {refusal}", err=True)
    if refusals:
        raise refusals[0]


@contextmanager
def _log_told(server: Server) -> Iterator[None]:
    """Show the last lines of a server's log file when it does not start; Triton's tables are left out."""
    try:
        yield
    except ServeError:
        lines = [line for line in server.tail() if line and line[0] not in "+|"]
        click.echo("\n".join(lines[-20:]), err=True)
        raise


def _foreground(server: Server, repository: Path, given: dict[str, Any]) -> None:
    """Wait for the end of a server; Ctrl-C and SIGTERM stop it, and are a clean end."""
    from repo_builder.core.progress import stderr_console
    from repo_builder.serve.run.health import how_ended

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    started = time.perf_counter()
    try:
        server.wait_ready(given["timeout"])
        seconds = time.perf_counter() - started
        stderr_console().print(f"ready after {seconds:.1f} s: {_urls(server)}; Ctrl-C stops it", markup=False)
        _report(server, repository, as_json=given["as_json"])
        code = server.wait()
    except KeyboardInterrupt:
        server.stop()
        if server.exit_code:
            raise ServeError(f"Triton ended {how_ended(server.exit_code)} when it was stopped") from None
        return
    raise ServeError(f"Triton ended unasked {how_ended(code)}", hint="its last lines above say why")


def _print_command(repository: Path, options: tuple[str, ...], given: dict[str, Any]) -> None:
    from repo_builder.serve.run import container
    from repo_builder.serve.run.launch import no_mps_there
    from repo_builder.serve.run.ports import Endpoints

    if given["mps"]:
        raise no_mps_there()
    if not repository.is_dir():
        raise ServeError("there is no model repository", where=str(repository), hint="run repo-builder build first")
    endpoints = Endpoints(
        host=given["host"], http=given["http_port"], grpc=given["grpc_port"], metrics=given["metrics_port"]
    )
    click.echo(container.printed(repository, endpoints, models=given["models"], image=given["image"], options=options))


def _status(repository: Path | None, *, as_json: bool) -> None:
    from repo_builder import serve
    from repo_builder.cli import serve_mps

    servers = serve.running(repository)
    if as_json:
        values = [
            {**item.to_dict(), "ready": item.ready(), "mps": serve_mps.shown(item.mps, item.pid)} for item in servers
        ]
        click.echo(json.dumps(values, indent=2))
        return
    if not servers:
        click.echo("no detached server is running", err=True)
        return
    rows: list[tuple[str, ...]] = [
        ("REPOSITORY", "MODELS", "STATE", "RUNTIME", "PROCESS", "UP", "HTTP", "GRPC", "METRICS", "MPS")
    ]
    rows += [_row(item) for item in servers]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _row(server: Detached) -> tuple[str, ...]:
    from repo_builder.cli import serve_mps

    minutes = int(time.time() - server.since) // 60
    at = server.endpoints
    return (
        str(server.repository),
        ",".join(server.models) or "all",
        "ready" if server.ready() else "not ready",
        server.runtime,
        str(server.pid),
        f"{minutes // 60}h{minutes % 60:02d}m",
        *(at.http_url, at.grpc_url, at.metrics_url),
        serve_mps.cell(server.mps, server.pid),
    )


def _stop(repository: Path | None) -> None:
    from repo_builder import serve
    from repo_builder.core.progress import step

    servers = serve.running(repository)
    if not servers:
        which = f" for {repository}" if repository else ""
        click.echo(f"no detached server is running{which}", err=True)
    for server in servers:
        with step("stop triton") as current:
            serve.stop(server)
            current.note(f"process {server.pid}, {server.repository}")


def _report(server: Server, repository: Path, *, as_json: bool) -> None:
    """Say who uses MPS, and print where the server is on stdout, for programs."""
    from repo_builder.cli import serve_mps

    mps = serve_mps.shown(server.mps, server.pid)
    if mps is not None:
        click.echo(f"mps: {serve_mps.words(mps['clients'])}", err=True)
    if not as_json:
        return
    value = {
        "repository": str(repository.resolve()),
        "runtime": server.runtime,
        "pid": server.pid,
        "http": server.http_url,
        "grpc": server.grpc_url,
        "metrics": server.metrics_url,
        "log": str(server.log) if server.log else None,
        "mps": mps,
    }
    click.echo(json.dumps(value))


def _urls(server: Server) -> str:
    return f"http {server.http_url}, grpc {server.grpc_url}, metrics {server.metrics_url}"
