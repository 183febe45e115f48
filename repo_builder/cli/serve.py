"""``repo-builder serve``."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repo_builder.cli import serve_detached, server_options
from repo_builder.core.errors import ServeError

if TYPE_CHECKING:
    from types import FrameType

    from repo_builder.serve import Server


_USUAL = Path("model_repository")
_HANDED_ON = (
    *("host", "http_port", "grpc_port", "metrics_port", "models", "image", "mps", "backend_directory", "open_control"),
)


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
@server_options.with_ports(8000, 8001, 8002)
@click.option("--model", "models", multiple=True, metavar="NAME", help="Load this model only; repeatable.")
@server_options.load_timeout("--timeout")
@click.option("--detach", is_flag=True, help="Leave it running when it is ready.")
@click.option("--status", is_flag=True, help="Show the servers that were left running.")
@click.option("--stop", is_flag=True, help="Stop the one of REPOSITORY that was left running.")
@click.option("--restart", is_flag=True, help="Start it anew, as it was started, on what lies in REPOSITORY now.")
@click.option("--all", "everything", is_flag=True, help="With --stop or --restart: those of all repositories.")
@click.option("--image", help="Container image instead of the release that fits the repository's plans.")
@server_options.MPS
@server_options.BACKEND_DIRECTORY
@click.option(
    "--open-control",
    is_flag=True,
    help="Let every client load models, and with them code of its own, and administer shared memory, tracing and "
    "logging. Otherwise that needs a key that only this user can read.",
)
@click.option("--print-command", is_flag=True, help="Print the container's command and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(repository: Path | None, options: tuple[str, ...], **given: Any) -> None:  # noqa: ANN401
    """Serve a model repository with Triton.

    REPOSITORY is the folder that `repo-builder build` wrote, by default model_repository. Triton's log goes to stderr;
    Ctrl-C stops it. What follows `--` is handed to tritonserver as it is.

    \b
    repo-builder serve                                   until Ctrl-C
    repo-builder serve --detach && repo-builder perf vgg && repo-builder serve --stop
    repo-builder serve --model vgg --http-port 0         one model, any free port for HTTP
    repo-builder serve --restart                         what was left running, on a repository built anew
    repo-builder serve --mps                             several instances of a plan at the same time on the GPU
    repo-builder serve --print-command                   the docker command, to be run elsewhere
    repo-builder serve model_repository -- --log-verbose=1
    """
    if repository is not None and str(repository).startswith("-"):
        options, repository = (str(repository), *options), None
    if options and not options[0].startswith("-"):
        raise click.UsageError(f"unexpected argument '{options[0]}': options of tritonserver follow a --")
    if given["everything"] and (repository is not None or not (given["stop"] or given["restart"])):
        raise click.UsageError("--all goes with --stop or --restart, and without a repository")
    if given["status"]:
        serve_detached.status(repository, as_json=given["as_json"])
    elif given["stop"]:
        serve_detached.stop(_meant(repository, given))
    elif given["restart"]:
        serve_detached.restart(_meant(repository, given), given["load_timeout"])
    elif given["print_command"]:
        _print_command(repository or _USUAL, options, given)
    else:
        _serve(repository or _USUAL, options, given)


def _meant(repository: Path | None, given: dict[str, Any]) -> Path | None:
    """Return the repository whose server is meant, None for all."""
    return None if given["everything"] else repository or _USUAL


def _serve(repository: Path, options: tuple[str, ...], given: dict[str, Any]) -> None:
    from repo_builder.cli import serve_mps
    from repo_builder.core.progress import stderr_console
    from repo_builder.serve import choose_runtime, start

    console = stderr_console()
    runtime, why = choose_runtime(given["runtime"], image=given["image"], mps=given["mps"])
    console.print(f"runtime: {runtime} ({why})", markup=False)
    wanted = {key: given[key] for key in _HANDED_ON}
    server = start(
        repository,
        runtime=runtime,
        options=options,
        detach=given["detach"],
        preflight=lambda folder: _preflight(folder, given["models"], container=runtime == "container"),
        **wanted,
    )
    if runtime == "embedded":
        serve_mps.before(server, repository)
    for line in _notices(server, given):
        click.echo(line, err=True)
    if given["detach"]:
        serve_detached.start(server, given["load_timeout"])
        _report(server, repository, as_json=given["as_json"])
        return
    with server:
        _foreground(server, repository, given)


def _preflight(repository: Path, models: tuple[str, ...], *, container: bool) -> None:
    """Refuse plans that cannot be served on this machine."""
    from repo_builder.flows import serving

    found = serving.look(repository, models, container=container)
    for level, told in found.notes:
        click.echo(f"{level}: {told}", err=True)
    for refusal in found.refusals[1:]:
        click.echo(f"also: {refusal}", err=True)
    if found.refusals:
        raise found.refusals[0]


def _notices(server: Server, given: dict[str, Any]) -> list[str]:
    """Return what there is to say of how a server is started."""
    found = []
    if given["open_control"]:
        found.append(
            f"warning: --open-control: whoever reaches {server.http_url} or {server.grpc_url} can load models, and "
            "with them run code as this user"
        )
    elif server.runtime == "container":
        from repo_builder.serve.run import container

        warning = container.left_open(server.note.repository, given["models"], given["image"])
        found += [warning] if warning else []
    if server.job.cached:
        found.append(server.job.cached)
    if given["backend_directory"] is not None:
        found.append("backends: " + ", ".join(f"{name} ({whose})" for name, whose in server.job.backends.items()))
    return found


def _foreground(server: Server, repository: Path, given: dict[str, Any]) -> None:
    """Wait for the end of a server; Ctrl-C and SIGTERM stop it, and are a clean end."""
    from repo_builder.core.progress import stderr_console
    from repo_builder.serve.run.health import how_ended

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    started = time.perf_counter()
    try:
        server.wait_ready(given["load_timeout"])
        seconds = time.perf_counter() - started
        stderr_console().print(
            f"ready after {seconds:.1f} s: {serve_detached.urls(server)}; Ctrl-C stops it", markup=False
        )
        _report(server, repository, as_json=given["as_json"])
        code = _attended(server)
    except KeyboardInterrupt:
        server.stop()
        if server.exit_code:
            raise ServeError(f"Triton ended {how_ended(server.exit_code)} when it was stopped") from None
        return
    raise ServeError(f"Triton ended unasked {how_ended(code)}", hint="its last lines above say why")


def _attended(server: Server) -> int | None:
    """Wait for the end of a server, and load its models again whose process dies; return its exit code."""
    from repo_builder.serve.run.revival import Models

    models = Models(server.pid, server.job, server.note)
    while server.exit_code is None or server.wait(5) is None:
        event = models.look() if server.wait(0.25) is None else None
        if event is not None and event.restart is not None:
            click.echo(f"warning: {event.restart}; {event.next_step}", err=True)
        elif event is not None and event.problem:
            click.echo(f"warning: {event.problem}", err=True)
        if event is not None and event.give_up:
            server.stop()
            raise ServeError(str(event.restart), hint="start it again, or with --detach, which does that by itself")
    return server.exit_code


def _print_command(repository: Path, options: tuple[str, ...], given: dict[str, Any]) -> None:
    from repo_builder.serve.run import container, control, launch
    from repo_builder.serve.run.ports import Endpoints

    if given["mps"]:
        raise launch.no_mps_there()
    if given["backend_directory"] is not None:
        raise launch.no_backends_there()
    if not repository.is_dir():
        raise ServeError("there is no model repository", where=str(repository), hint="run repo-builder build first")
    endpoints = Endpoints(
        host=given["host"], http=given["http_port"], grpc=given["grpc_port"], metrics=given["metrics_port"]
    )
    key = None if given["open_control"] else control.new_key()
    warning = container.left_open(repository, given["models"], given["image"]) if key else None
    if warning:
        click.echo(warning, err=True)
    wanted = {"models": given["models"], "image": given["image"], "options": options, "key": key}
    click.echo(container.printed(container.Asked(repository=repository, endpoints=endpoints, **wanted)))


def _report(server: Server, repository: Path, *, as_json: bool) -> None:
    """Say which models are not served and who uses MPS, and print where the server is on stdout, for programs."""
    from repo_builder.cli import serve_mps

    for name, reason in serve_detached.unavailable(server.note).items():
        click.echo(f"warning: the model '{name}' did not load: {reason}", err=True)
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
        "backends": dict(server.job.backends),
    }
    click.echo(json.dumps(value))
