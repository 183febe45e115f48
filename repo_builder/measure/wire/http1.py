"""HTTP/1.1 as a load needs it: prepared requests out, whole responses in, one keep-alive connection a slot."""

from __future__ import annotations

import json
import selectors
import time

from repo_builder.core.errors import MeasureError
from repo_builder.measure.wire.transport import ConnectionLost, Done, Endpoint, connect, wait_precisely

_CHUNK = 1 << 18


class HttpTransport:
    """Requests over raw non-blocking sockets."""

    def __init__(self, endpoint: Endpoint, path: str, *, slots: int, timeout_s: float) -> None:
        self.slots = slots
        self._endpoint = endpoint
        self._selector = selectors.DefaultSelector()
        self._buffer = bytearray(_CHUNK)
        self._view = memoryview(self._buffer)
        self._received: list[bytearray | None] = [None] * slots
        self._unsent: list[memoryview | None] = [None] * slots
        self._head = b"\0"  # the head of the last response that came in one piece, and that response's whole length
        self._length = -1
        self._sockets = []
        try:
            for slot in range(slots):
                made = connect(endpoint, timeout_s)
                self._sockets.append(made)
                self._selector.register(made, selectors.EVENT_READ, slot)
        except BaseException:
            self.close()
            raise

    def send(self, slot: int, payload: bytes) -> None:
        """Start sending; what the socket does not take at once follows in ``wait``.

        Head and body are two writes, as they are in NVIDIA's clients: a server may wake up for each.
        """
        head = payload.find(b"\r\n\r\n") + 4
        body = memoryview(payload)[head:]
        sent = self._write(slot, payload[:head])
        if sent == head and body:
            sent += self._write(slot, body)
        if sent < len(payload):
            self._unsent[slot] = memoryview(payload)[sent:]
            self._selector.modify(self._sockets[slot], selectors.EVENT_READ | selectors.EVENT_WRITE, slot)

    def wait(self, timeout_s: float, done: Done) -> None:
        """Wait for responses and hand each to ``done`` with its head, as ``decode`` reads it."""
        for key, events in wait_precisely(self._selector, timeout_s):
            slot = key.data
            if events & selectors.EVENT_WRITE:
                self._continue(slot)
            if events & selectors.EVENT_READ:
                self._receive(slot, done)

    def close(self) -> None:
        """Close every connection."""
        for item in self._sockets:
            item.close()
        self._selector.close()

    def _write(self, slot: int, data: bytes | memoryview) -> int:
        try:
            return int(self._sockets[slot].send(data))
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lost(error.strerror) from error

    def _continue(self, slot: int) -> None:
        rest = self._unsent[slot]
        if rest is not None:
            rest = rest[self._write(slot, rest) :]
            self._unsent[slot] = rest or None
        if not rest:
            self._selector.modify(self._sockets[slot], selectors.EVENT_READ, slot)

    def _receive(self, slot: int, done: Done) -> None:
        try:
            count = self._sockets[slot].recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._lost(error.strerror) from error
        now = time.monotonic_ns()
        if not count:
            raise self._lost("closed by the server")
        partial = self._received[slot]
        if partial is None and count == self._length and self._buffer.startswith(self._head):
            done(slot, now, bytes(self._view[:count]), None)
            return
        if partial is None:
            partial = self._received[slot] = bytearray()
        partial += self._view[:count]
        head = partial.find(b"\r\n\r\n") + 4
        if head < 4:
            return
        fields = parse_head(bytes(partial[:head]))
        whole = _whole(partial, head, fields)
        if whole is None:
            return
        self._received[slot] = None
        if fields[":status"] == "200":
            if "content-length" in fields:
                self._head, self._length = bytes(partial[:head]), len(whole)
            done(slot, now, whole, None)
        else:
            done(slot, now, None, error_text(whole[head:], fields[":status"]))

    def _lost(self, reason: str | None) -> ConnectionLost:
        return ConnectionLost(
            f"the connection was lost ({(reason or 'unknown reason').lower()})",
            where=str(self._endpoint),
            hint="look at the server's log: it stopped, or was restarted",
        )


def request(endpoint: Endpoint, path: str, body: bytes, json_bytes: int | None) -> bytes:
    """Return a whole infer request.

    Args:
        endpoint: For the Host field.
        path: As in ``/v2/models/vgg/infer``.
        body: JSON, then the binary tensors.
        json_bytes: Length of the JSON where binary tensors follow it.
    """
    head = [f"POST {path} HTTP/1.1", f"Host: {endpoint}", "Content-Type: application/octet-stream"]
    if json_bytes is not None:
        head.append(f"Inference-Header-Content-Length: {json_bytes}")
    head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


def parse_head(head: bytes) -> dict[str, str]:
    """Return a response's header fields by lower-case name, and ``:status``.

    Raises:
        MeasureError: What answers does not speak HTTP/1.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(None, 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1."):
        raise MeasureError(
            f"the server does not speak HTTP/1 (it says {first[:40]!r})", hint="check the port, or use --protocol grpc"
        )
    fields = {":status": words[1]}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    return fields


def error_text(body: bytes, status: str) -> str:
    """Return what a failed response says, in Triton's JSON or as it is."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        text = body[:200].decode("utf-8", "replace").strip()
        return f"HTTP status {status}" + (f": {text}" if text else "")


def _whole(data: bytearray, head: int, fields: dict[str, str]) -> bytes | None:
    """Return head and body where all of it has arrived, else None."""
    if "content-length" in fields:
        end = head + int(fields["content-length"])
        return bytes(data[:end]) if len(data) >= end else None
    if fields.get("transfer-encoding", "").lower() == "chunked":
        body = _join_chunks(data, head)
        return None if body is None else bytes(data[:head]) + body
    return bytes(data[:head])


def _join_chunks(data: bytearray, position: int) -> bytes | None:
    parts: list[bytes] = []
    while True:
        line = data.find(b"\r\n", position)
        if line < 0:
            return None
        size = int(bytes(data[position:line]).partition(b";")[0], 16)
        position = line + 2
        if len(data) < position + size + 2:
            return None
        if not size:
            return b"".join(parts)
        parts.append(bytes(data[position : position + size]))
        position += size + 2
