"""A running Triton, whichever way it was started."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from repo_builder.serve.run import health
from repo_builder.serve.run.mps import Mps
from repo_builder.serve.run.ports import Endpoints
from repo_builder.serve.run.process import Child


class Server:
    """A Triton that this process started; leaving its ``with`` block stops it.

    Args:
        child: The process: tritonserver itself, what leads it and its MPS, or the container engine's client.
        endpoints: Where it listens.
        runtime: ``embedded`` or ``container``.
        models: Models that must be ready; empty means all of the repository's.
        clean_up: Called once when it has been stopped.
        log: File that its log goes to, None for stderr.
        mps: The CUDA MPS that its processes are to use.
    """

    def __init__(
        self,
        child: Child,
        endpoints: Endpoints,
        *,
        runtime: str,
        models: tuple[str, ...] = (),
        clean_up: Callable[[], None] | None = None,
        log: Path | None = None,
        mps: Mps | None = None,
    ) -> None:
        self._child = child
        self.endpoints = endpoints
        self.runtime = runtime
        self.models = models
        self.log = log
        self.mps = mps
        self._clean_up = [clean_up] if clean_up else []

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

    def when_ended(self, clean_up: Callable[[], None]) -> None:
        """Call ``clean_up`` once when the server has been stopped."""
        self._clean_up.append(clean_up)

    def __enter__(self) -> Server:
        """Return the server itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()
