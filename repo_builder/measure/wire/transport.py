"""The seam between the load loop and the wire: a transport carries prepared requests and hands back raw responses.

Requests are serialised once, before the clock starts; a transport only moves bytes, so that the client costs the
machine as little as it can. One slot carries one request at a time.
"""

from __future__ import annotations

import errno
import select
import selectors
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from repo_builder.core.errors import MeasureError
from repo_builder.core.loading import load
from repo_builder.measure.wire.tls import Socket, Tls

ProtocolName = Literal["grpc", "http", "grpc-stream"]
TRANSPORTS: dict[str, str] = {
    "http": "repo_builder.measure.wire.http1:HttpTransport",
    "grpc": "repo_builder.measure.wire.grpc:GrpcTransport",
    "grpc-stream": "repo_builder.measure.wire.grpc_stream:GrpcStreamTransport",
}
_SCHEMES = {"http": False, "grpc": False, "https": True, "grpcs": True}
DEFAULT_PORTS: dict[str, int] = {"http": 8000, "grpc": 8001, "grpc-stream": 8001}

READ, WRITE = 1, 4  # as epoll has them
# A plain socket blocks where it is read and no longer than this, so that a sole connection needs no epoll; it never
# does where it is written.
PATIENCE_S = 0.01
SEND_FLAGS = socket.MSG_DONTWAIT

# slot, time of completion (time.monotonic_ns), the raw response or None, the server's error or None
Done = Callable[[int, int, "bytes | None", "str | None"], None]


class ConnectionLost(MeasureError):  # noqa: N818 - reads as what it is
    """The server closed or refused a connection."""


def is_header(name: str, value: str) -> bool:
    """Whether these may be a header's name and value."""
    text = name + value
    return bool(name) and text.isascii() and text.isprintable() and not set(name) & set(' ()<>@,;"/[]?={}:')


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where the server listens and how it is spoken to.

    Nothing of the environment decides on the way there: proxies that ``http_proxy`` and the like name are not used, for
    what is measured is the server and not they.

    Attributes:
        protocol: ``grpc``, ``http`` or ``grpc-stream``.
        host: Name or address.
        port: TCP port.
        prefix: Path in front of every request's own, as a proxy routes it: ``/models``; empty for none.
        tls: How the connection is encrypted; None where it is not.
        headers: Names and values that go with every request.
    """

    protocol: ProtocolName
    host: str
    port: int
    prefix: str = ""
    tls: Tls | None = None
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(
        cls,
        url: str | None,
        protocol: ProtocolName,
        option: str = "--url",
        *,
        tls: Tls | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Endpoint:
        """Read ``host``, ``host:port`` or ``SCHEME://host:port/prefix``; None is this machine and the usual port.

        Schemes are ``http`` and ``grpc``, and with TLS ``https`` and ``grpcs``.

        Raises:
            MeasureError: The URL is of another form.
        """
        text = (url or "localhost").strip()
        scheme, found, rest = text.partition("://")
        if found:
            if scheme not in _SCHEMES:
                message = f"'{scheme}://' is not supported"
                raise MeasureError(message, where=text, hint=f"use {', '.join(_SCHEMES)}, or host:port alone")
            text = rest
            tls = (tls or Tls()) if _SCHEMES[scheme] else tls
        text, slash, path = text.partition("/")
        host, colon, port = text.rpartition(":")
        if not colon or port.endswith("]"):
            usual = DEFAULT_PORTS[protocol] if not found or tls is None else 443
            host, port = text, str(usual)
        if not host or not port.isdecimal() or not 0 < int(port) < 65536 or not text.isprintable() or " " in text:
            raise MeasureError(f"'{url}' is not host:port", where=option, hint=f"as in {option} localhost:8001")
        if ":" in host and not host.startswith("["):
            raise MeasureError(f"'{url}' is not host:port", where=option, hint=f"write [{text}]:8001 for IPv6")
        prefix = slash + path.rstrip("/") if path.strip("/") else ""
        return cls(protocol=protocol, host=host.strip("[]"), port=int(port), prefix=prefix, tls=tls, headers=headers)

    def __str__(self) -> str:
        """Return ``host:port``, and the prefix."""
        place = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return place + self.prefix

    @property
    def authority(self) -> str:
        """``host:port`` as it stands in requests."""
        return str(self).removesuffix(self.prefix) if self.prefix else str(self)


class Transport(Protocol):
    """Carries requests to the server, one at a time in each slot, without ever blocking in ``send``."""

    slots: int
    reconnects: int

    def expect(self, payloads: Sequence[bytes]) -> None:
        """Get ready for requests that will be sent again and again; others can be sent, too."""

    def send(self, slot: int, payload: bytes) -> None:
        """Start sending a prepared request in a slot that is free."""

    def wait(self, timeout_s: float, done: Done) -> None:
        """Wait for responses, call ``done`` for each as it completes, and return after the first round of them.

        Raises:
            ConnectionLost: The server closed a connection.
        """

    def parts(self, slot: int) -> Sequence[int]:
        """Return when the responses of a slot's last request came, ``time.monotonic_ns``; none where it has but one."""

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


