"""What is asked of the server beside inference: metadata, configuration, statistics, shared memory.

Both protocols give the same JSON values; every call has a deadline.
"""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

from repo_builder.core import servers
from repo_builder.core.errors import MeasureError
from repo_builder.core.foreign import parsed
from repo_builder.measure.wire.grpc import Caller
from repo_builder.measure.wire.transport import ConnectionLost, Endpoint

Json = dict[str, Any]


class Control(Protocol):
    """The server's own API."""

    def server(self) -> Json:
        """Return name, version and extensions of the server."""

    def models(self) -> list[str]:
        """Return the names of the models in the server's repository."""

    def metadata(self, model: str, version: str = "") -> Json:
        """Return a model's metadata: versions, platform, inputs, outputs."""

    def config(self, model: str, version: str = "") -> Json:
        """Return a model's configuration."""

    def statistics(self, model: str, version: str = "") -> list[Json]:
        """Return a model's statistics, one entry a version."""

    def load(self, model: str, config: Json) -> None:
        """Load a model, or load it anew, with a configuration in place of its file's."""

    def unload(self, model: str) -> None:
        """Unload a model."""

    def register_system(self, name: str, key: str, byte_size: int) -> None:
        """Register a POSIX shared memory object."""

    def register_cuda(self, name: str, handle: bytes, device: int, byte_size: int) -> None:
        """Register CUDA memory by its IPC handle (64 raw bytes)."""

    def unregister(self, kind: str, name: str) -> None:
        """Forget a region; ``kind`` is ``system`` or ``cuda``."""

    def close(self) -> None:
        """Close the connection."""


def open_control(endpoint: Endpoint, timeout_s: float) -> Control:
    """Return the server's API over the endpoint's protocol; connects at the first call."""
    if endpoint.protocol == "http":
        return HttpControl(endpoint, timeout_s)
    return GrpcControl(endpoint, timeout_s)


class HttpControl:
    """The API over HTTP."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint = endpoint = _with_key(endpoint)
        self._timeout_s = timeout_s
        self._connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=timeout_s)
        if endpoint.tls is not None:
            context = endpoint.tls.context()
            self._connection = http.client.HTTPSConnection(
                endpoint.host, endpoint.port, timeout=timeout_s, context=context
            )

    def server(self) -> Json:
        """Return name, version and extensions of the server."""
        return self._object("GET", "/v2")

    def models(self) -> list[str]:
        """Return the names of the models in the server's repository."""
        return [str(item["name"]) for item in self._call("POST", "/v2/repository/index", {})]

    def metadata(self, model: str, version: str = "") -> Json:
        """Return a model's metadata."""
        return self._object("GET", _path(model, version))

    def config(self, model: str, version: str = "") -> Json:
        """Return a model's configuration."""
        return self._object("GET", _path(model, version) + "/config")

    def statistics(self, model: str, version: str = "") -> list[Json]:
        """Return a model's statistics."""
        found: list[Json] = self._object("GET", _path(model, version) + "/stats").get("model_stats", [])
        return found

    def load(self, model: str, config: Json) -> None:
        """Load a model with a configuration."""
        self._call("POST", f"/v2/repository/models/{quote(model)}/load", {"parameters": {"config": json.dumps(config)}})

    def unload(self, model: str) -> None:
        """Unload a model."""
        self._call("POST", f"/v2/repository/models/{quote(model)}/unload", {})

    def register_system(self, name: str, key: str, byte_size: int) -> None:
        """Register a POSIX shared memory object."""
        body = {"key": key, "offset": 0, "byte_size": byte_size}
        self._call("POST", f"/v2/systemsharedmemory/region/{name}/register", body)

    def register_cuda(self, name: str, handle: bytes, device: int, byte_size: int) -> None:
        """Register CUDA memory."""
        raw = {"b64": base64.b64encode(handle).decode()}
        body = {"raw_handle": raw, "device_id": device, "byte_size": byte_size}
        self._call("POST", f"/v2/cudasharedmemory/region/{name}/register", body)

    def unregister(self, kind: str, name: str) -> None:
        """Forget a region."""
        self._call("POST", f"/v2/{kind}sharedmemory/region/{name}/unregister", {})

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _object(self, method: str, path: str) -> Json:
        value = self._call(method, path)
        if not isinstance(value, dict) or not value or "error" in value:
            message, hint = "what answers is no inference server", "check the port; Triton's for HTTP is usually 8000"
            raise MeasureError(message, where=f"{self._endpoint}{path}", hint=hint)
        return value

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - any JSON
        try:
            status, content = self._exchange(method, path, None if body is None else json.dumps(body))
        except http.client.HTTPException as error:
            self._connection.close()
            raise MeasureError(
                f"what answers does not speak HTTP ({type(error).__name__})",
                where=str(self._endpoint),
                hint="check the port, or use --protocol grpc",
            ) from error
        except OSError as error:
            self._connection.close()
            raise unreachable(self._endpoint, error, self._timeout_s) from error
        try:
            value = parsed(json.loads, content) if content else {}
        except ValueError:
            value = {"error": f"HTTP status {status}"}
        if status != 200:
            text = value.get("error", f"HTTP status {status}") if isinstance(value, dict) else f"HTTP status {status}"
            raise MeasureError(f"the server says: {text}", where=f"{self._endpoint}{path}")
        return value

    def _exchange(self, method: str, path: str, body: str | None) -> tuple[int, bytes]:
        """Send a request over the connection that there is; where it was closed since the last one, over another."""
        fresh = self._connection.sock is None
        headers = dict(self._endpoint.headers)
        try:
            self._connection.request(method, self._endpoint.prefix + path, body, headers)
            answer = self._connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionError):
            self._connection.close()
            if fresh:
                raise
            self._connection.request(method, self._endpoint.prefix + path, body, headers)
            answer = self._connection.getresponse()
        return answer.status, answer.read()


