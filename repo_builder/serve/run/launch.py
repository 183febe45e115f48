"""Choose a way to run Triton, and start it."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from repo_builder.core import servers
from repo_builder.core.errors import MissingDependency, RepoBuilderError, ServeError
from repo_builder.core.servers import Endpoints, Process, ServerNote
from repo_builder.serve.run import container, control, detached, embedded
from repo_builder.serve.run.job import Job
from repo_builder.serve.run.ports import settle
from repo_builder.serve.run.process import Child
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


def no_backends_there() -> ServeError:
    """Return the error that says why the container takes no backend directory."""
    return ServeError(
        "is for the embedded Triton: the container has native backends of its own",
        where="--backend-directory",
        hint="leave it out, or use --runtime embedded",
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
    backend_directory: Path | None = None,
    open_control: bool = False,
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
        detach: Whether the server outlives this process, to be found by ``detached.running``; its log goes to a file,
            and it is started again when it dies.
        mps: Whether the embedded Triton's processes share the GPU through CUDA MPS: the one that runs here, else one
            that is started and ended with the server. ``Server.mps`` tells who uses it.
        backend_directory: Folder of native backends, which the embedded Triton uses before those of this package.
        open_control: Whether every client may load models, and with them code, and administer shared memory. Otherwise
            that needs the key in the server's note (``core.servers.find``).

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
    wanted = Endpoints(host=host, http=http_port, grpc=grpc_port, metrics=metrics_port)
    detached.refuse_clash(repository if detach else None, wanted)
    endpoints = settle(wanted)
    key = None if open_control else control.new_key()
    if chosen == "container":
        if backend_directory is not None:
            raise no_backends_there()
        job = container.prepare(
            container.Asked(
                repository=repository, endpoints=endpoints, models=models, image=image, options=options, key=key
            )
        )
    else:
        job = embedded.prepare(
            repository, endpoints, models=models, options=options, mps=mps, key=key, backend_directory=backend_directory
        )
    arguments = {
        "runtime": chosen,
        "host": host,
        **{f"{role}_port": getattr(endpoints, role) for role in ("http", "grpc", "metrics")},
        "models": list(models),
        "image": image,
        "options": list(options),
        "mps": mps,
        "backend_directory": str(backend_directory.resolve()) if backend_directory else None,
        "open_control": open_control,
    }
    note = ServerNote(
        server=None,
        keeper=Process.of(os.getpid()),
        detached=detach,
        since=time.time(),
        loaded=time.time(),
        runtime=chosen,
        repository=repository.resolve(),
        models=tuple(models),
        endpoints=endpoints,
        polls=job.polls,
        restricted_key=key,
        backends=job.backends,
        mps=job.mps.to_dict() if job.mps else None,
        arguments=arguments,
    )
    try:
        return _run_detached(job, note) if detach else _run(job, note, log)
    except BaseException:
        job.clean_up()
        raise


def restart(note: ServerNote) -> Server:
    """Stop a detached server and start it anew on the same ports, as it was started; call ``wait_ready`` on the result.

    Raises:
        ServeError: It cannot be stopped, or not be started.
        MissingDependency: What it needs is no longer here.
    """
    given = dict(note.arguments)
    backends = given.pop("backend_directory", None)
    detached.stop(note)
    return start(note.repository, **given, detach=True, backend_directory=Path(backends) if backends else None)


def _run(job: Job, note: ServerNote, log: Path | None) -> Server:
    """Start a server that ends with this process."""
    job.set_out()
    child = Child(job.command, job.environment, log=log)
    path = detached.note_file(note.repository, detached=False)
    note = dataclasses.replace(note, server=Process.of(child.pid))
    try:
        servers.write(path, note)
    except BaseException:
        child.stop(0)
        raise

    def clean_up() -> None:
        path.unlink(missing_ok=True)
        job.clean_up()

    return Server(child, job=job, note=note, clean_up=clean_up, log=log)


def _run_detached(job: Job, note: ServerNote) -> Server:
    """Start a server that outlives this process."""
    log = detached.log_file(note.repository)
    log.unlink(missing_ok=True)
    kept = detached.Kept(job, note, log)
    return Server(kept, job=job, note=note, clean_up=lambda: None, log=log)


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
