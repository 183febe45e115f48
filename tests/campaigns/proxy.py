"""A byte proxy with faults: it delays, swallows, cuts, flips, repeats, resets, answers noise, or dribbles."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

Fault = Callable[[bytes, socket.socket, random.Random], bytes]


def _delay(data: bytes, _: socket.socket, rnd: random.Random) -> bytes:
    time.sleep(0.02)
    return data


def _swallow(data: bytes, _: socket.socket, rnd: random.Random) -> bytes:
    return b""


def _halve(data: bytes, _: socket.socket, rnd: random.Random) -> bytes:
    return data[: len(data) // 2] if rnd.random() < 0.05 else data


def _cut(data: bytes, receiver: socket.socket, rnd: random.Random) -> bytes:
    if rnd.random() < 0.02:
        receiver.sendall(data[: len(data) // 2])
        raise ConnectionError("cut")
    return data


def _flip(data: bytes, _: socket.socket, rnd: random.Random) -> bytes:
    changed = bytearray(data)
    if rnd.random() < 0.3:
        changed[rnd.randrange(len(changed))] ^= 1 << rnd.randrange(8)
    return bytes(changed)


def _repeat(data: bytes, _: socket.socket, rnd: random.Random) -> bytes:
    return data * 2 if rnd.random() < 0.05 else data


def _reset(data: bytes, receiver: socket.socket, rnd: random.Random) -> bytes:
    if rnd.random() < 0.02:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        receiver.close()
        raise ConnectionError("reset")
    return data


def _noise(data: bytes, _: socket.socket, rnd: random.Random) -> bytes:
    return rnd.randbytes(len(data))


def _dribble(data: bytes, receiver: socket.socket, rnd: random.Random) -> bytes:
    for start in range(0, len(data), 7):
        receiver.sendall(data[start : start + 7])
    return b""


# What may happen to the bytes of an answer.
FAULTS: dict[str, Fault] = {
    "delay": _delay,
    "swallow": _swallow,
    "halve": _halve,
    "cut": _cut,
    "flip": _flip,
    "repeat": _repeat,
    "reset": _reset,
    "noise": _noise,
    "dribble": _dribble,
}


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes everything on, but for the fault.

    Args:
        target: ``host:port``.
        fault: Name in ``FAULTS``.
        after_s: Seconds from now in which everything is passed on as it is.
        seed: Seed of the fault's chances.
    """

    def __init__(self, target: str, fault: str, *, after_s: float = 0.0, seed: int = 0) -> None:
        host, _, port = target.rpartition(":")
        self._target, self._fault, self._rnd = (host, int(port)), FAULTS[fault], random.Random(seed)
        self._begin = time.monotonic() + after_s
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all connections."""
        for item in (self._listener, *self._sockets):
            with suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
            item.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
                server = socket.create_connection(self._target)
            except OSError:
                return
            self._sockets += [client, server]
            for item in (client, server):
                item.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for sender, receiver, is_answer in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(sender, receiver, is_answer), daemon=True).start()

    def _pump(self, sender: socket.socket, receiver: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while data := sender.recv(65536):
                if is_answer and time.monotonic() > self._begin:
                    data = self._fault(data, receiver, self._rnd)
                if data:
                    receiver.sendall(data)
        for item in (sender, receiver):
            with suppress(OSError):
                item.shutdown(socket.SHUT_RDWR)
