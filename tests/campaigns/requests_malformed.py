"""Malformed requests: HTTP with odd JSON, sizes and headers; gRPC with odd tensors; bytes that are no protocol."""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
from server import Server
from subjects import FEATURES
from tritonclient.grpc import service_pb2

MODEL = "subject"
INFER = f"/v2/models/{MODEL}/infer"
_TIMEOUT_S = 8
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = b"\0\0\0\4\0\0\0\0\0" + b"\xff\xff\xff\0\0\0\0\0\1" + b"x" * 1000
_METHOD = "/inference.GRPCInferenceService/ModelInfer"


class Attacker:
    """Sends one malformed request after another.

    Args:
        server: The target.
        rnd: Decides what is sent.
    """

    def __init__(self, server: Server, rnd: random.Random) -> None:
        self._server, self.rnd = server, rnd
        self._channel = grpc.insecure_channel(server.grpc, options=[("grpc.max_send_message_length", -1)])
        self.kinds: dict[str, Callable[[], object]] = {
            **{name: lambda make=make: self._post(*make(rnd)) for name, make in POSTS.items()},
            **{name: lambda make=make: self._infer(make(rnd)) for name, make in MESSAGES.items()},
            **{name: lambda make=make: self._raw(make(rnd), server.http) for name, make in BYTES.items()},
            "grpc preface": lambda: self._raw(_PREFACE + rnd.randbytes(200), server.grpc),
            "grpc frame": lambda: self._raw(_PREFACE + _FRAME, server.grpc),
        }

    def send(self, kind: str) -> bool:
        """Send one request of a kind; return whether it was answered rather than refused or cut off."""
        try:
            self.kinds[kind]()
        except (OSError, grpc.RpcError, http.client.HTTPException, ValueError):
            return False
        return True

    def _post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        host, _, port = self._server.http.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=_TIMEOUT_S)
        try:
            connection.request("POST" if body else "GET", path, body or None, headers or {})
            connection.getresponse().read()
        finally:
            connection.close()

    def _raw(self, data: bytes, address: str) -> None:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(data)
            connection.settimeout(0.2)
            with suppress(OSError):
                connection.recv(4096)

    def _infer(self, message: bytes) -> None:
        call = self._channel.unary_unary(_METHOD, request_serializer=bytes, response_deserializer=bytes)
        call(message, timeout=_TIMEOUT_S)


def tensor(shape: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    """The one input of the model as JSON."""
    usual = {"name": "x", "shape": shape or [1, FEATURES], "datatype": "FP32", "data": [0.0] * FEATURES}
    return {**usual, **changes}


def body(*tensors: dict[str, Any], **more: Any) -> bytes:
    """A request for inference as JSON."""
    return json.dumps({"inputs": list(tensors), **more}).encode()


def _binary(rnd: random.Random) -> tuple[str, bytes, dict[str, str]]:
    size = rnd.choice([63, 65, 2**40, -1, 0, "x"])
    item = {"name": "x", "shape": [1, FEATURES], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [item]}).encode()
    return INFER, head + bytes(64), {"Inference-Header-Content-Length": str(len(head))}


def _register(rnd: random.Random) -> tuple[str, bytes]:
    key = rnd.choice(["/../../etc/passwd", "/nope", "", "a" * 300])
    value = {"key": key, "offset": rnd.choice([0, 2**62]), "byte_size": rnd.choice([64, 0, 2**62])}
    return "/v2/systemsharedmemory/region/x/register", json.dumps(value).encode()


def _outputs(rnd: random.Random) -> tuple[str, bytes]:
    classes = rnd.choice([0, -1, 10**9, "x"])
    output = {"name": rnd.choice(["nope", "", "y"]), "parameters": {"classification": classes}}
    return INFER, body(tensor(), outputs=[output])


def _header_length(rnd: random.Random) -> tuple[str, bytes, dict[str, str]]:
    length = rnd.choice(["99999999", "-1", "x", ""])
    return INFER, body(tensor()) + b"x" * 64, {"Inference-Header-Content-Length": length}


def _version(rnd: random.Random) -> tuple[str, bytes]:
    return f"/v2/models/{MODEL}/versions/{rnd.choice(['0', '-1', '99', 'x', '9' * 40])}/infer", body(tensor())