def connect(endpoint: Endpoint, timeout_s: float) -> Socket:
    """Return a connected socket without Nagle's delay, encrypted where the endpoint says so.

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
    if endpoint.tls is not None:
        try:
            return endpoint.tls.wrap(made, endpoint.host, http2=endpoint.protocol != "http")
        except BaseException:
            made.close()
            raise
    made.settimeout(None)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, int(PATIENCE_S * 1e6)))
    return made


def lost(endpoint: Endpoint, reason: str | None) -> ConnectionLost:
    """Return what to say of a connection that ended with requests on it."""
    return ConnectionLost(
        f"the connection was lost ({(reason or 'unknown reason').lower()})",
        where=str(endpoint),
        hint="the server stopped or was restarted, or a proxy before it closed the connection: see both their logs",
    )


def lost_for_good(error: ConnectionLost) -> ConnectionLost:
    """Return what to say where a connection that ended cannot be made anew."""
    message = f"the connection was lost, and the server {error.message}"
    return ConnectionLost(message, where=error.where, hint="it stopped, or a proxy before it did: look at their logs")


class Ready:
    """Which connections have something to read, or room to write."""

    def __init__(self) -> None:
        self._poller = select.epoll() if hasattr(select, "epoll") else _Portable()
        self.watch, self.watch_for, self.forget = self._poller.register, self._poller.modify, self._poller.unregister
        self.close = self._poller.close

    def wait(self, timeout_s: float) -> list[tuple[int, int]]:
        """Return descriptors and what they are ready for, after at most ``timeout_s``.

        Below ``PATIENCE_S`` that is to the microsecond, as the schedule of an open loop needs it: epoll alone knows
        milliseconds only.
        """
        if timeout_s >= PATIENCE_S:
            return self._poller.poll(timeout_s)
        ready, _, _ = select.select([self._poller], [], [], max(0.0, timeout_s))
        return self._poller.poll(0) if ready else []


class _Portable:
    """The same as epoll where there is none; the objects that ``selectors`` makes of all cost more than the calls."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.unregister, self.close, self.fileno = (
            self._selector.unregister, self._selector.close, self._selector.fileno
        )  # fmt: skip

    def register(self, place: int, events: int) -> None:
        self._selector.register(place, events & READ | (events & WRITE and selectors.EVENT_WRITE))

    def modify(self, place: int, events: int) -> None:
        self._selector.modify(place, events & READ | (events & WRITE and selectors.EVENT_WRITE))

    def poll(self, timeout_s: float) -> list[tuple[int, int]]:
        found = self._selector.select(timeout_s)
        return [(key.fd, events & READ | (events & selectors.EVENT_WRITE and WRITE)) for key, events in found]
