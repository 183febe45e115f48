"""Frames of HTTP/2 (RFC 9113), what comes and goes on a stream, and two short cuts of a load.

The short cuts: a call that is framed once, and an answer known by its form.
"""

from __future__ import annotations

import struct
from collections.abc import Container
from dataclasses import dataclass, field

from repo_builder.core.errors import MeasureError

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
FRAME = struct.Struct(">HBBBI")
FRAME_SIZE = 16384  # every peer takes frames of so many octets (section 4.2)
_STREAM = struct.Struct(">I")
_BEFORE_STREAM = 5  # length, type and flags


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    length = len(payload)
    return FRAME.pack(length >> 8, length & 0xFF, kind, flags, stream) + payload


@dataclass(kw_only=True, slots=True)
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


class Call:
    """A whole call in frames, made once and sent again and again: only the number of its stream changes.

    Args:
        block: The call's header block.
        message: Its only message.

    Attributes:
        size: Octets that flow control counts.
    """

    def __init__(self, block: bytes, message: bytes) -> None:
        starts = range(0, max(1, len(message)), FRAME_SIZE)
        parts = [frame(HEADERS, END_HEADERS, 0, block)]
        parts += [
            frame(DATA, END_STREAM if start == starts[-1] else 0, 0, message[start : start + FRAME_SIZE])
            for start in starts
        ]
        self.size = len(message)
        self._places = []
        position = _BEFORE_STREAM
        for part in parts:
            self._places.append(position)
            position += len(part)
        self._octets = bytearray(b"".join(parts))

    def numbered(self, stream_id: int) -> bytearray:
        """Return the frames for a stream; they are these until the next call of this."""
        for place in self._places:
            _STREAM.pack_into(self._octets, place, stream_id)
        return self._octets


class Form:
    """How an answer looks that is nothing but fine: HEADERS, DATA, HEADERS of one stream, only DATA's content unknown.

    Attributes:
        length: Octets of all three frames.
        start: Where the content of DATA begins in them.
        end: Where it ends.
    """

    def __init__(self, octets: bytes, first: int, second: int) -> None:
        self.length, self.start, self.end = len(octets), first + 9, second
        self._head, self._between = octets[:_BEFORE_STREAM], octets[9 : first + _BEFORE_STREAM]
        self._tail, self._last = octets[second : second + _BEFORE_STREAM], octets[second + 9 :]
        self._tail_at, self._last_at = second, second + 9
        self._streams = struct.Struct(f">5xI{len(self._between)}xI{second - first - 4}xI")

    @classmethod
    def of(cls, octets: bytes | memoryview, fine: Container[bytes]) -> Form | None:
        """Return the form of an answer whose header blocks are among the ``fine``; None where it has another."""
        places, position = [], 0
        for kind, flags in ((HEADERS, END_HEADERS), (DATA, 0), (HEADERS, END_HEADERS | END_STREAM)):
            if len(octets) - position < FRAME.size:
                return None
            high, low, found, with_flags, _ = FRAME.unpack_from(octets, position)
            if (found, with_flags) != (kind, flags):
                return None
            places.append(position)
            stop = position + FRAME.size + (high << 8 | low)
            if kind == HEADERS and bytes(octets[position + FRAME.size : stop]) not in fine:
                return None
            position = stop
        return cls(bytes(octets), places[1], places[2]) if position == len(octets) else None

    def stream(self, data: bytearray, position: int) -> int:
        """Return the stream that an answer of this form at a position belongs to; 0 where none begins there."""
        if not (
            data.startswith(self._head, position)
            and data.startswith(self._between, position + 9)
            and data.startswith(self._tail, position + self._tail_at)
            and data.startswith(self._last, position + self._last_at)
        ):
            return 0
        first, second, third = self._streams.unpack_from(data, position)
        return int(first) if first == second == third else 0


def unpadded(payload: bytes) -> bytes:
    """Return the payload of a frame that was filled up to hide its length."""
    if not payload or payload[0] >= len(payload):
        raise unreadable()
    return payload[1 : len(payload) - payload[0]]


def unreadable() -> MeasureError:
    """Return what to say of a frame that breaks the rules."""
    return MeasureError(
        "an HTTP/2 frame came that cannot be read", hint="is it a proxy that fails? try --protocol http"
    )