_REGION = {"shared_memory_region": "nope", "shared_memory_byte_size": 64}
_ODD = {"sequence_id": -1, "priority": -5, "timeout": -1, "x": {"a": 1}}
_LOG = {"log_verbose_level": 99999999999, "log_file": "/tmp/their.log"}  # noqa: S108 - must not come to be
# Left out: JSON whose shape has more elements than memory has room for ends tritonserver 2.51 itself (std::bad_alloc in
# its HTTP front end, before any model or backend of ours); see docs/reliability.md.
# name → path, body and headers
POSTS: dict[str, Callable[[random.Random], tuple[Any, ...]]] = {
    "cut JSON": lambda _: (INFER, b"{"),
    "deep JSON": lambda _: (INFER, b"[" * 100_000),
    "not UTF-8": lambda _: (INFER, b"\xff\xfe" * 500),
    "negative rows": lambda _: (INFER, body(tensor([-1, FEATURES]))),
    "no rows": lambda _: (INFER, body(tensor([0, FEATURES], data=[]))),
    "other type": lambda rnd: (INFER, body(tensor(datatype=rnd.choice(["INT64", "NOPE", "BYTES"])))),
    "text values": lambda _: (INFER, body(tensor(data=["x"] * FEATURES))),
    "nested values": lambda _: (INFER, body(tensor(data=[[[[[0.0] * FEATURES]]]]))),
    "values above float": lambda _: (INFER, body(tensor(data=[1e39] * FEATURES))),
    "short row": lambda _: (INFER, body(tensor([1, 15], data=[0.0] * 15))),
    "above max_batch_size": lambda _: (INFER, body(tensor([257, FEATURES], data=[0.0] * FEATURES * 257))),
    "many axes": lambda _: (INFER, body(tensor([1] * 60 + [FEATURES]))),
    "header length": _header_length,
    "binary size": _binary,
    "path up": lambda rnd: (rnd.choice(["/v2/models/../../../etc/passwd", "/v2/models/%2e%2e%2f%2e%2e/config"]), b""),
    "no such region": lambda _: (INFER, body(tensor(parameters=_REGION))),
    "register": _register,
    "load": lambda _: ("/v2/repository/models/../x/load", b"{}"),
    "unload": lambda rnd: (f"/v2/repository/models/{rnd.choice(['nope', '..%2f..'])}/unload", b"{}"),
    "repeated input": lambda _: (INFER, body(*[tensor()] * 50)),
    "unknown input": lambda _: (INFER, body(tensor(name="nope"))),
    "no input": lambda _: (INFER, body(outputs=[{"name": "y"}])),
    "odd outputs": _outputs,
    "odd version": _version,
    "odd parameters": lambda _: (INFER, body(tensor(), parameters=_ODD)),
    "log file": lambda _: ("/v2/logging", json.dumps(_LOG).encode()),
}
BYTES: dict[str, Callable[[random.Random], bytes]] = {
    "content length": lambda _: f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**14}\r\n\r\n{{".encode(),
    "noise": lambda rnd: rnd.randbytes(300),
    "long header": lambda _: b"GET / HTTP/9.9\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
}


def message(
    shape: tuple[int, ...] = (1, FEATURES), *, data: bytes | None = bytes(64), kind: str = "FP32", name: str = "x",
    more: bytes = b"", output: str = "", region: str = "",
) -> bytes:  # fmt: skip
    """A ModelInfer request on the wire."""
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    item = request.inputs.add()
    item.name, item.datatype = name, kind
    item.shape.extend(shape)
    if region:
        item.parameters["shared_memory_region"].string_param = region
        item.parameters["shared_memory_byte_size"].int64_param = 64
    elif data is not None:
        request.raw_input_contents.append(data)
    if more:
        request.raw_input_contents.append(more)
    if output:
        request.outputs.add().name = output
    stored: bytes = request.SerializeToString()
    return stored


def _flipped(rnd: random.Random) -> bytes:
    data = bytearray(message())
    data[rnd.randrange(len(data))] ^= 1 << rnd.randrange(8)
    return bytes(data)


MESSAGES: dict[str, Callable[[random.Random], bytes]] = {
    "grpc short": lambda _: message(data=bytes(63)),
    "grpc overflow": lambda _: message((2**60, FEATURES)),
    "grpc overflow to a fit": lambda _: message((2**58 + 1, FEATURES)),
    "grpc negative": lambda _: message((-5, FEATURES)),
    "grpc bytes": lambda _: message(kind="BYTES", data=struct.pack("<I", 2**31 - 1) + b"x"),
    "grpc unknown input": lambda _: message(name="nope"),
    "grpc two contents": lambda _: message(more=b"x" * 10),
    "grpc no such region": lambda _: message(region="nope"),
    "grpc large": lambda _: message((256 * 64, FEATURES), data=bytes(64 * 256 * 64)),
    "grpc unknown output": lambda _: message(output="nope"),
    "grpc noise": lambda rnd: rnd.randbytes(rnd.randrange(1, 300)),
    "grpc flipped bit": _flipped,
}
