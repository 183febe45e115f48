"""Single fields of protobuf messages, found without parsing the rest: an id in front of megabytes of tensor."""

from __future__ import annotations

# https://protobuf.dev/programming-guides/encoding: what is behind a tag of each wire type
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def field(data: bytes | bytearray, start: int, end: int, number: int) -> tuple[int, int] | None:
    """Return where the content of a length-delimited field begins and ends, the first of its number; None without one.

    Args:
        data: The bytes.
        start: Where the message begins in them.
        end: Where it ends.
        number: The field's number. Writers write fields by number: one with a higher ends the search.
    """
    position = start
    while position < end:
        tag, position = varint(data, position)
        kind, found = tag & 7, tag >> 3
        if found > number:
            return None
        if kind == _LENGTH:
            length, position = varint(data, position)
            if found == number:
                return position, min(position + length, end)
            position += length
        elif kind == _VARINT:
            _, position = varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            return None
    return None


def text(data: bytes | bytearray, start: int, end: int, number: int) -> bytes:
    """Return the content of such a field; empty without one."""
    place = field(data, start, end, number)
    return bytes(data[place[0] : place[1]]) if place else b""


def varint(data: bytes | bytearray, position: int) -> tuple[int, int]:
    """Return a number and where the next begins; what is cut off ends it."""
    value = shift = 0
    while position < len(data):
        octet = data[position]
        value, position, shift = value | (octet & 127) << shift, position + 1, shift + 7
        if octet < 128:
            break
    return value, position