class GrpcControl:
    """The API over gRPC, on the wire that the load uses: the same TLS, headers and way there."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint = _with_key(dataclasses.replace(endpoint, protocol="grpc"))
        self._timeout_s = timeout_s
        self._caller: Caller | None = None

    def server(self) -> Json:
        """Return name, version and extensions of the server."""
        return self._call("ServerMetadata")

    def models(self) -> list[str]:
        """Return the names of the models in the server's repository."""
        return [str(item["name"]) for item in self._call("RepositoryIndex").get("models", ())]

    def metadata(self, model: str, version: str = "") -> Json:
        """Return a model's metadata."""
        return self._call("ModelMetadata", name=model, version=version)

    def config(self, model: str, version: str = "") -> Json:
        """Return a model's configuration."""
        config: Json = self._call("ModelConfig", name=model, version=version).get("config", {})
        return config

    def statistics(self, model: str, version: str = "") -> list[Json]:
        """Return a model's statistics."""
        found: list[Json] = self._call("ModelStatistics", name=model, version=version).get("model_stats", [])
        return found

    def load(self, model: str, config: Json) -> None:
        """Load a model with a configuration."""
        given = {"config": {"string_param": json.dumps(config)}}
        self._call("RepositoryModelLoad", model_name=model, parameters=given)

    def unload(self, model: str) -> None:
        """Unload a model."""
        self._call("RepositoryModelUnload", model_name=model)

    def register_system(self, name: str, key: str, byte_size: int) -> None:
        """Register a POSIX shared memory object."""
        self._call("SystemSharedMemoryRegister", name=name, key=key, byte_size=byte_size)

    def register_cuda(self, name: str, handle: bytes, device: int, byte_size: int) -> None:
        """Register CUDA memory."""
        self._call("CudaSharedMemoryRegister", name=name, raw_handle=handle, device_id=device, byte_size=byte_size)

    def unregister(self, kind: str, name: str) -> None:
        """Forget a region."""
        self._call(f"{kind.capitalize()}SharedMemoryUnregister", name=name)

    def close(self) -> None:
        """Close the connection."""
        if self._caller is not None:
            self._caller.close()
            self._caller = None

    def _call(self, method: str, **fields: Any) -> Json:  # noqa: ANN401 - fields of the request
        from google.protobuf.json_format import MessageToDict
        from google.protobuf.message import DecodeError
        from tritonclient.grpc import service_pb2

        request = getattr(service_pb2, f"{method}Request")(**fields)
        try:
            raw, error = self._exchange(method, request.SerializeToString())
        except OSError as late:
            self.close()
            raise unreachable(self._endpoint, late, self._timeout_s) from late
        if raw is None:
            raise MeasureError(f"the server says: {error}", where=str(self._endpoint))
        try:
            answer = getattr(service_pb2, f"{method}Response").FromString(raw)
            value: Json = MessageToDict(answer, preserving_proto_field_name=True)
        except (DecodeError, ValueError) as damaged:
            raise MeasureError(f"the answer cannot be read ({damaged})", where=str(self._endpoint)) from damaged
        return value

    def _exchange(self, method: str, message: bytes) -> tuple[bytes | None, str | None]:
        """Call over the connection that there is; where it has ended since the last call, over another."""
        fresh = self._caller is None
        try:
            return self._ready().call(method, message, self._timeout_s)
        except ConnectionLost as error:
            self.close()
            if fresh:
                tls = (
                    "a server may want a certificate (--cert-file)"
                    if self._endpoint.tls
                    else "one with TLS wants --tls"
                )
                more = f"; HTTP's port does not speak gRPC, and {tls}" if "was lost" in error.message else ""
                raise ConnectionLost(error.message, where=error.where, hint=f"{error.hint}{more}") from None
        except MeasureError:
            self.close()
            raise
        return self._ready().call(method, message, self._timeout_s)

    def _ready(self) -> Caller:
        if self._caller is None:
            self._caller = Caller(self._endpoint, self._timeout_s)
        return self._caller


