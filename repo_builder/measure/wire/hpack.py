"""Header compression of HTTP/2 (RFC 7541), as far as a client without a dynamic table needs it.

The client announces a dynamic table of size 0, so that every header block can be read by itself and equal responses
have equal blocks.
"""

from __future__ import annotations

from collections.abc import Iterable

from repo_builder.core.errors import MeasureError

# Appendix A, names and values by index from 1; a name without "=" has no value.
_STATIC = (  # noqa: SIM905 - a table of words
    ":authority :method=GET :method=POST :path=/ :path=/index.html :scheme=http :scheme=https :status=200 :status=204 "
    ":status=206 :status=304 :status=400 :status=404 :status=500 accept-charset accept-encoding=gzip,deflate "
    "accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control "
    "content-disposition content-encoding content-language content-length content-location content-range content-type "
    "cookie date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since "
    "last-modified link location max-forwards proxy-authenticate proxy-authorization range referer refresh retry-after "
    "server set-cookie strict-transport-security transfer-encoding user-agent vary via www-authenticate"
).split()
# Appendix B: the code is canonical (ordered by length, then by symbol), so that its 257 lengths in bits say it all.
_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08060606050505060606060606"
    "0607080f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f050605060506060605070706060605060706"
    "05050607070707070f0b0e0d1c141614141616161716171717171718171818161718171717171516171617171816151416161717151716161815"
    "161717151516151716171714161616171616171a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515"
    "171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a1e"
)


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return a header block of literal fields that enter no table."""
    block = bytearray()
    for name, value in fields:
        block += b"\x00" + _integer(len(name), 7) + name.encode() + _integer(len(value.encode()), 7) + value.encode()
    return bytes(block)


def decode(block: bytes) -> dict[str, str]:
    """Return the fields of a header block that uses no dynamic table.

    Raises:
        MeasureError: The block is damaged, or refers to a table that was announced to be empty.
    """
    fields: dict[str, str] = {}
    position = 0
    try:
        while position < len(block):
            first = block[position]
            if first & 0xE0 == 0x20:  # a change of the table's size
                _, position = _read_integer(block, position, 5)
                continue
            bits = 7 if first & 0x80 else 6 if first & 0x40 else 4
            index, position = _read_integer(block, position, bits)
            if first & 0x80:
                name, _, value = _STATIC[index - 1].partition("=")
            else:
                if index:
                    name = _STATIC[index - 1].partition("=")[0]
                else:
                    name, position = _read_string(block, position)
                value, position = _read_string(block, position)
            fields[name] = value
    except (IndexError, ValueError, KeyError) as error:
        raise MeasureError("HTTP/2 headers came that cannot be read", hint="try --protocol http") from error
    return fields


def _integer(value: int, bits: int) -> bytes:
    """Section 5.1, with zeros above the prefix."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    out, value = bytearray([most]), value - most
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    out.append(value)
    return bytes(out)


def _read_integer(block: bytes, position: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value, position = block[position] & most, position + 1
    if value < most:
        return value, position
    shift = 0
    while True:
        octet, position = block[position], position + 1
        value += (octet & 127) << shift
        shift += 7
        if octet < 128:
            return value, position


def _read_string(block: bytes, position: int) -> tuple[str, int]:
    packed = block[position] & 0x80
    length, position = _read_integer(block, position, 7)
    end = position + length
    if end > len(block):
        raise ValueError("string is cut off")
    data = block[position:end]
    return (_unpack(data) if packed else data).decode("utf-8", "replace"), end


def _unpack(data: bytes) -> bytes:
    """Decode Huffman's code bit by bit; what is left at the end is padding."""
    codes = _codes()
    out, code, length = bytearray(), 0, 0
    for octet in data:
        for shift in range(7, -1, -1):
            code, length = code << 1 | (octet >> shift & 1), length + 1
            symbol = codes.get((length, code))
            if symbol is not None:
                out.append(symbol)
                code = length = 0
    return bytes(out)


def _codes() -> dict[tuple[int, int], int]:
    """Return (length, code) → symbol."""
    codes: dict[tuple[int, int], int] = {}
    code, before = 0, 0
    for symbol in sorted(range(257), key=lambda item: (_LENGTHS[item], item)):
        code <<= _LENGTHS[symbol] - before
        before = _LENGTHS[symbol]
        codes[before, code] = symbol
        code += 1
    return codes
