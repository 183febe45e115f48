"""The three ports of a server: chosen, or checked to be free before anything starts."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from dataclasses import dataclass

from repo_builder.core.errors import ServeError


@dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Where a server listens.

    Attributes:
        host: Address that it binds to, as in ``127.0.0.1``.
        http: Port of HTTP.
        grpc: Port of gRPC.
        metrics: Port of the Prometheus metrics.
    """

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @property
    def http_url(self) -> str:
        """``host:port`` of HTTP, as tritonclient takes it."""
        return f"{self._reachable}:{self.http}"

    @property
    def grpc_url(self) -> str:
        """``host:port`` of gRPC, as tritonclient takes it."""
        return f"{self._reachable}:{self.grpc}"

    @property
    def metrics_url(self) -> str:
        """URL of the Prometheus metrics."""
        return f"http://{self._reachable}:{self.metrics}/metrics"

    @property
    def _reachable(self) -> str:
        """The host to connect to: loopback where the server listens on every address."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"[{host}]" if ":" in host else host


def settle(wanted: Endpoints) -> Endpoints:
    """Return the endpoints with every port 0 replaced by a free one.

    Raises:
        ServeError: A port is in use, may not be bound, or is named twice; or the host is no address of this machine.
    """
    settled: dict[str, int] = {}
    with ExitStack() as held:
        for role in ("http", "grpc", "metrics"):
            port = getattr(wanted, role)
            if port and port in settled.values():
                raise ServeError(f"port {port} is named twice", where=f"--{role}-port", hint="choose another")
            settled[role] = _bind(held, wanted.host, port, role)
    return Endpoints(host=wanted.host, **settled)


def _bind(held: ExitStack, host: str, port: int, role: str) -> int:
    """Bind one port until ``held`` closes, and return its number."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except socket.gaierror:
        raise ServeError(f"'{host}' is no address", where="--host", hint="as in --host 127.0.0.1") from None
    except OverflowError:
        raise ServeError(f"{port} is no port", where=f"--{role}-port", hint="choose one of 1 to 65535") from None
    except OSError as error:
        where = "--host" if error.errno == errno.EADDRNOTAVAIL else f"--{role}-port"
        what = {
            errno.EADDRINUSE: f"port {port} on {host} is in use",
            errno.EACCES: f"port {port} may not be bound by this user",
            errno.EADDRNOTAVAIL: f"'{host}' is not an address of this machine",
        }.get(error.errno or 0, f"port {port} on {host} cannot be bound ({error.strerror})")
        hint = "choose another, or 0 for any free one"
        raise ServeError(what, where=where, hint=hint) from None
    number: int = listener.getsockname()[1]
    return number
