"""What is asked of the server beside inference: metadata, configuration, statistics, shared memory.

Both protocols give the same JSON values; every call has a deadline.
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

from repo_builder.core import servers
from repo_builder.core.errors import MeasureError
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
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=timeout_s)
        note = servers.find(str(endpoint))
        self._key = note.http_headers() if note else {}  # shared memory is closed to others

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
        found: list[Json] = self._object("GET", _path(model, version) + "/stats")["model_stats"]
        return found

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
            self._connection.request(method, path, None if body is None else json.dumps(body), self._key)
            answer = self._connection.getresponse()
            content = answer.read()
        except http.client.HTTPException as error:
            self._connection.close()
            raise MeasureError(
                f"the server does not speak HTTP ({type(error).__name__})",
                where=str(self._endpoint),
                hint="check the port, or use --protocol grpc",
            ) from error
        except OSError as error:
            self._connection.close()
            raise unreachable(self._endpoint, error, self._timeout_s) from error
        try:
            value = json.loads(content) if content else {}
        except ValueError:
            value = {"error": f"HTTP status {answer.status}"}
        if answer.status != 200:
            text = value.get("error", f"HTTP status {answer.status}") if isinstance(value, dict) else answer.reason
            raise MeasureError(f"the server says: {text}", where=f"{self._endpoint}{path}")
        return value


class GrpcControl:
    """The API over gRPC, by tritonclient."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        from tritonclient.grpc import InferenceServerClient

        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._client = InferenceServerClient(str(endpoint))
        note = servers.find(str(endpoint))
        self._key = note.grpc_headers() if note else None  # shared memory is closed to others

    def server(self) -> Json:
        """Return name, version and extensions of the server."""
        return self._call("get_server_metadata")

    def models(self) -> list[str]:
        """Return the names of the models in the server's repository."""
        return [str(item["name"]) for item in self._call("get_model_repository_index").get("models", ())]

    def metadata(self, model: str, version: str = "") -> Json:
        """Return a model's metadata."""
        return self._call("get_model_metadata", model, version)

    def config(self, model: str, version: str = "") -> Json:
        """Return a model's configuration."""
        config: Json = self._call("get_model_config", model, version)["config"]
        return config

    def statistics(self, model: str, version: str = "") -> list[Json]:
        """Return a model's statistics."""
        found: list[Json] = self._call("get_inference_statistics", model, version)["model_stats"]
        return found

    def register_system(self, name: str, key: str, byte_size: int) -> None:
        """Register a POSIX shared memory object."""
        self._call("register_system_shared_memory", name, key, byte_size, as_json=False)

    def register_cuda(self, name: str, handle: bytes, device: int, byte_size: int) -> None:
        """Register CUDA memory."""
        raw = base64.b64encode(handle)
        self._call("register_cuda_shared_memory", name, raw, device, byte_size, as_json=False)

    def unregister(self, kind: str, name: str) -> None:
        """Forget a region."""
        self._call(f"unregister_{kind}_shared_memory", name, as_json=False)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _call(self, method: str, *arguments: Any, as_json: bool = True) -> Json:  # noqa: ANN401 - passed on
        from tritonclient.utils import InferenceServerException

        extra: dict[str, Any] = {"headers": self._key, **({"as_json": True} if as_json else {})}
        try:
            value = getattr(self._client, method)(*arguments, client_timeout=self._timeout_s, **extra)
        except InferenceServerException as error:
            status = str(error.status())
            if "DEADLINE_EXCEEDED" in status:
                raise unreachable(self._endpoint, TimeoutError(), self._timeout_s) from error
            if "UNAVAILABLE" in status and "Socket closed" in str(error.message()):
                raise unreachable(self._endpoint, ConnectionResetError(), self._timeout_s) from error
            if "UNAVAILABLE" in status and "connect" in str(error.message()).lower():
                raise unreachable(self._endpoint, ConnectionRefusedError(), self._timeout_s) from error
            raise MeasureError(f"the server says: {error.message()}", where=str(self._endpoint)) from error
        return value if isinstance(value, dict) else {}


def unreachable(endpoint: Endpoint, error: OSError, timeout_s: float) -> ConnectionLost:
    """Return what to say of a server that does not answer."""
    if isinstance(error, TimeoutError):
        return ConnectionLost(
            f"no answer within {timeout_s:g} s",
            where=str(endpoint),
            hint="the server hangs, or --timeout-s is too short",
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
