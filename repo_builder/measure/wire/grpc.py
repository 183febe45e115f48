"""gRPC over our own HTTP/2 frames: one call a request, or one long stream a slot that requests are sent on."""

from __future__ import annotations

import selectors
import time
from urllib.parse import unquote

from repo_builder import __version__
from repo_builder.measure.wire import hpack
from repo_builder.measure.wire.http2 import Connection, Stream
from repo_builder.measure.wire.transport import Done, Endpoint, wait_precisely

UNARY = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
# NVIDIA's clients let as many requests share a connection; a server must see the same load from us.
SHARED_BY = 6
# https://grpc.github.io/grpc/core/md_doc_statuscodes.html
_STATUS = (  # noqa: SIM905 - a table of words
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
    "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
    "UNAUTHENTICATED"
).split()


def request(message: bytes) -> bytes:
    """Return a message in gRPC's length-prefixed form, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class GrpcTransport:
    """Unary calls; a payload is a prefixed ModelInferRequest."""

    def __init__(self, endpoint: Endpoint, path: str, *, slots: int, timeout_s: float) -> None:
        self.slots = slots
        self._block = hpack.encode(
            (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", str(endpoint)),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
                ("user-agent", f"repo-builder/{__version__}"),
            )
        )
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        try:
            for place in range(-(-slots // SHARED_BY)):
                self._connections.append(Connection(endpoint, timeout_s))
                self._selector.register(self._connections[-1].socket, selectors.EVENT_READ, place)
        except BaseException:
            self.close()
            raise
        self._events = [selectors.EVENT_READ] * len(self._connections)

    def send(self, slot: int, payload: bytes) -> None:
        """Start a call."""
        place = slot // SHARED_BY
        self._connections[place].open(slot, self._block, payload, last=True)
        self._watch(place)

    def wait(self, timeout_s: float, done: Done) -> None:
        """Wait for responses and hand each prefixed message to ``done``."""

        def progress(stream_id: int, stream: Stream, ended: bool) -> None:
            self._progress(stream_id, stream, ended, done)

        for key, events in wait_precisely(self._selector, timeout_s):
            connection = self._connections[key.data]
            if events & selectors.EVENT_WRITE:
                connection.flush()
            if events & selectors.EVENT_READ:
                connection.receive(progress)
            self._watch(key.data)

    def close(self) -> None:
        """Close every connection."""
        for item in self._connections:
            item.socket.close()
        self._selector.close()

    def _progress(self, stream_id: int, stream: Stream, ended: bool, done: Done) -> None:
        if not ended:
            return
        now = time.monotonic_ns()
        if stream.fields:
            done(stream.slot, now, None, status_text(stream.fields))
        else:
            done(stream.slot, now, bytes(stream.body), None)

    def _watch(self, place: int) -> None:
        """Ask for writability only while something waits to be written."""
        connection = self._connections[place]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_write else 0)
        if events != self._events[place]:
            self._events[place] = events
            self._selector.modify(connection.socket, events, place)


class GrpcStreamTransport(GrpcTransport):
    """One bidirectional stream a slot: prefixed ModelInferRequests out, prefixed ModelStreamInferResponses in."""

    def __init__(self, endpoint: Endpoint, path: str, *, slots: int, timeout_s: float) -> None:
        super().__init__(endpoint, path, slots=slots, timeout_s=timeout_s)
        self._ids: list[int | None] = [None] * slots

    def send(self, slot: int, payload: bytes) -> None:
        """Send a message on the slot's stream, which the first one opens."""
        place = slot // SHARED_BY
        connection, stream_id = self._connections[place], self._ids[slot]
        if stream_id is None:
            self._ids[slot] = connection.open(slot, self._block, payload, last=False)
        else:
            connection.push(stream_id, payload, last=False)
        self._watch(place)

    def _progress(self, stream_id: int, stream: Stream, ended: bool, done: Done) -> None:
        now = time.monotonic_ns()
        if ended:
            self._ids[stream.slot] = None
            done(stream.slot, now, None, status_text(stream.fields or {"grpc-message": "the server ended the stream"}))
            return
        body = stream.body
        size = 5 + int.from_bytes(body[1:5], "big") if len(body) >= 5 else 5
        if len(body) >= size:
            message = bytes(body[:size])
            del body[:size]
            error = stream_error(message[5:])
            done(stream.slot, now, None if error else message, error)


def stream_error(message: bytes) -> str | None:
    """Return the error in a ModelStreamInferResponse: its first field, a string; None where that is empty."""
    if not message.startswith(b"\x0a"):
        return None
    length, shift, position = 0, 0, 1
    while True:  # a varint
        length |= (message[position] & 127) << shift
        position, shift = position + 1, shift + 7
        if message[position - 1] < 128:
            break
    return message[position : position + length].decode("utf-8", "replace") or None


def status_text(fields: dict[str, str]) -> str:
    """Return what a failed call says."""
    code = fields.get("grpc-status", "")
    name = _STATUS[int(code)] if code.isdigit() and int(code) < len(_STATUS) else f"HTTP status {fields.get(':status')}"
    text = unquote(fields.get("grpc-message", ""))
    return f"{text} ({name})" if text else name
