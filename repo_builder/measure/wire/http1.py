"""HTTP/1.1 as a load needs it: prepared requests out, whole responses in, one keep-alive connection a slot."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from repo_builder.core.errors import MeasureError
from repo_builder.core.foreign import parsed
from repo_builder.measure.wire.tls import Socket
from repo_builder.measure.wire.transport import (
    PATIENCE_S,
    READ,
    SEND_FLAGS,
    WRITE,
    ConnectionLost,
    Done,
    Endpoint,
    Ready,
    connect,
    lost,
    lost_for_good,
)

_CHUNK = 1 << 18


class HttpTransport:
    """Requests over raw non-blocking sockets.

    A connection that its other side ends between requests, as keep-alive limits do, is made anew by the next one; so is
    one that ends as a request reaches it and before any of its answer has come.
    """

    def __init__(self, endpoint: Endpoint, path: str, *, slots: int, timeout_s: float) -> None:
        self.slots = slots
        self.reconnects = 0
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._alone = slots == 1 and endpoint.tls is None
        self._ready = Ready()
        self._slots: dict[int, int] = {}  # by descriptor
        self._parts: dict[int, tuple[memoryview, memoryview]] = {}  # head and body by the identity of expected requests
        self._buffer = bytearray(_CHUNK)
        self._view = memoryview(self._buffer)
        self._received: list[bytearray | None] = [None] * slots
        self._unsent: list[memoryview | None] = [None] * slots
        self._flying: list[bytes | None] = [None] * slots  # the request that waits for its answer
        self._answered = [0] * slots  # by the present connection
        self._head = b"\0"  # the head of the last response that came in one piece, and that response's whole length
        self._length = -1
        self._sockets: list[Socket | None] = [None] * slots
        try:
            for slot in range(slots):
                self._open(slot)
        except BaseException:
            self.close()
            raise

    def expect(self, payloads: Sequence[bytes]) -> None:
        """Find the heads of requests before they are sent; what is kept of them keeps their identity theirs."""
        self._parts = {id(item): _head_and_body(item) for item in payloads}

    def send(self, slot: int, payload: bytes) -> None:
        """Start sending; what the socket does not take at once follows in ``wait``.

        Head and body are two writes, as they are in NVIDIA's clients: a server may wake up for each.
        """
        made = self._sockets[slot] or self._reopen(slot)
        self._flying[slot] = payload
        head, body = self._parts.get(id(payload)) or _head_and_body(payload)
        sent = 0
        try:
            sent = made.send(head, SEND_FLAGS)
            if sent == len(head):
                sent += made.send(body, SEND_FLAGS)
        except BlockingIOError:
            pass
        except OSError as error:
            self._ended(slot, error.strerror)
            return
        if sent < len(payload):
            self._unsent[slot] = memoryview(payload)[sent:]
            self._ready.watch_for(made.fileno(), READ | WRITE)

    def wait(self, timeout_s: float, done: Done) -> None:
        """Wait for responses and hand each to ``done`` with its head, as ``decode`` reads it."""
        if self._alone and timeout_s >= PATIENCE_S and self._flying[0] is not None and self._unsent[0] is None:
            self._receive(0, done)  # it waits itself, which saves asking whether to read
            return
        for place, events in self._ready.wait(timeout_s):
            slot = self._slots.get(place)
            if slot is not None and events & WRITE:
                self._continue(slot)
            if events & ~WRITE and slot is not None and self._slots.get(place) == slot:
                self._receive(slot, done)

    def parts(self, slot: int) -> Sequence[int]:
        """Return none: over HTTP a request has one response."""
        return ()

    def close(self) -> None:
        """Close every connection."""
        for item in self._sockets:
            if item is not None:
                item.close()
        self._ready.close()

    def _reopen(self, slot: int) -> Socket:
        self.reconnects += 1
        try:
            return self._open(slot)
        except ConnectionLost as error:
            raise lost_for_good(error) from None

    def _open(self, slot: int) -> Socket:
        made = connect(self._endpoint, self._timeout_s)
        self._sockets[slot] = made
        self._answered[slot] = 0
        self._slots[made.fileno()] = slot
        self._ready.watch(made.fileno(), READ)
        return made

    def _shut(self, slot: int) -> None:
        """Close a slot's connection; its next request opens another."""
        made = self._sockets[slot]
        if made is not None:
            self._ready.forget(made.fileno())
            del self._slots[made.fileno()]
            made.close()
        self._sockets[slot] = self._unsent[slot] = self._received[slot] = None

    def _socket(self, slot: int) -> Socket:
        made = self._sockets[slot]
        if made is None:
            raise lost(self._endpoint, "closed")
        return made

    def _ended(self, slot: int, reason: str | None) -> None:
        """Deal with a connection that its other side has ended."""
        payload, used = self._flying[slot], self._answered[slot]
        untouched = self._received[slot] is None
        self._shut(slot)
        if payload is None:
            return
        if not used or not untouched:
            raise lost(self._endpoint, reason)
        # It ended as the request reached it, as keep-alive limits do: nobody has begun to answer.
        self.send(slot, payload)

    def _continue(self, slot: int) -> None:
        made, rest = self._socket(slot), self._unsent[slot]
        if rest is not None:
            try:
                rest = rest[made.send(rest, SEND_FLAGS) :]
            except BlockingIOError:
                return
            except OSError as error:
                self._ended(slot, error.strerror)
                return
            self._unsent[slot] = rest or None
        if not rest:
            self._ready.watch_for(made.fileno(), READ)

    def _receive(self, slot: int, done: Done) -> None:
        try:
            count = self._socket(slot).recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(slot, error.strerror)
            return
        now = time.monotonic_ns()
        partial = self._received[slot]
        if partial is None and count == self._length and self._buffer.startswith(self._head):
            self._answer(slot, now, bytes(self._view[:count]), None, done)
            return
        if count:
            if partial is None:
                partial = self._received[slot] = bytearray()
            partial += self._view[:count]
        whole = self._whole(slot, partial or bytearray(), ended=not count, now=now, done=done)
        if not count and not whole:
            self._ended(slot, "closed by the other side" + (" within an answer" if partial else ""))

    def _whole(self, slot: int, data: bytearray, *, ended: bool, now: int, done: Done) -> bool:
        """Answer a slot's request where all of the response is there; return whether it was."""
        head = data.find(b"\r\n\r\n") + 4
        if head < 4:
            return False
        fields = parse_head(bytes(data[:head]))
        whole = _whole(data, head, fields, ended=ended)
        if whole is None:
            return False
        self._received[slot] = None
        last = ended or "close" in fields.get("connection", "").lower() or fields[":version"] == "HTTP/1.0"
        if last:
            self._shut(slot)
        if fields[":status"] == "200":
            if "content-length" in fields and not last:
                self._head, self._length = bytes(data[:head]), len(whole)
            self._answer(slot, now, whole, None, done)
        else:
            self._answer(slot, now, None, error_text(whole[head:], fields[":status"]), done)
        return True

    def _answer(self, slot: int, now: int, raw: bytes | None, error: str | None, done: Done) -> None:
        if self._flying[slot] is None:
            raise MeasureError("a response came that belongs to no request", where=str(self._endpoint))
        self._flying[slot] = None
        self._answered[slot] += 1
        done(slot, now, raw, error)