def _with_key(endpoint: Endpoint) -> Endpoint:
    """Add the key to what a server of this user's own closes to others, shared memory among it, unless one is given."""
    note = servers.find(endpoint.authority)
    if note is None:
        return endpoint
    keys = note.http_headers() if endpoint.protocol == "http" else note.grpc_headers()
    given = {name.lower() for name, _ in endpoint.headers}
    more = tuple((name, value) for name, value in keys.items() if name.lower() not in given)
    return dataclasses.replace(endpoint, headers=(*endpoint.headers, *more))


def unreachable(endpoint: Endpoint, error: OSError, timeout_s: float) -> MeasureError:
    """Return what to say of a server that does not answer."""
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "name its authority with --ca-file, or take any with --insecure"
        return MeasureError(f"the certificate is not trusted ({error.verify_message})", where=str(endpoint), hint=hint)
    if isinstance(error, ssl.SSLError):
        hint = "check the port, or leave TLS out"
        return MeasureError(f"there is no TLS handshake to be had ({error})", where=str(endpoint), hint=hint)
    if isinstance(error, TimeoutError):
        return ConnectionLost(
            f"no answer within {timeout_s:g} s",
            where=str(endpoint),
            hint="the server or what is before it hangs, or --timeout is too short",
        )
    reason = error.strerror or (
        "connection refused" if isinstance(error, ConnectionRefusedError) else "connection lost"
    )
    return ConnectionLost(
        f"cannot be reached ({reason.lower()})",
        where=str(endpoint),
        hint="start the server with repo-builder serve, or name another with --url"
        + ("; HTTP's port does not speak gRPC" if endpoint.protocol != "http" and "lost" in reason else ""),
    )


def _path(model: str, version: str) -> str:
    return f"/v2/models/{quote(model)}" + (f"/versions/{quote(version)}" if version else "")
