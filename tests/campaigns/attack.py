"""Malformed requests and slow connections among good requests of four clients.

Every good request must be answered, and right; the server must live, and its memory stay flat.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import requests_malformed
import server as servers
import subjects
import tritonclient.grpc
import tritonclient.http
from results import Result
from server import Server

_CLIENTS = ("grpc", "grpc", "http", "http")
_ATTACKERS = 6
_SLOW = 100  # connections that never finish their request
_MOST_GROWTH_MIB = 300
_ROWS = 8


def run(folder: Path, seconds: float, seed: int, *, count: int | None = None) -> Result:
    """Attack a server for a time.

    Args:
        folder: Scratch.
        seconds: Budget.
        seed: Seed of what is sent.
        count: Malformed requests at the most.
    """
    begin = time.monotonic()
    result, done = Result(), threading.Event()
    subject = subjects.make(folder / "subject")
    x = subjects.values(_ROWS, subjects.FEATURES, seed=1)
    with servers.serving(subject.repository) as server:
        want = _infer("grpc", server, x)
        before = server.processes()
        goods = [threading.Thread(target=_good, args=(kind, server, x, want, result, done)) for kind in _CLIENTS]
        slow = threading.Thread(target=_slow_clients, args=(server, done))
        for thread in (*goods, slow):
            thread.start()
        try:
            _attack(server, seed, result, begin + seconds, count or 10**9)
        finally:
            done.set()
            for thread in (*goods, slow):
                thread.join(60)
        for pid, size in server.processes().items():
            if pid in before and size - before[pid] > _MOST_GROWTH_MIB:
                result.problem("memory grew", f"{before[pid]} MiB → {size} MiB")
    return result


def _attack(server: Server, seed: int, result: Result, deadline: float, most: int) -> None:
    """Attack from several threads until the deadline, the count, or the server's end."""

    def one(number: int) -> None:
        rnd = random.Random(seed * _ATTACKERS + number)
        attacker = requests_malformed.Attacker(server, rnd)
        kinds = list(attacker.kinds)
        while result.figures["malformed_requests"] < most and time.monotonic() < deadline:
            kind = rnd.choice(kinds)
            result.count("malformed_requests", *(["malformed_answered"] if attacker.send(kind) else []))
            if not server.alive():
                result.problem(f"the server ended after '{kind}' or so")
                return

    threads = [threading.Thread(target=one, args=(number,)) for number in range(_ATTACKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _client(kind: str, server: Server) -> tuple[Any, Any]:
    if kind == "grpc":
        return tritonclient.grpc, tritonclient.grpc.InferenceServerClient(server.grpc)
    return tritonclient.http, tritonclient.http.InferenceServerClient(server.http, network_timeout=30)


def _infer(kind: str, server: Server, x: subjects.Array, client: tuple[Any, Any] | None = None) -> subjects.Array:
    library, connection = client or _client(kind, server)
    item = library.InferInput("x", list(x.shape), "FP32")
    item.set_data_from_numpy(x)
    values: subjects.Array = connection.infer(requests_malformed.MODEL, [item]).as_numpy("y")
    return values


def _good(
    kind: str, server: Server, x: subjects.Array, want: subjects.Array, result: Result, done: threading.Event
) -> None:
    """Send good requests of one to eight rows until the end, and hold each answer against the right one."""
    rnd, client = random.Random(kind), _client(kind, server)
    while not done.is_set():
        first = rnd.randrange(_ROWS)
        last = rnd.randint(first + 1, _ROWS)
        result.count("good_requests")
        try:
            got = _infer(kind, server, x[first:last], client)
        except Exception as error:  # both clients' libraries raise what they like
            result.problem(f"a good {kind} request failed", str(error))
        else:
            if got.shape != want[first:last].shape or not np.allclose(got, want[first:last], atol=1e-3):
                result.problem(f"a good {kind} request was answered wrong")
        time.sleep(0.005)


def _slow_clients(server: Server, done: threading.Event) -> None:
    """Hold connections open whose requests never come to an end."""
    host, _, port = server.http.rpartition(":")
    begun = f"POST {requests_malformed.INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{{".encode()
    held: list[socket.socket] = []
    for _ in range(_SLOW):
        with suppress(OSError):
            connection = socket.create_connection((host, int(port)), timeout=3)
            connection.sendall(begun)
            held.append(connection)
    while not done.wait(2):
        for connection in held:
            with suppress(OSError):
                connection.sendall(b" ")
    for connection in held:
        connection.close()
