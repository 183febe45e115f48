"""gRPC's bidirectional streams: one long stream a slot that requests are sent on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from repo_builder.core.errors import MeasureError
from repo_builder.measure.wire import protobuf
from repo_builder.measure.wire.frames import Stream
from repo_builder.measure.wire.grpc import SHARED_BY, GrpcTransport, status_text
from repo_builder.measure.wire.http2 import Connection
from repo_builder.measure.wire.transport import Endpoint

_ID = 3  # the field of ModelInferRequest and ModelInferResponse
_ERROR = 0x0A  # the tag of error_message, which stands first where there is one
_MOST_KNOWN = 1024
_HEAD = 4096  # no request's own fields are longer than that
# map entries of parameters: the name, then InferParameter.bool_param = true
_ASKS_FOR_LAST = b"triton_enable_empty_final_response\x12\x02\x08\x01"
_IS_LAST = b"triton_final_response\x12\x02\x08\x01"


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

    def expect(self, payloads: Sequence[bytes]) -> None:
        """Do nothing: a message on a stream is one frame or few."""

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
            connection = self._connections[slot // SHARED_BY]
            if not connection.usable:
                connection = self._renewed(slot // SHARED_BY)
            stream_id = connection.open(slot, self._block, payload, last=False)
            self._streams[slot] = connection, stream_id, connection.streams[stream_id]
        else:
            connection = stream[0]
            connection.push(stream[1], payload, last=False)
        self._watch(connection)

    def parts(self, slot: int) -> Sequence[int]:
        """Return when the responses of a slot's last request came, ``time.monotonic_ns`` each."""
        return self._parts[slot]

    def _progress(self, stream_id: int, stream: Stream, ended: bool) -> None:
        now, slot = time.monotonic_ns(), stream.slot
        current = self._streams[slot]
        if current is None or current[2] is not stream:
            return  # a stream that was given up
        body = stream.body
        while len(body) >= 5 and len(body) >= (size := 5 + int.from_bytes(body[1:5], "big")):
            message = bytes(body[:size])
            del body[:size]
            self._message(slot, now, message)
            if self._streams[slot] != current:
                return
        if ended:
            self._streams[slot] = None
            payload, self._flying[slot] = self._flying[slot], None
            if payload is not None and stream.untouched:
                self.send(slot, payload)
            elif payload is not None:
                self._done(slot, now, None, status_text(stream.fields or {"grpc-message": "the stream was ended"}))

    def _message(self, slot: int, now: int, message: bytes) -> None:
        if self._flying[slot] is None:
            raise MeasureError(
                "a response came that belongs to no request", hint="does the model send more responses than it says?"
            )
        asked = self._asked[slot]
        place = self._places.get(len(message))
        if place and not asked.many and message.startswith(asked.mark, place) and message[5] != _ERROR:
            self._flying[slot] = None
            self._done(slot, now, message, None)
            return
        error = stream_error(message[5:])
        if error is not None:
            if asked.many:
                self._give_up(slot)  # nothing says whether more of this request will come
            self._flying[slot] = None
            self._done(slot, now, None, error)
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
            self._done(slot, now, message, None)
            return
        if not (final and empty):
            self._parts[slot].append(now)
            self._last[slot] = message
        if final:
            self._flying[slot] = None
            # the request lasted until its last response with content; the empty one behind it only says so
            self._done(slot, self._parts[slot][-1] if self._parts[slot] else now, self._last[slot] or message, None)

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
