"""The frames of HTTP/2 (RFC 9113) that a gRPC client sends and gets, over one non-blocking connection.

grpcio costs about 200 µs of CPU a call; this costs a tenth of that, because requests are prepared bytes and a response
that equals the last one in form is not parsed.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from repo_builder.core.errors import MeasureError
from repo_builder.measure.wire import hpack
from repo_builder.measure.wire.tls import Socket
from repo_builder.measure.wire.transport import Endpoint, connect, lost

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_FRAME = struct.Struct(">HBBBI")
_WINDOW = (1 << 31) - 1
_REFILL = 1 << 30
_CHUNK = 1 << 18
_REFUSED_STREAM, _CANCEL = 7, 8
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    length = len(payload)
    return _FRAME.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


@dataclass(kw_only=True)
class Stream:
    """What has come on one stream, and what is still to go.

    Attributes:
        slot: The transport's slot that it serves.
        window: Octets that the server will still take on this stream.
        body: DATA received and not yet taken.
        fields: Fields of header blocks that were not plainly fine.
        unsent: What flow control holds back.
        last: Whether our side of the stream ends with what is sent.
        untouched: Whether it ended and the server says that it did nothing with it, so that it can be sent again.
        received: Octets received since the server was last told to go on.
    """

    slot: int
    window: int
    body: bytearray = field(default_factory=bytearray)
    fields: dict[str, str] = field(default_factory=dict)
    unsent: memoryview | None = None
    last: bool = True
    untouched: bool = False
    received: int = 0


# stream id, the stream, whether it ended
Progress = Callable[[int, Stream, bool], None]


class Connection:
    """One HTTP/2 connection.

    Attributes:
        going_away: Whether the other side has said that it takes no more streams; those that it has, it still serves.
        closed: Whether it has ended.
    """

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self.socket: Socket = connect(endpoint, timeout_s)
        self.going_away = False
        self.closed = False
        self.streams: dict[int, Stream] = {}
        self._next = 1
        self._window = 65535
        self._stream_window = 65535
        self._frame_size = 16384
        self._received = 0
        self._in = bytearray()
        self._buffer = bytearray(_CHUNK)
        self._out: deque[bytes | memoryview] = deque()
        self._header_block = b""  # of a block that came in several frames, and whether its stream ends with it
        self._ends = False
        self._fine: set[bytes] = set()  # header blocks that say nothing but that all is well
        # no dynamic table, no push, streams that may send as much as they like
        settings = struct.pack(">HIHIHI", 1, 0, 2, 0, 4, _WINDOW)
        grow = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", _WINDOW - 65535))
        self._write(_PREFACE + frame(SETTINGS, 0, 0, settings) + grow)

    @property
    def usable(self) -> bool:
        """Whether another stream can be opened."""
        return not self.going_away and not self.closed and self._next < _WINDOW - 1

    @property
    def wants_write(self) -> bool:
        """Whether octets wait for the socket to take them."""
        return bool(self._out)

    def open(self, slot: int, block: bytes, message: bytes, *, last: bool) -> int:
        """Open a stream with a header block and a first message; return its id."""
        stream_id = self._next
        self._next += 2
        stream = Stream(slot=slot, window=self._stream_window, unsent=memoryview(message), last=last)
        self.streams[stream_id] = stream
        self._drain(stream_id, stream, frame(HEADERS, END_HEADERS, stream_id, block))
        return stream_id

    def push(self, stream_id: int, message: bytes, *, last: bool) -> None:
        """Send a message on an open stream, as far as the server's windows let it."""
        stream = self.streams[stream_id]
        stream.unsent, stream.last = memoryview(message), last
        self._drain(stream_id, stream)

    def cancel(self, stream_id: int) -> None:
        """Give a stream up; whatever still comes on it is ignored."""
        if self.streams.pop(stream_id, None) is not None and not self.closed:
            self._write(frame(RST_STREAM, 0, stream_id, struct.pack(">I", _CANCEL)))

    def flush(self) -> None:
        """Send what waits for the socket."""
        while self._out:
            item = self._out.popleft()
            sent = self._send(item)
            if sent < len(item):
                self._out.appendleft(memoryview(item)[sent:])
                return

    def receive(self, progress: Progress) -> None:
        """Read what has come, answer the connection's own frames, and tell of each stream that got data or ended."""
        try:
            count = self.socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            if self.streams and not self.going_away:
                raise lost(self._endpoint, error.strerror) from error
            count = 0
        if not count:
            self._end(progress)
            return
        data = self._in
        data += memoryview(self._buffer)[:count]
        position, end = 0, len(data)
        while end - position >= 9 and not self.closed:
            high, low, kind, flags, stream_id = _FRAME.unpack_from(data, position)
            stop = position + 9 + (high << 8 | low)
            if stop > end:
                break
            payload = bytes(data[position + 9 : stop])
            position = stop
            if kind == DATA:
                self._data(stream_id, flags, payload, progress)
            elif kind in (HEADERS, CONTINUATION):
                self._headers(kind, stream_id, flags, payload, progress)
            else:
                try:
                    self._control(kind, flags, stream_id, payload, progress)
                except struct.error:
                    raise _unreadable() from None
        del data[:position]

    def _data(self, stream_id: int, flags: int, payload: bytes, progress: Progress) -> None:
        self._received += len(payload)
        if self._received >= _REFILL:
            self._write(frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        stream.received += len(payload)
        if stream.received >= _REFILL:
            self._write(frame(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", stream.received)))
            stream.received = 0
        stream.body += _unpadded(payload) if flags & PADDED else payload
        self._tell(stream_id, stream, bool(flags & END_STREAM), progress)

    def _headers(self, kind: int, stream_id: int, flags: int, payload: bytes, progress: Progress) -> None:
        if kind == HEADERS:
            if flags & PADDED:
                payload = _unpadded(payload)
            if flags & PRIORITY:
                payload = payload[5:]
            self._header_block = payload
            self._ends = bool(flags & END_STREAM)
        else:
            self._header_block += payload
        if not flags & END_HEADERS:
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            return
        if self._header_block not in self._fine:
            fields = hpack.decode(self._header_block)
            if fields.get(":status", "200") == "200" and fields.get("grpc-status", "0") == "0":
                self._fine.add(self._header_block)
            else:
                stream.fields.update(fields)
        if self._ends:
            self._tell(stream_id, stream, True, progress)

    def _tell(self, stream_id: int, stream: Stream, ended: bool, progress: Progress) -> None:
        if ended:
            del self.streams[stream_id]
        progress(stream_id, stream, ended)

    def _control(self, kind: int, flags: int, stream_id: int, payload: bytes, progress: Progress) -> None:
        if kind == SETTINGS and not flags & ACK:
            self._settings(payload)
        elif kind == PING and not flags & ACK:
            self._write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            size = struct.unpack(">I", payload)[0] & _WINDOW
            if stream_id:
                if stream_id in self.streams:
                    self.streams[stream_id].window += size
                    self._drain(stream_id, self.streams[stream_id])
            else:
                self._window += size
                self._drain_all()
        elif kind == RST_STREAM and stream_id in self.streams:
            stream, code = self.streams[stream_id], struct.unpack(">I", payload)[0]
            stream.untouched = code == _REFUSED_STREAM
            stream.fields.setdefault("grpc-status", "13")
            stream.fields.setdefault("grpc-message", f"the stream was reset (HTTP/2 error {code})")
            self._tell(stream_id, stream, True, progress)
        elif kind == GOAWAY:
            self._go_away(struct.unpack_from(">I", payload)[0] & _WINDOW, progress)

    def _go_away(self, last: int, progress: Progress) -> None:
        """Take no more streams; those that the other side has not begun can be sent elsewhere."""
        self.going_away = True
        for stream_id, stream in [item for item in self.streams.items() if item[0] > last]:
            stream.untouched = True
            self._tell(stream_id, stream, True, progress)

    def _end(self, progress: Progress) -> None:
        """Deal with the end of the connection: polite where nothing was under way."""
        self.closed = True
        if self.streams and not self.going_away:
            raise lost(self._endpoint, "closed by the other side")
        for stream_id, stream in list(self.streams.items()):
            stream.fields.setdefault("grpc-status", "14")
            stream.fields.setdefault("grpc-message", "the connection was closed after its GOAWAY, before the answer")
            self._tell(stream_id, stream, True, progress)

    def _settings(self, payload: bytes) -> None:
        for place in range(0, len(payload), 6):
            key, value = struct.unpack_from(">HI", payload, place)
            if key == 4:
                for stream in self.streams.values():
                    stream.window += value - self._stream_window
                self._stream_window = value
            elif key == 5:
                self._frame_size = value
        self._write(frame(SETTINGS, ACK, 0))
        self._drain_all()

    def _drain_all(self) -> None:
        for stream_id, stream in list(self.streams.items()):
            self._drain(stream_id, stream)

    def _drain(self, stream_id: int, stream: Stream, head: bytes = b"") -> None:
        """Send, behind ``head``, what the windows let of a stream's message: all of it in one write."""
        parts: list[bytes | memoryview] = [head]
        while stream.unsent is not None:
            size = min(len(stream.unsent), stream.window, self._window, self._frame_size)
            if size <= 0 and stream.unsent:
                break  # nothing at all, which only ends the stream, needs no window
            size = max(0, size)
            chunk, rest = stream.unsent[:size], stream.unsent[size:]
            stream.window -= size
            self._window -= size
            flags = END_STREAM if stream.last and not rest else 0
            parts += (_FRAME.pack(size >> 8, size & 0xFF, DATA, flags, stream_id), chunk)
            stream.unsent = rest or None
        data = b"".join(parts)
        if data:
            self._write(data)

    def _write(self, data: bytes) -> None:
        sent = 0 if self._out else self._send(data)
        if sent < len(data):
            self._out.append(memoryview(data)[sent:])

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise lost(self._endpoint, error.strerror) from error


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _unreadable()
    return payload[1 : len(payload) - payload[0]]


def _unreadable() -> MeasureError:
    return MeasureError(
        "an HTTP/2 frame came that cannot be read", hint="is it a proxy that fails? try --protocol http"
    )
