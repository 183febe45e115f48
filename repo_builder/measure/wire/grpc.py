"""gRPC over our own HTTP/2 frames: one call a request, or one long stream a slot that requests are sent on."""

from __future__ import annotations

import selectors
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from repo_builder import __version__
from repo_builder.core.errors import MeasureError
from repo_builder.measure.wire import hpack, protobuf
from repo_builder.measure.wire.http2 import Connection, Stream
from repo_builder.measure.wire.transport import ConnectionLost, Done, Endpoint, lost_for_good, wait_precisely

SERVICE = "/inference.GRPCInferenceService"
UNARY = f"{SERVICE}/ModelInfer"
STREAM = f"{SERVICE}/ModelStreamInfer"
# NVIDIA's clients let as many requests share a connection; a server must see the same load from us.
SHARED_BY = 6
_ID = 3  # the field of ModelInferRequest and ModelInferResponse
_ERROR = 0x0A  # the tag of error_message, which stands first where there is one
_MOST_KNOWN = 1024
_HEAD = 4096  # no request's own fields are longer than that
# map entries of parameters: the name, then InferParameter.bool_param = true
_ASKS_FOR_LAST = b"triton_enable_empty_final_response\x12\x02\x08\x01"
_IS_LAST = b"triton_final_response\x12\x02\x08\x01"
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
        self._block = header_block(endpoint, path)
        self._selector = selectors.DefaultSelector()
        self._connections: list[Connection] = []
        self._events: dict[Connection, int] = {}  # of every connection that is open, also of those that are ending
        self._flying: list[bytes | None] = [None] * slots
        try:
            for _ in range(-(-slots // SHARED_BY)):
                self._connections.append(self._open())
        except BaseException:
            self.close()
            raise

    def send(self, slot: int, payload: bytes) -> None:
        """Start a call."""
        self._flying[slot] = payload
        connection = self._ready(slot)
        connection.open(slot, self._block, payload, last=True)
        self._watch(connection)

    def wait(self, timeout_s: float, done: Done) -> None:
        """Wait for responses and hand each prefixed message to ``done``."""

        def progress(stream_id: int, stream: Stream, ended: bool) -> None:
            self._progress(stream_id, stream, ended, done)

        for key, events in wait_precisely(self._selector, timeout_s):
            connection = key.data
            if events & selectors.EVENT_WRITE:
                connection.flush()
            if events & selectors.EVENT_READ:
                connection.receive(progress)
            self._watch(connection)

    def call_next(self, path: str) -> None:
        """Call another method from now on."""
        self._block = header_block(self._endpoint, path)

    def parts(self, slot: int) -> Sequence[int]:
        """Return when the responses of a slot's last request came; none where it has only the one."""
        return ()

    def close(self) -> None:
        """Close every connection."""
        for item in self._events:
            item.socket.close()
        self._selector.close()

    def _open(self) -> Connection:
        made = Connection(self._endpoint, self._timeout_s)
        self._selector.register(made.socket, selectors.EVENT_READ, made)
        self._events[made] = selectors.EVENT_READ
        return made

    def _ready(self, slot: int) -> Connection:
        """Return the slot's connection, or a new one where it takes no more streams."""
        place = slot // SHARED_BY
        if not self._connections[place].usable:
            self.reconnects += 1
            old = self._connections[place]
            try:
                self._connections[place] = self._open()
            except ConnectionLost as error:
                raise lost_for_good(error) from None
            self._watch(old)
        return self._connections[place]

    def _progress(self, stream_id: int, stream: Stream, ended: bool, done: Done) -> None:
        if not ended:
            return
        now, slot = time.monotonic_ns(), stream.slot
        payload, self._flying[slot] = self._flying[slot], None
        body = stream.body
        if stream.untouched and payload is not None:
            self.send(slot, payload)
        elif stream.fields:
            done(slot, now, None, status_text(stream.fields))
        elif len(body) < 5 or len(body) != 5 + int.from_bytes(body[1:5], "big"):
            done(slot, now, None, "the answer ended early, as a failing proxy ends it")
        else:
            done(slot, now, bytes(body), None)

    def _watch(self, connection: Connection) -> None:
        """Ask for writability only while something waits to be written; forget a connection that has ended."""
        if connection not in self._events:
            return
        if connection.closed or (connection.going_away and not connection.streams):
            self._selector.unregister(connection.socket)
            connection.socket.close()
            connection.closed = True
            del self._events[connection]
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_write else 0)
        if events != self._events[connection]:
            self._events[connection] = events
            self._selector.modify(connection.socket, events, connection)


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


@dataclass(frozen=True)
class _Asked:
    """What a prepared request says of its responses: its id, that field as it stands in them, whether they are many."""

    payload: bytes = b""
    request_id: bytes = b""
    mark: bytes = b""
    many: bool = False

    @classmethod
    def of(cls, payload: bytes) -> _Asked:
        found = protobuf.text(payload, 5, len(payload), _ID)
        mark = bytes((_ID << 3 | 2, len(found) & 127)) + found
        return cls(payload, found, mark, _ASKS_FOR_LAST in payload[:_HEAD])


class GrpcStreamTransport(GrpcTransport):
    """One bidirectional stream a slot: prefixed ModelInferRequests out, prefixed ModelStreamInferResponses in.

    A response belongs to the request whose id it carries. Of a decoupled model a request is answered when the response
    that says that it is the last has come (requests ask for it: ``triton_enable_empty_final_response``).
    """

    def __init__(self, endpoint: Endpoint, path: str, *, slots: int, timeout_s: float) -> None:
        super().__init__(endpoint, path, slots=slots, timeout_s=timeout_s)
        self._streams: list[tuple[Connection, int, Stream] | None] = [None] * slots
        self._asked = [_Asked()] * slots  # what is known of each slot's request in flight
        self._known: dict[int, _Asked] = {}  # the same by the identity of prepared requests, which are sent again
        self._places: dict[int, int] = {}  # length of a response → where in it its id stood the last time
        self._parts: list[list[int]] = [[] for _ in range(slots)]
        self._last: list[bytes] = [b""] * slots

    def send(self, slot: int, payload: bytes) -> None:
        """Send a message on the slot's stream, which the first one opens."""
        self._flying[slot] = payload
        asked = self._known.get(id(payload))
        if asked is None or asked.payload is not payload:
            asked = _Asked.of(payload)
            if len(self._known) < _MOST_KNOWN:
                self._known[id(payload)] = asked
        self._asked[slot] = asked
        if asked.many:
            self._parts[slot], self._last[slot] = [], b""
        stream = self._streams[slot]
        if stream is not None and not stream[0].usable:
            if stream[1] in stream[0].streams:
                stream[0].push(stream[1], b"", last=True)  # its connection waits for the end of the stream
                self._watch(stream[0])
            stream = None
        if stream is None:
            connection = self._ready(slot)
            stream_id = connection.open(slot, self._block, payload, last=False)
            self._streams[slot] = connection, stream_id, connection.streams[stream_id]
        else:
            connection = stream[0]
            connection.push(stream[1], payload, last=False)
        self._watch(connection)

    def parts(self, slot: int) -> Sequence[int]:
        """Return when the responses of a slot's last request came, ``time.monotonic_ns`` each."""
        return self._parts[slot]

    def _progress(self, stream_id: int, stream: Stream, ended: bool, done: Done) -> None:
        now, slot = time.monotonic_ns(), stream.slot
        current = self._streams[slot]
        if current is None or current[2] is not stream:
            return  # a stream that was given up
        body = stream.body
        while len(body) >= 5 and len(body) >= (size := 5 + int.from_bytes(body[1:5], "big")):
            message = bytes(body[:size])
            del body[:size]
            self._message(slot, now, message, done)
            if self._streams[slot] != current:
                return
        if ended:
            self._streams[slot] = None
            payload, self._flying[slot] = self._flying[slot], None
            if payload is not None and stream.untouched:
                self.send(slot, payload)
            elif payload is not None:
                done(slot, now, None, status_text(stream.fields or {"grpc-message": "the stream was ended"}))

    def _message(self, slot: int, now: int, message: bytes, done: Done) -> None:
        if self._flying[slot] is None:
            raise MeasureError(
                "a response came that belongs to no request", hint="does the model send more responses than it says?"
            )
        asked = self._asked[slot]
        place = self._places.get(len(message))
        if place and not asked.many and message.startswith(asked.mark, place) and message[5] != _ERROR:
            self._flying[slot] = None
            done(slot, now, message, None)
            return
        error = stream_error(message[5:])
        if error is not None:
            if asked.many:
                self._give_up(slot)  # nothing says whether more of this request will come
            self._flying[slot] = None
            done(slot, now, None, error)
            return
        found, final, empty = response_head(message)
        if found != asked.request_id:
            raise MeasureError(
                f"the response to request '{found.decode('utf-8', 'replace')}' came for "
                f"'{asked.request_id.decode('utf-8', 'replace')}'",
                hint="whatever answers mixes responses up",
            )
        if not asked.many:
            self._places[len(message)] = message.find(asked.mark)
            self._flying[slot] = None
            done(slot, now, message, None)
            return
        if not (final and empty):
            self._parts[slot].append(now)
            self._last[slot] = message
        if final:
            self._flying[slot] = None
            # the request lasted until its last response with content; the empty one behind it only says so
            done(slot, self._parts[slot][-1] if self._parts[slot] else now, self._last[slot] or message, None)

    def _give_up(self, slot: int) -> None:
        stream, self._streams[slot] = self._streams[slot], None
        if stream is not None:
            stream[0].cancel(stream[1])


def response_head(message: bytes) -> tuple[bytes, bool, bool]:
    """Return of a prefixed ModelStreamInferResponse its id, whether it is the last, and whether it has no outputs."""
    place = protobuf.field(message, 5, len(message), 2)
    if place is None:
        return b"", False, True
    start, end = place
    outputs = protobuf.field(message, start, end, 5)
    stop = outputs[0] if outputs else end
    return protobuf.text(message, start, stop, _ID), _IS_LAST in message[start:stop], outputs is None


def stream_error(message: bytes) -> str | None:
    """Return the error in a ModelStreamInferResponse: its first field, a string; None where that is empty."""
    if not message.startswith(b"\x0a"):
        return None
    return protobuf.text(message, 0, len(message), 1).decode("utf-8", "replace") or None


def status_text(fields: dict[str, str]) -> str:
    """Return what a failed call says."""
    code = fields.get("grpc-status", "")
    name = _STATUS[int(code)] if code.isdigit() and int(code) < len(_STATUS) else f"HTTP status {fields.get(':status')}"
    text = unquote(fields.get("grpc-message", ""))
    return f"{text} ({name})" if text else name
