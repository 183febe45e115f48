"""The seam between the load loop and the wire: a transport carries prepared requests and hands back raw responses.

Requests are serialised once, before the clock starts; a transport only moves bytes, so that the client costs the
machine as little as it can. One slot carries one request at a time.
"""

from __future__ import annotations

import errno
import select
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from repo_builder.core.errors import MeasureError
from repo_builder.core.loading import load

ProtocolName = Literal["grpc", "http", "grpc-stream"]
TRANSPORTS: dict[str, str] = {
    "http": "repo_builder.measure.wire.http1:HttpTransport",
    "grpc": "repo_builder.measure.wire.grpc:GrpcTransport",
    "grpc-stream": "repo_builder.measure.wire.grpc:GrpcStreamTransport",
}
DEFAULT_PORTS: dict[str, int] = {"http": 8000, "grpc": 8001, "grpc-stream": 8001}

# slot, time of completion (time.monotonic_ns), the raw response or None, the server's error or None
Done = Callable[[int, int, "bytes | None", "str | None"], None]


class ConnectionLost(MeasureError):  # noqa: N818 - reads as what it is
    """The server closed or refused a connection."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the server listens and how it is spoken to.

    Attributes:
        protocol: ``grpc``, ``http`` or ``grpc-stream``.
        host: Name or address.
        port: TCP port.
    """

    protocol: ProtocolName
    host: str
    port: int

    @classmethod
    def parse(cls, url: str | None, protocol: ProtocolName, option: str = "--url") -> Endpoint:
        """Read ``host``, ``host:port`` or ``http://host:port``; None is this machine and the protocol's usual port.

        Raises:
            MeasureError: The URL is of another form.
        """
        text = (url or "localhost").strip()
        scheme, found, rest = text.partition("://")
        if found:
            if scheme not in ("http", "grpc"):
                raise MeasureError(f"'{scheme}://' is not supported", where=text, hint="write host:port, without TLS")
            text = rest
        host, colon, port = text.rstrip("/").rpartition(":")
        if not colon or port.endswith("]"):
            host, port = text.rstrip("/"), str(DEFAULT_PORTS[protocol])
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise MeasureError(f"'{url}' is not host:port", where=option, hint=f"as in {option} localhost:8001")
        return cls(protocol=protocol, host=host.strip("[]"), port=int(port))

    def __str__(self) -> str:
        """Return ``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Transport(Protocol):
    """Carries requests to the server, one at a time in each slot, without ever blocking in ``send``."""

    slots: int

    def send(self, slot: int, payload: bytes) -> None:
        """Start sending a prepared request in a slot that is free."""

    def wait(self, timeout_s: float, done: Done) -> None:
        """Wait for responses, call ``done`` for each as it completes, and return after the first round of them.

        Raises:
            ConnectionLost: The server closed a connection.
        """

    def close(self) -> None:
        """Close every connection."""


def open_transport(endpoint: Endpoint, path: str, *, slots: int, timeout_s: float) -> Transport:
    """Connect a transport.

    Args:
        endpoint: Where to, and by which protocol.
        path: The request's path: ``/v2/models/...`` for HTTP, the method for gRPC.
        slots: Number of requests that can be in flight.
        timeout_s: Deadline for each connection to be made.

    Raises:
        ConnectionLost: Nobody answers there.
    """
    transport: Transport = load(TRANSPORTS[endpoint.protocol])(endpoint, path, slots=slots, timeout_s=timeout_s)
    return transport


def connect(endpoint: Endpoint, timeout_s: float) -> socket.socket:
    """Return a connected, non-blocking TCP socket without Nagle's delay.

    Raises:
        ConnectionLost: The connection was refused, or the deadline has passed.
        MeasureError: This machine opens no more connections.
    """
    try:
        made = socket.create_connection((endpoint.host, endpoint.port), timeout=timeout_s)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise MeasureError(
                "this machine opens no more connections (too many open files)",
                hint="raise the limit (ulimit -n), or ask for less concurrency",
            ) from error
        reason = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        raise ConnectionLost(
            f"cannot be reached ({reason})",
            where=str(endpoint),
            hint="start the server with repo-builder serve, or name another with --url",
        ) from error
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setblocking(False)
    return made


def wait_precisely(selector: selectors.BaseSelector, timeout_s: float) -> list[tuple[selectors.SelectorKey, int]]:
    """Return what is ready, after at most ``timeout_s`` to the microsecond (epoll alone knows milliseconds only)."""
    if timeout_s < 0.02 and hasattr(selector, "fileno"):
        ready, _, _ = select.select([selector], [], [], max(0.0, timeout_s))
        return selector.select(0) if ready else []
    return selector.select(timeout_s)