def request(endpoint: Endpoint, path: str, body: bytes, json_bytes: int | None) -> bytes:
    """Return a whole infer request.

    Args:
        endpoint: For the Host field.
        path: As in ``/v2/models/vgg/infer``.
        body: JSON, then the binary tensors.
        json_bytes: Length of the JSON where binary tensors follow it.
    """
    head = [f"POST {endpoint.prefix}{path} HTTP/1.1", f"Host: {endpoint.authority}"]
    head.append("Content-Type: application/octet-stream")
    head.extend(f"{name}: {value}" for name, value in endpoint.headers)
    if json_bytes is not None:
        head.append(f"Inference-Header-Content-Length: {json_bytes}")
    head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


def _head_and_body(payload: bytes) -> tuple[memoryview, memoryview]:
    view, head = memoryview(payload), payload.find(b"\r\n\r\n") + 4
    return view[:head], view[head:]


def parse_head(head: bytes) -> dict[str, str]:
    """Return a response's header fields by lower-case name, ``:status`` and ``:version``.

    Raises:
        MeasureError: What answers does not speak HTTP/1.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(None, 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1."):
        raise MeasureError(
            f"what answers does not speak HTTP/1 (it says {first[:40]!r})",
            hint="check the port, or use --protocol grpc",
        )
    fields = {":status": words[1], ":version": words[0]}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.strip().lower()] = value.strip()
    return fields


def error_text(body: bytes, status: str) -> str:
    """Return what a failed response says, in Triton's JSON or as it is."""
    try:
        return str(parsed(json.loads, body)["error"])
    except (ValueError, KeyError, TypeError):
        text = body[:200].decode("utf-8", "replace").strip()
        return f"HTTP status {status}" + (f": {text}" if text else "")


def _whole(data: bytearray, head: int, fields: dict[str, str], *, ended: bool) -> bytes | None:
    """Return head and body where all of it has arrived, else None; ``ended`` says that no more will come.

    Raises:
        MeasureError: Lengths cannot be read.
    """
    try:
        if fields.get("transfer-encoding", "").lower() == "chunked":
            body = _join_chunks(data, head)
            return None if body is None else bytes(data[:head]) + body
        if "content-length" in fields:
            end = head + int(fields["content-length"])
            if len(data) > end:
                raise MeasureError("more came than the one answer to a request", hint="is it a proxy that fails?")
            return bytes(data) if len(data) == end else None
    except ValueError:
        raise MeasureError("what answers sends lengths that cannot be read", hint="is it a proxy that fails?") from None
    if "close" in fields.get("connection", "").lower() or fields[":version"] == "HTTP/1.0":
        return bytes(data) if ended else None
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
