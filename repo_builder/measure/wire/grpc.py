"""gRPC over our own HTTP/2 frames: one call a request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from urllib.parse import unquote

from repo_builder import __version__
from repo_builder.measure.wire import hpack
from repo_builder.measure.wire.frames import Call, Stream
from repo_builder.measure.wire.http2 import Connection
from repo_builder.measure.wire.transport import (
    PATIENCE_S,
    READ,
    WRITE,
    ConnectionLost,
    Done,
    Endpoint,
    Ready,
    lost_for_good,
)

SERVICE = "/inference.GRPCInferenceService"
UNARY = f"{SERVICE}/ModelInfer"
STREAM = f"{SERVICE}/ModelStreamInfer"
# NVIDIA's clients let as many requests share a connection; a server must see the same load from us.
SHARED_BY = 6
_FRAMED_BYTES = 1 << 20
# https://grpc.github.io/grpc/core/md_doc_statuscodes.html
_STATUS = (  # noqa: SIM905 - a table of words
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
    "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
    "UNAUTHENTICATED"
).split()


def request(message: bytes) -> bytes:
    """Return a message in gRPC's length-prefixed form, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def header_block(endpoint: Endpoint, path: str) -> bytes:
    """Return the header block of a call."""
    return hpack.encode(
        (
            (":method", "POST"),
            (":scheme", "https" if endpoint.tls else "http"),
            (":path", endpoint.prefix + path),
            (":authority", endpoint.authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", f"repo-builder/{__version__}"),
            *((name.lower(), value) for name, value in endpoint.headers),
        )
    )


class GrpcTransport:
    """Unary calls; a payload is a prefixed ModelInferRequest.

    A connection that its other side ends politely (GOAWAY, as ``--grpc-max-connection-age`` and proxies do) serves what
    it has begun, and the next request opens another. What it had not begun is sent again there.
    """

    def __init__(self, endpoint: Endpoint, path: str, *, slots: int, timeout_s: float) -> None:
        self.slots = slots
        self.reconnects = 0
        self._endpoint, self._timeout_s = endpoint, timeout_s
        self._alone = slots <= SHARED_BY and endpoint.tls is None
        self._block = header_block(endpoint, path)
        self._ready = Ready()
        self._connections: list[Connection] = []
        self._open: dict[int, Connection] = {}  # by descriptor, also those that are ending
        self._calls: dict[int, Call] = {}  # by the identity of requests that are sent again and again
        self._expected: Sequence[bytes] = ()  # those; as long as they are here, no other has such an identity
        self._done: Done = _unheard
        self._flying: list[bytes | None] = [None] * slots
        try:
            for _ in range(-(-slots // SHARED_BY)):
                self._connections.append(self._connect())
        except BaseException:
            self.close()
            raise

    def expect(self, payloads: Sequence[bytes]) -> None:
        """Frame requests before they are sent; of long ones, framing costs little beside sending, and memory."""
        self._expected = payloads
        self._calls = {id(item): Call(self._block, item) for item in payloads if len(item) <= _FRAMED_BYTES}

    def send(self, slot: int, payload: bytes) -> None:
        """Start a call."""
        self._flying[slot] = payload
        connection = self._connections[slot // SHARED_BY]
        if not connection.usable:
            connection = self._renewed(slot // SHARED_BY)
        call = self._calls.get(id(payload))
        if call is None or not connection.call(slot, call):
            connection.open(slot, self._block, payload, last=True)
        if connection.needs_care():
            self._watch(connection)

    def wait(self, timeout_s: float, done: Done) -> None:
        """Wait for responses and hand each prefixed message to ``done``."""
        self._done = done
        if self._alone and timeout_s >= PATIENCE_S and len(self._open) == 1:
            connection = self._connections[0]
            if not connection.needs_care():
                connection.receive(self._progress)  # it waits itself, which saves asking whether to read
                if connection.needs_care():
                    self._watch(connection)
                return
        for place, events in self._ready.wait(timeout_s):
            ready = self._open.get(place)
            if ready is None:
                continue  # it was closed for what came before in this round
            if events & WRITE:
                ready.flush()
            if events & ~WRITE:
                ready.receive(self._progress)
            if ready.needs_care():
                self._watch(ready)

    def call_next(self, path: str) -> None:
        """Call another method from now on."""
        self._block = header_block(self._endpoint, path)
        self.expect(self._expected)

    def parts(self, slot: int) -> Sequence[int]:
        """Return when the responses of a slot's last request came; none where it has only the one."""
        return ()

    def close(self) -> None:
        """Close every connection."""
        for item in self._open.values():
            item.socket.close()
        self._open = {}
        self._ready.close()

    def _connect(self) -> Connection:
        made = Connection(self._endpoint, self._timeout_s)
        self._ready.watch(made.socket.fileno(), READ)
        self._open[made.socket.fileno()] = made
        return made

    def _renewed(self, place: int) -> Connection:
        """Return a new connection in the place of one that takes no more streams."""
        self.reconnects += 1
        old = self._connections[place]
        try:
            made = self._connections[place] = self._connect()
        except ConnectionLost as error:
            raise lost_for_good(error) from None
        self._watch(old)
        return made

    def _progress(self, stream_id: int, stream: Stream, ended: bool) -> None:
        if not ended:
            return
        now, slot = time.monotonic_ns(), stream.slot
        payload, self._flying[slot] = self._flying[slot], None
        body = stream.body
        if stream.untouched and payload is not None:
            self.send(slot, payload)
        elif stream.fields:
            self._done(slot, now, None, status_text(stream.fields))
        elif len(body) < 5 or len(body) != 5 + int.from_bytes(body[1:5], "big"):
            self._done(slot, now, None, "the answer ended early, as a failing proxy ends it")
        else:
            self._done(slot, now, bytes(body), None)

    def _watch(self, connection: Connection) -> None:
        """Ask for writability only while something waits to be written; forget a connection that has ended."""
        place = connection.socket.fileno()
        if self._open.get(place) is not connection:
            return
        if connection.closed or (connection.going_away and not connection.streams):
            self._ready.forget(place)
            connection.socket.close()
            connection.closed = True
            del self._open[place]
        elif connection.wants_write != connection.watched:
            connection.watched = connection.wants_write
            self._ready.watch_for(place, READ | WRITE if connection.watched else READ)


def _unheard(_slot: int, _now: int, _raw: bytes | None, _error: str | None) -> None:
    """Stand where nobody waits yet."""


class Caller:
    """Calls of any method, one at a time, over one connection."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._transport = GrpcTransport(endpoint, "", slots=1, timeout_s=timeout_s)

    def call(self, method: str, message: bytes, timeout_s: float) -> tuple[bytes | None, str | None]:
        """Return the answer's content, or None and what the server says.

        Raises:
            ConnectionLost: The connection ended.
            TimeoutError: No answer came in time.
        """
        found: list[tuple[bytes | None, str | None]] = []
        self._transport.call_next(f"{SERVICE}/{method}")
        self._transport.send(0, request(message))
        until = time.monotonic() + timeout_s
        while not found:
            if time.monotonic() >= until:
                raise TimeoutError
            self._transport.wait(0.05, lambda _slot, _now, raw, error: found.append((raw, error)))
        raw, error = found[0]
        return None if raw is None else raw[5:], error

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


def status_text(fields: dict[str, str]) -> str:
    """Return what a failed call says."""
    code = fields.get("grpc-status", "")
    name = _STATUS[int(code)] if code.isdigit() and int(code) < len(_STATUS) else f"HTTP status {fields.get(':status')}"
    text = unquote(fields.get("grpc-message", ""))
    return f"{text} ({name})" if text else name
