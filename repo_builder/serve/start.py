"""Choose a way to run Triton, and start it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from repo_builder.errors import ServeError
from repo_builder.serve import embedded
from repo_builder.serve.ports import Endpoints, settle
from repo_builder.serve.server import Server

Runtime = Literal["auto", "container", "embedded"]


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

    Raises:
        ServeError: The repository is not there, or a port is in use.
        MissingDependency: No runtime works here.
    """
    if not repository.is_dir():
        raise ServeError("there is no model repository", where=str(repository), hint="run repo-builder build first")
    if preflight is not None:
        preflight(repository)
    endpoints = settle(Endpoints(host=host, http=http_port, grpc=grpc_port, metrics=metrics_port))
    return embedded.start(repository, endpoints, models=models, options=options, log=log)
