"""The wire, against servers that are not ours: grpcio's, and raw sockets that misbehave."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import grpc
import pytest
from tritonclient.grpc import service_pb2

from repo_builder.core.errors import MeasureError
from repo_builder.measure.wire import frames as frames_of
from repo_builder.measure.wire import grpc as grpc_wire
from repo_builder.measure.wire import grpc_stream, hpack, http1
from repo_builder.measure.wire.control import open_control
from repo_builder.measure.wire.transport import ConnectionLost, Endpoint, ProtocolName, Transport, open_transport

Answer = tuple[int, "bytes | None", "str | None"]


def exchange(transport: Transport, payloads: list[bytes], *, rounds: int = 1, deadline_s: float = 120) -> list[Answer]:
    """Send one payload a slot, several times over, and return the answers."""
    answers: list[Answer] = []
    left = dict.fromkeys(range(len(payloads)), rounds - 1)

    def done(slot: int, _: int, raw: bytes | None, error: str | None) -> None:
        answers.append((slot, raw, error))
        if left[slot]:
            left[slot] -= 1
            transport.send(slot, payloads[slot])

    for slot, payload in enumerate(payloads):
        transport.send(slot, payload)
    end = time.monotonic() + deadline_s
    while len(answers) < rounds * len(payloads):
        assert time.monotonic() < end, f"only {len(answers)} answers"
        transport.wait(0.05, done)
    return answers


# --- gRPC -----------------------------------------------------------------------------------------------------------


class Echo(grpc.GenericRpcHandler):
    """Answers with the bytes it got, twice over, unless they ask for something else."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method == grpc_wire.UNARY:
            return grpc.unary_unary_rpc_method_handler(self.unary)
        if details.method == grpc_wire.STREAM:
            return grpc.stream_stream_rpc_method_handler(self.stream)
        return None

    def unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if request.startswith(b"fail"):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "nicht gut: 100 % schlecht")
        return request * 2

    def stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            if request.startswith(b"fail"):
                context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            yield request * 2


