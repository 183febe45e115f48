"""Choose a way to run Triton, and start it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from repo_builder.core.errors import MissingDependency, RepoBuilderError, ServeError
from repo_builder.serve.run import container, detached, embedded
from repo_builder.serve.run.ports import Endpoints, settle
from repo_builder.serve.run.server import Server

Runtime = Literal["auto", "container", "embedded"]


def choose_runtime(runtime: Runtime, *, image: str | None = None, mps: bool = False) -> tuple[Runtime, str]:
    """Return the runtime that ``auto`` means here, and why.

    Args:
        runtime: What was asked; anything but ``auto`` is returned as it is.
        image: A container image that was asked for, which leaves only the container.
        mps: Whether CUDA MPS was asked for, which leaves only the embedded one.

    Raises:
        MissingDependency: Neither can be used here.
        ServeError: MPS was asked for with the container.
    """
    if mps and (runtime == "container" or (runtime == "auto" and image)):
        raise no_mps_there()
    if runtime != "auto":
        return runtime, "as asked"
    if image:
        return "container", "an image was named"
    if mps:
        return "embedded", "as --mps asks"
    try:
        return "container", f"{container.find_engine()} answers"
    except RepoBuilderError as error:
        no_container = error.message
    no_embedded = embedded.unavailable()
    if no_embedded is None:
        return "embedded", no_container
    raise MissingDependency(
        f"Triton can be run in no way here: container: {no_container}; embedded: {no_embedded}",
        hint="install docker (any platform), or pip install 'repo-builder[embedded]' (Linux x86-64)",
    )


def no_mps_there() -> ServeError:
    """Return the error that says why the container takes no MPS."""
    return ServeError(
        "is for the embedded Triton: in the container one process runs all instances of a plan, and needs no MPS",
        where="--mps",
        hint="leave --mps out, or use --runtime embedded",
    )


def start(
    repository: Path,
    *,
    runtime: Runtime = "auto",
    host: str = "127.0.0.1",
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    models: Sequence[str] = (),
    image: str | None = None,
    options: Sequence[str] = (),
    preflight: Callable[[Path], None] | None = None,
    log: Path | None = None,
    detach: bool = False,
    mps: bool = False,
) -> Server:
    """Start Triton on a model repository; call ``wait_ready`` on what this returns.

    Args:
        repository: The model repository.
        runtime: ``embedded``, ``container``, or ``auto`` for whichever works here.
        host: Address to bind to.
        http_port: Port of HTTP; 0 picks a free one, as for the others.
        grpc_port: Port of gRPC.
        metrics_port: Port of the Prometheus metrics.
        models: Models to load; empty loads all.
        image: Container image instead of the one that fits the repository.
        options: Further options of tritonserver, as they are.
        preflight: Called with the repository before anything starts; raises to refuse it.
        log: File for Triton's log; None forwards it to stderr.
        detach: Whether the server outlives this process, to be found by ``detached.running``; its log goes to a file.
        mps: Whether the embedded Triton's processes share the GPU through CUDA MPS: the one that runs here, else one
            that is started and ended with the server. ``Server.mps`` tells who uses it.

    Raises:
        ServeError: The repository or a model is not there, a port is in use, it is served already, or MPS is asked for
            without a GPU or for the container.
        MissingDependency: The runtime or MPS cannot be used here.
    """
    _check_platform(detach=detach)
    _check_repository(repository, models)
    if preflight is not None:
        preflight(repository)
    chosen, _ = choose_runtime(runtime, image=image, mps=mps)
    endpoints = Endpoints(host=host, http=http_port, grpc=grpc_port, metrics=metrics_port)
    detached.refuse_clash(repository if detach else None, endpoints)
    endpoints = settle(endpoints)
    if detach:
        log = detached.log_file(repository)
        log.unlink(missing_ok=True)
    if chosen == "container":
        server = container.start(
            repository, endpoints, models=models, image=image, options=options, log=log, detached=detach
        )
    else:
        server = embedded.start(
            repository, endpoints, models=models, options=options, log=log, detached=detach, mps=mps
        )
    if detach:
        detached.remember(
            pid=server.pid,
            runtime=chosen,
            repository=repository,
            models=models,
            endpoints=server.endpoints,
            mps=server.mps,
        )
        server.when_ended(lambda: detached.forget(repository))
    return server


def _check_platform(*, detach: bool) -> None:
    if os.name != "posix":
        raise ServeError(
            f"a server can be started and stopped on Linux and macOS, and this is {sys.platform}",
            hint="use WSL, or run the command that --print-command prints",
        )
    if detach and sys.platform != "linux":
        raise ServeError(
            f"a detached server can be found again on Linux only, and this is {sys.platform}",
            hint="run it in the foreground, or add --detach to the command that --print-command prints",
        )


def _check_repository(repository: Path, models: Sequence[str]) -> None:
    if not repository.is_dir():
        raise ServeError("there is no model repository", where=str(repository), hint="run repo-builder build first")
    there = sorted(item.name for item in repository.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not there:
        raise ServeError("the model repository is empty", where=str(repository), hint="run repo-builder build first")
    for model in models:
        if model not in there:
            raise ServeError(
                f"there is no model '{model}'", where=str(repository), hint=f"there are: {', '.join(there)}"
            )
