"""A running Triton, whichever way it was started."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from repo_builder.core.servers import Endpoints, ServerNote
from repo_builder.serve.run import health
from repo_builder.serve.run.job import Job
from repo_builder.serve.run.mps import Mps


class Running(Protocol):
    """What runs as a server: a child of this process, or one that a keeper has."""

    @property
    def pid(self) -> int:
        """Its process, which leads its group."""

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def tail(self) -> list[str]:
        """Return the last lines of its log."""

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until it has ended; return its exit code, None when the time is over."""

    def stop(self, grace_s: float) -> None:
        """Stop it, gently for so long."""


class Server:
    """A Triton that this process started; leaving its ``with`` block stops it.

    Args:
        child: The process: tritonserver itself, what leads it and its MPS, or the container engine's client.
        job: What it runs.
        note: What is written down of it.
        clean_up: Called once when it has been stopped.
        log: File that its log goes to, None for stderr.
    """

    def __init__(
        self,
        child: Running,
        *,
        job: Job,
        note: ServerNote,
        clean_up: Callable[[], None],
        log: Path | None = None,
    ) -> None:
        self._child = child
        self.job = job
        self.note = note
        self.log = log
        self._clean_up = [clean_up]

    @property
    def endpoints(self) -> Endpoints:
        """Where it listens."""
        return self.note.endpoints

    @property
    def runtime(self) -> str:
        """``embedded`` or ``container``."""
        return self.job.runtime

    @property
    def models(self) -> tuple[str, ...]:
        """Models that must be ready; empty means all of the repository's."""
        return self.note.models

    @property
    def mps(self) -> Mps | None:
        """The CUDA MPS that its processes are to use."""
        return self.job.mps

    @property
    def http_url(self) -> str:
        """``host:port`` of HTTP, as tritonclient takes it."""
        return self.endpoints.http_url

    @property
    def grpc_url(self) -> str:
        """``host:port`` of gRPC, as tritonclient takes it."""
        return self.endpoints.grpc_url

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return self.endpoints.metrics_url

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code of the server, negative for a signal; None while it runs."""
        return self._child.exit_code

    def tail(self) -> list[str]:
        """Return the last lines of its log."""
        return self._child.tail()

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Wait until the server and its models are ready; stop it where that fails.

        Raises:
            ServeError: A model failed to load, the server ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        try:
            while not health.ready(self.http_url, self.models):
                if self._child.wait(0.1) is not None:
                    raise health.failure(self._child.exit_code, self.tail(), log=self.log)
                if time.monotonic() > deadline:
                    raise health.overdue(timeout_s, self.http_url, self.tail(), log=self.log)
        except BaseException:
            self.stop(grace_s=3)  # a server that loads does not heed SIGTERM
            raise

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until the server has ended; return its exit code, None when the time is over."""
        return self._child.wait(timeout_s)

    def stop(self, grace_s: float = 15.0) -> None:
        """Stop the server: SIGTERM, a grace period, then SIGKILL for all that is left; harmless when it has ended."""
        try:
            self._child.stop(grace_s)
        finally:
            while self._clean_up:
                self._clean_up.pop()()

    def __enter__(self) -> Server:
        """Return the server itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()
