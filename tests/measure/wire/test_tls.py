"""TLS on the wire, against grpcio's server and Python's own, with certificates made on the spot."""

from __future__ import annotations

import contextlib
import http.server
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from repo_builder.core.errors import MeasureError
from repo_builder.measure.wire import grpc as grpc_wire
from repo_builder.measure.wire import http1
from repo_builder.measure.wire.control import open_control
from repo_builder.measure.wire.tls import Tls
from repo_builder.measure.wire.transport import Endpoint, ProtocolName, open_transport

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, and a server's and a client's certificate of it."""
    folder = tmp_path_factory.mktemp("pki")
    (folder / "v3").write_text("subjectAltName=DNS:localhost\n")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
    for name in ("server", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", f"{name}.pem", "-days", "2", "-extfile", "v3",
        )  # fmt: skip
    return folder


SEEN: list[dict[str, str]] = []


class Echo(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        SEEN.append({"path": details.method, **dict(details.invocation_metadata)})
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request * 2)


class HttpEcho(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        SEEN.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
        body = self.rfile.read(int(self.headers["Content-Length"])) * 2
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be silent."""


@pytest.fixture(scope="module", params=["grpc", "http"])
def port(request: pytest.FixtureRequest, pki: Path) -> Iterator[tuple[ProtocolName, int]]:
    """A server that wants a client's certificate."""
    if request.param == "grpc":
        pair = ((pki / "server.key").read_bytes(), (pki / "server.pem").read_bytes())
        credentials = grpc.ssl_server_credentials([pair], (pki / "ca.pem").read_bytes(), require_client_auth=True)
        options = [("grpc.max_receive_message_length", -1)]
        server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(Echo(),), options=options)
        found = server.add_secure_port("localhost:0", credentials)
        server.start()
        yield "grpc", found
        server.stop(None).wait()
        return
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=pki / "ca.pem")
    context.load_cert_chain(pki / "server.pem", pki / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), HttpEcho)
    web.daemon_threads = True
    web.handle_error = lambda *_: None  # type: ignore[method-assign] - clients that are refused are meant
    web.socket = context.wrap_socket(web.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    yield "http", web.server_port
    web.shutdown()
    thread.join()
    web.server_close()


def endpoint(port: tuple[ProtocolName, int], tls: Tls | None, **more: object) -> Endpoint:
    return Endpoint(protocol=port[0], host="localhost", port=port[1], tls=tls, **more)  # type: ignore[arg-type]


def client(pki: Path, **changes: object) -> Tls:
    whole = {"ca_file": pki / "ca.pem", "cert_file": pki / "client.pem", "key_file": pki / "client.key"}
    return Tls(**(whole | changes))  # type: ignore[arg-type]


def exchanged(place: Endpoint, body: bytes) -> list[bytes]:
    """Send a body three times and return what came back."""
    path = grpc_wire.UNARY if place.protocol == "grpc" else "/v2/x"
    payload = grpc_wire.request(body) if place.protocol == "grpc" else http1.request(place, path, body, None)
    found: list[bytes] = []
    with contextlib.closing(open_transport(place, path, slots=1, timeout_s=5)) as transport:
        for turn in range(3):
            transport.send(0, payload)
            until = time.monotonic() + 60
            while len(found) <= turn:
                assert time.monotonic() < until
                transport.wait(0.05, lambda _slot, _now, raw, error: found.append(raw or str(error).encode()))
    return [item[5:] if place.protocol == "grpc" else item.partition(b"\r\n\r\n")[2] for item in found]


@pytest.mark.parametrize("size", [1, 16_384, 300_000, 3_000_000])
def test_messages_of_any_size_come_back_encrypted(port: tuple[ProtocolName, int], pki: Path, size: int) -> None:
    assert exchanged(endpoint(port, client(pki)), b"a" * size) == [b"a" * size * 2] * 3


def test_headers_and_a_prefix_go_with_every_request(port: tuple[ProtocolName, int], pki: Path) -> None:
    SEEN.clear()
    place = endpoint(port, client(pki), prefix="/models", headers=(("Authorization", "Bearer x"),))
    exchanged(place, b"a")
    assert len(SEEN) == 3
    assert all(item["authorization"] == "Bearer x" and item["path"].startswith("/models/") for item in SEEN)


def test_any_certificate_is_taken_where_that_is_asked_for(port: tuple[ProtocolName, int], pki: Path) -> None:
    assert exchanged(endpoint(port, client(pki, ca_file=None, insecure=True)), b"a") == [b"aa"] * 3


def test_a_certificate_of_an_unknown_authority_is_refused(port: tuple[ProtocolName, int], pki: Path) -> None:
    place = endpoint(port, client(pki, ca_file=None))
    with pytest.raises(MeasureError, match=r"certificate is not trusted .* --ca-file"):
        exchanged(place, b"a")
    with contextlib.closing(open_control(place, 5)) as control, pytest.raises(MeasureError, match="not trusted"):
        control.server()


def test_a_server_that_wants_a_certificate_says_so(port: tuple[ProtocolName, int], pki: Path) -> None:
    place = endpoint(port, client(pki, cert_file=None, key_file=None))
    with pytest.raises(MeasureError, match=r"handshake|connection was lost"):
        exchanged(place, b"a")


def test_files_that_are_no_certificates_are_one_sentence(tmp_path: Path, pki: Path) -> None:
    (tmp_path / "x.pem").write_text("nothing")
    with pytest.raises(MeasureError, match="cannot be used"):
        Tls(ca_file=tmp_path / "x.pem").context()
    with pytest.raises(MeasureError, match=r"--cert-file .* no such file"):
        Tls(cert_file=tmp_path / "y.pem").context()
    with pytest.raises(MeasureError, match="cannot be used"):
        Tls(cert_file=pki / "client.pem", key_file=pki / "server.key").context()