@pytest.fixture(scope="module")
def grpc_port() -> Iterator[int]:
    server = grpc.server(
        futures.ThreadPoolExecutor(40), handlers=(Echo(),), options=[("grpc.max_receive_message_length", -1)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


@contextlib.contextmanager
def opened(port: int, protocol: ProtocolName, slots: int, path: str = "") -> Iterator[Transport]:
    endpoint = Endpoint(protocol=protocol, host="127.0.0.1", port=port)
    usual = {"http": "/", "grpc": grpc_wire.UNARY, "grpc-stream": grpc_wire.STREAM}[protocol]
    transport = open_transport(endpoint, path or usual, slots=slots, timeout_s=5)
    try:
        yield transport
    finally:
        transport.close()


@pytest.mark.parametrize("protocol", ["grpc", "grpc-stream"])
@pytest.mark.parametrize("size", [0, 1, 100, 16_384, 70_000, 3_000_000])
def test_grpc_messages_of_any_size_come_back(grpc_port: int, protocol: ProtocolName, size: int) -> None:
    """Sizes around the frame size and beyond every first flow control window."""
    payloads = [grpc_wire.request(bytes([65 + slot]) * size) for slot in range(8)]
    with opened(grpc_port, protocol, 8) as transport:
        answers = exchange(transport, payloads, rounds=3)
    assert len(answers) == 24
    for slot, raw, error in answers:
        assert error is None
        assert raw is not None
        assert raw[5:] == bytes([65 + slot]) * size * 2
        assert int.from_bytes(raw[1:5], "big") == 2 * size


@pytest.mark.parametrize("protocol", ["grpc", "grpc-stream"])
def test_where_there_is_no_epoll_another_of_the_systems_does(
    grpc_port: int, protocol: ProtocolName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("select.epoll")
    payloads = [grpc_wire.request(bytes([65 + slot]) * 3_000_000) for slot in range(8)]  # more than a socket takes
    with opened(grpc_port, protocol, 8) as transport:
        answers = exchange(transport, payloads, rounds=2)
    assert sorted(raw[5:6] for _, raw, _ in answers if raw) == sorted([bytes([65 + slot]) for slot in range(8)] * 2)


@pytest.mark.parametrize("protocol", ["grpc", "grpc-stream"])
def test_a_sole_connection_waits_no_longer_than_asked(grpc_port: int, protocol: ProtocolName) -> None:
    with opened(grpc_port, protocol, 1) as transport:
        start = time.monotonic()
        transport.wait(0.05, lambda *_: None)
        assert time.monotonic() - start < 5
        assert exchange(transport, [grpc_wire.request(b"x")], rounds=200)[-1][1] == grpc_wire.request(b"xx")


def test_expected_requests_and_others_are_answered_alike(grpc_port: int) -> None:
    expected = [grpc_wire.request(bytes([65 + place]) * size) for place, size in enumerate((0, 10, 20_000, 300_000))]
    with opened(grpc_port, "grpc", 4) as transport:
        transport.expect(expected)
        for payloads in (expected, [bytes(bytearray(item)) for item in expected], expected):
            for slot, raw, error in exchange(transport, payloads, rounds=3):
                assert error is None
                assert raw == grpc_wire.request(expected[slot][5:] * 2)


def test_grpc_errors_carry_the_servers_words_and_leave_the_connection_usable(grpc_port: int) -> None:
    with opened(grpc_port, "grpc", 3) as transport:
        answers = exchange(
            transport, [grpc_wire.request(b"fail"), grpc_wire.request(b"ok"), grpc_wire.request(b"fail")]
        )
        by_slot = {slot: (raw, error) for slot, raw, error in answers}
        assert by_slot[0] == (None, "nicht gut: 100 % schlecht (INVALID_ARGUMENT)")
        assert by_slot[1][1] is None
        again = exchange(transport, [grpc_wire.request(b"ok")])
        assert again[0][2] is None


def test_grpc_method_that_is_not_there(grpc_port: int) -> None:
    with opened(grpc_port, "grpc", 1, path="/inference.Other/None") as transport:
        assert exchange(transport, [grpc_wire.request(b"")])[0][2] == "Method not found! (UNIMPLEMENTED)"


def test_a_stream_that_fails_is_opened_again(grpc_port: int) -> None:
    with opened(grpc_port, "grpc-stream", 1) as transport:
        assert exchange(transport, [grpc_wire.request(b"fail")])[0][2] == "gone (UNAVAILABLE)"
        assert exchange(transport, [grpc_wire.request(b"x")])[0][1] == grpc_wire.request(b"xx")


def test_an_error_in_a_stream_is_read_as_protobuf_writes_it() -> None:
    for text in ("short", "long " * 100, "ü" * 20_000):
        message = service_pb2.ModelStreamInferResponse(error_message=text)
        assert grpc_stream.stream_error(message.SerializeToString()) == text
    fine = service_pb2.ModelStreamInferResponse()
    fine.infer_response.model_name = "m"
    assert grpc_stream.stream_error(fine.SerializeToString()) is None


def test_many_requests_share_few_connections(grpc_port: int) -> None:
    with opened(grpc_port, "grpc", 13) as transport:
        assert len(transport._connections) == 3  # type: ignore[attr-defined]
        assert len(exchange(transport, [grpc_wire.request(b"a")] * 13, rounds=50)) == 650


@pytest.mark.parametrize("protocol", ["grpc", "grpc-stream"])
def test_connections_that_are_sent_away_are_made_anew(protocol: ProtocolName) -> None:
    """As --grpc-max-connection-age has it: GOAWAY, what was begun is answered, and another connection does the rest."""
    options = [("grpc.max_connection_age_ms", 150), ("grpc.max_connection_age_grace_ms", 2000)]
    server = grpc.server(futures.ThreadPoolExecutor(20), handlers=(Echo(),), options=options)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    payloads = [grpc_wire.request(bytes([65 + slot]) * 1000) for slot in range(8)]
    with opened(port, protocol, 8) as transport:
        until, answers = time.monotonic() + 1.0, 0
        while time.monotonic() < until:
            found = exchange(transport, payloads, rounds=5)
            assert [error for _, _, error in found if error] == []
            answers += len(found)
        assert answers % 40 == 0  # each request has one answer
        assert transport.reconnects >= 2
    server.stop(None).wait()


def frames(*parts: tuple[int, int, int, bytes]) -> bytes:
    return b"".join(frames_of.frame(*part) for part in parts)


def test_a_request_that_a_goaway_says_was_not_begun_is_sent_again() -> None:
    """The first connection refuses stream 1 by its GOAWAY; the second answers it."""
    count = iter(range(10))
    answer = grpc_wire.request(b"yes")

    def serve(connection: socket.socket) -> None:
        connection.sendall(frames((frames_of.SETTINGS, 0, 0, b"")))
        data = b""
        while grpc_wire.request(b"q") not in data:
            data += connection.recv(65536)
        if next(count) == 0:
            connection.sendall(frames((frames_of.GOAWAY, 0, 0, bytes(8))))
            time.sleep(0.1)
            return
        head = hpack.encode(((":status", "200"),))
        last = hpack.encode((("grpc-status", "0"),))
        connection.sendall(
            frames(
                (frames_of.HEADERS, frames_of.END_HEADERS, 1, head),
                (frames_of.DATA, 0, 1, answer),
                (frames_of.HEADERS, frames_of.END_HEADERS | frames_of.END_STREAM, 1, last),
            )
        )
        time.sleep(1)

    with raw_server(serve) as port, opened(port, "grpc", 1) as transport:
        assert exchange(transport, [grpc_wire.request(b"q")]) == [(0, answer, None)]
        assert transport.reconnects == 1


def test_an_answer_that_a_proxy_cuts_short_is_a_failure() -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(frames((frames_of.SETTINGS, 0, 0, b"")))
        data = b""
        while grpc_wire.request(b"q") not in data:
            data += connection.recv(65536)
        head = hpack.encode(((":status", "200"),))
        connection.sendall(
            frames(
                (frames_of.HEADERS, frames_of.END_HEADERS, 1, head),
                (frames_of.DATA, frames_of.END_STREAM, 1, b"\0\0\0\0\x09abc"),
            )
        )
        time.sleep(1)

    with raw_server(serve) as port, opened(port, "grpc", 1) as transport:
        ((_, raw, error),) = exchange(transport, [grpc_wire.request(b"q")])
        assert raw is None
        assert "ended early" in str(error)


def test_grpc_server_that_stops_is_a_lost_connection() -> None:
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=(Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with opened(port, "grpc", 1) as transport:
        exchange(transport, [grpc_wire.request(b"a")])
        server.stop(None).wait()
        with pytest.raises(ConnectionLost, match="connection was lost"):
            exchange(transport, [grpc_wire.request(b"a")])


# --- raw servers ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve every connection with a function, in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    end = threading.Event()

    def handle(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            serve(connection)

    def accept() -> None:
        while not end.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                connection.settimeout(10)
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        end.set()
        thread.join()
        listener.close()


def read_request(connection: socket.socket) -> bytes:
    """Read one HTTP request and return its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        block = connection.recv(65536)
        if not block:
            raise OSError("closed")
        data += block
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(http1.parse_head(b"HTTP/1.1 200\r\n" + head.partition(b"\r\n")[2]).get("content-length", 0))
    while len(body) < length:
        body += connection.recv(65536)
    return body


def http_request(body: bytes) -> bytes:
    return http1.request(Endpoint(protocol="http", host="h", port=1), "/", body, None)


def answering(*pieces: bytes, pause_s: float = 0.0) -> Callable[[socket.socket], None]:
    """Serve every request with the same pieces, sent one by one."""

    def serve(connection: socket.socket) -> None:
        while True:
            read_request(connection)
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)

    return serve


@pytest.mark.parametrize("size", [0, 10, 300_000, 5_000_000])
def test_http_bodies_of_any_size_come_back(size: int) -> None:
    def serve(connection: socket.socket) -> None:
        while True:
            body = read_request(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    bodies = [bytes([65 + slot]) * size for slot in range(3)]
    with raw_server(serve) as port, opened(port, "http", 3) as transport:
        answers = exchange(transport, [http_request(body) for body in bodies], rounds=4)
    for slot, raw, error in answers:
        assert error is None
        assert raw is not None
        assert raw.partition(b"\r\n\r\n")[2] == bodies[slot]


RESPONSE = b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize(
    "pieces",
    [
        [RESPONSE],
        [RESPONSE[:7], RESPONSE[7:20], RESPONSE[20:-2], RESPONSE[-2:]],
        [RESPONSE[:1], RESPONSE[1:]],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n", b"3;x=1\r\nllo\r\n0", b"\r\n\r\n"],
    ],
)
def test_http_responses_in_pieces_are_put_together(pieces: list[bytes]) -> None:
    with raw_server(answering(*pieces, pause_s=0.01)) as port, opened(port, "http", 1) as transport:
        for slot, raw, error in exchange(transport, [http_request(b"x")], rounds=3):
            assert (slot, error) == (0, None)
            assert raw is not None
            assert raw.endswith(b"\r\n\r\nhello")


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (b'HTTP/1.1 400 Bad\r\nContent-Length: 14\r\n\r\n{"error":"no"}', "no"),
        (b"HTTP/1.1 503 Down\r\nContent-Length: 4\r\n\r\nbusy", "HTTP status 503: busy"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "HTTP status 500"),
    ],
)
def test_http_errors_carry_the_servers_words(response: bytes, text: str) -> None:
    with raw_server(answering(response)) as port, opened(port, "http", 1) as transport:
        assert exchange(transport, [http_request(b"")], rounds=2) == [(0, None, text)] * 2


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("limit", [1, 3])
def test_http_keep_alive_limits_are_lived_through(limit: int, said: bool) -> None:
    """A server or proxy that ends each connection after some answers, with or without saying so."""
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        for turn in range(limit):
            body = read_request(connection)
            seen.append(body)
            close = b"Connection: close\r\n" if said and turn == limit - 1 else b""
            connection.sendall(b"HTTP/1.1 200 OK\r\n%bContent-Length: 1\r\n\r\n%b" % (close, body))

    with raw_server(serve) as port, opened(port, "http", 2) as transport:
        answers = exchange(transport, [http_request(b"a"), http_request(b"b")], rounds=7)
        assert sorted(raw[-1:] for _, raw, _ in answers if raw) == [b"a"] * 7 + [b"b"] * 7
        assert transport.reconnects >= 14 // limit - 2
    if said:
        assert len(seen) == 14  # each request was sent once


def test_a_second_answer_is_no_answer_to_the_next_request() -> None:
    with raw_server(answering(RESPONSE + RESPONSE)) as port, opened(port, "http", 1) as transport:  # noqa: SIM117
        with pytest.raises(MeasureError, match="more came than the one answer"):
            exchange(transport, [http_request(b"x")], rounds=3)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_http_bodies_that_end_with_the_connection(version: bytes) -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/%b 200 OK\r\nConnection: close\r\n\r\nhel" % version)
        time.sleep(0.02)
        connection.sendall(b"lo")

    with raw_server(serve) as port, opened(port, "http", 1) as transport:
        for _, raw, error in exchange(transport, [http_request(b"x")], rounds=3):
            assert error is None
            assert raw is not None
            assert raw.endswith(b"\r\n\r\nhello")


def test_an_http_answer_that_is_cut_off_is_a_lost_connection() -> None:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel")

    with (
        raw_server(serve) as port,
        opened(port, "http", 1) as transport,
        pytest.raises(ConnectionLost, match="within an"),
    ):
        exchange(transport, [http_request(b"x")])


def hang_up(connection: socket.socket) -> None:
    read_request(connection)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_that_hangs_up_is_a_lost_connection(protocol: ProtocolName) -> None:
    payload = http_request(b"x") if protocol == "http" else grpc_wire.request(b"\r\n\r\n")
    with (
        raw_server(hang_up) as port,
        opened(port, protocol, 1) as transport,
        pytest.raises(ConnectionLost, match="connection was lost"),
    ):
        exchange(transport, [payload])


def test_http_towards_something_else_is_said() -> None:
    with (
        raw_server(answering(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")) as port,
        opened(port, "http", 1) as transport,
        pytest.raises(MeasureError, match="does not speak HTTP"),
    ):
        exchange(transport, [http_request(b"")])


def test_too_many_open_files_are_not_the_servers_fault(grpc_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "create_connection", full)
    with pytest.raises(MeasureError, match=r"opens no more connections .* → raise the limit"):  # noqa: SIM117
        with opened(grpc_port, "http", 1):
            pass


@pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b"[1]"])
def test_an_http_server_of_another_kind_is_said(body: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with raw_server(answering(answer)) as port:
        control = open_control(Endpoint(protocol="http", host="127.0.0.1", port=port), 5)
        with contextlib.closing(control), pytest.raises(MeasureError, match="is no inference server → check the port"):
            control.server()


@pytest.mark.parametrize("protocol", ["http", "grpc", "grpc-stream"])
def test_nobody_listens(protocol: ProtocolName) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ConnectionLost, match="connection refused"), opened(port, protocol, 1):
        pass


@pytest.mark.parametrize(
    ("url", "protocol", "found"),
    [
        (None, "grpc", ("localhost", 8001)),
        (None, "http", ("localhost", 8000)),
        ("box", "http", ("box", 8000)),
        ("box:9000", "grpc", ("box", 9000)),
        ("http://box:9000/", "http", ("box", 9000)),
        ("[::1]:9000", "grpc", ("::1", 9000)),
        ("[::1]", "grpc", ("::1", 8001)),
        ("https://box", "http", ("box", 443)),
        ("grpcs://box:9/models/", "grpc", ("box", 9)),
    ],
)
def test_urls(url: str | None, protocol: ProtocolName, found: tuple[str, int]) -> None:
    endpoint = Endpoint.parse(url, protocol)
    assert (endpoint.host, endpoint.port) == found
    assert Endpoint.parse(str(endpoint), protocol, tls=endpoint.tls) == endpoint
    assert (endpoint.tls is not None) == (url or "").startswith(("https", "grpcs"))


@pytest.mark.parametrize("url", ["ftp://box", "::1:9", "box:port", "box:0", "box:70000", ":8000"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(MeasureError):
        Endpoint.parse(url, "http")
