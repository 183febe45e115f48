"""A model repository checked, and served."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from repo_builder.api.places import REPOSITORY, path
from repo_builder.core import progress
from repo_builder.flows import serving, validating
from repo_builder.flows.validating import Validation
from repo_builder.serve import Server, choose_runtime, start


def validate(repository: str | Path = REPOSITORY, *, models: Sequence[str] = (), runtime: str = "any") -> Validation:
    """Check a model repository as Triton would, without starting it; what is found is returned, not raised.

    Args:
        repository: The model repository.
        models: Models to report on; empty means all.
        runtime: Where it is to be served: ``any``, ``embedded``, ``container`` or ``container:RELEASE``.

    Raises:
        RepositoryError: There is no repository, or no such model.
    """
    return validating.validate(Path(repository), models, runtime=runtime)


def serve(
    repository: str | Path = REPOSITORY,
    *,
    runtime: Literal["auto", "container", "embedded"] = "auto",
    host: str = "127.0.0.1",
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    models: Sequence[str] = (),
    image: str | None = None,
    options: Sequence[str] = (),
    log: str | Path | None = None,
    timeout_s: float = 120.0,
    mps: bool = False,
    backend_directory: str | Path | None = None,
    open_control: bool = False,
) -> Server:
    """Serve a model repository with Triton, and return when its models are ready; leaving the ``with`` block stops it.

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
        log: File for Triton's log; None forwards it to stderr.
        timeout_s: How long to wait until its models are ready, seconds.
        mps: Whether the embedded Triton's processes share the GPU through CUDA MPS.
        backend_directory: Folder of native backends, which the embedded Triton uses first.
        open_control: Whether every client may load models, and with them code.

    Raises:
        ServeError: It cannot be started or does not become ready.
        MissingDependency: The runtime cannot be used here.
    """
    chosen, _ = choose_runtime(runtime, image=image, mps=mps)
    server = start(
        Path(repository),
        runtime=chosen,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        models=tuple(models),
        image=image,
        options=tuple(options),
        preflight=lambda folder: _preflight(folder, models, container=chosen == "container"),
        log=path(log),
        mps=mps,
        backend_directory=path(backend_directory),
        open_control=open_control,
    )
    server.wait_ready(timeout_s)
    return server


def _preflight(repository: Path, models: Sequence[str], *, container: bool) -> None:
    found = serving.look(repository, models, container=container)
    for said in (*(told for _, told in found.notes), *found.refusals[1:]):
        progress.warn(str(said))
    if found.refusals:
        raise found.refusals[0]
