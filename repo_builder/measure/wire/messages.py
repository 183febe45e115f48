"""Inference requests and responses in the v2 protocol's two wire forms, as bytes.

Requests are the very bytes that tritonclient would send (a test compares them); ours are made once and sent often.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np

from repo_builder.core.errors import MeasureError
from repo_builder.core.foreign import parsed
from repo_builder.core.tensors import Array, DType
from repo_builder.measure.wire import grpc as grpc_wire
from repo_builder.measure.wire import http1
from repo_builder.measure.wire.transport import Endpoint


@dataclass(frozen=True, kw_only=True)
class Region:
    """A stretch of a registered shared memory region.

    Attributes:
        name: The name that it is registered under.
        byte_size: Its length, bytes.
        offset: Where it begins, bytes.
    """

    name: str
    byte_size: int
    offset: int = 0

    def parameters(self) -> dict[str, str | int]:
        """Return what a request says of it."""
        place: dict[str, str | int] = {
            "shared_memory_region": self.name,
            "shared_memory_byte_size": self.byte_size,
        }
        return place | ({"shared_memory_offset": self.offset} if self.offset else {})


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a request: its full shape, and its bytes or where in shared memory they lie."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    data: bytes | Region

    @classmethod
    def of(cls, name: str, array: Array, dtype: DType | None = None) -> Input:
        """Make an input of an array's content; ``dtype`` where numpy has no such type."""
        dtype = dtype or DType.of_numpy(array.dtype)
        return cls(name=name, dtype=dtype, shape=tuple(array.shape), data=to_bytes(array))


@dataclass(frozen=True, kw_only=True)
class Extra:
    """What a request says beside its tensors.

    Attributes:
        request_id: Comes back with the response; empty for none.
        priority: Of the queue that it waits in; 0 for the model's own.
        timeout_us: How long it may wait in that queue, microseconds; 0 for the model's own limit.
        sequence: Correlation id of its sequence, a number or a text as the model takes it; None for none.
        starts: Whether it is the first of the sequence.
        ends: Whether it is the last.
        asks_for_last: Whether the server is to say which response is the last, for decoupled models.
    """

    request_id: str = ""
    priority: int = 0
    timeout_us: int = 0
    sequence: int | str | None = None
    starts: bool = False
    ends: bool = False
    asks_for_last: bool = False

    def parameters(self) -> dict[str, int | str | bool]:
        """Return what is set, by the names of Triton's protocol extensions."""
        found: dict[str, int | str | bool] = {}
        if self.sequence is not None:
            found |= {"sequence_id": self.sequence, "sequence_start": self.starts, "sequence_end": self.ends}
        if self.priority:
            found["priority"] = self.priority
        if self.timeout_us:
            found["timeout"] = self.timeout_us
        if self.asks_for_last:
            found["triton_enable_empty_final_response"] = True
        return found


NOTHING = Extra()


@dataclass(frozen=True, kw_only=True)
class Response:
    """What came back.

    Attributes:
        model: Name of the model that answered.
        version: Its version.
        outputs: The outputs that came inline, by name.
        shapes: The full shape of every output, also of those in shared memory.
        dtypes: The element type of every output.
        request_id: Id of the request that it says it is for; empty for none.
    """

    model: str
    version: str
    request_id: str = ""
    outputs: dict[str, Array] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, DType] = field(default_factory=dict)


class Codec(Protocol):
    """One wire form: whole requests out of inputs, responses out of what a transport handed back."""

    path: str

    def encode(
        self, inputs: Sequence[Input], outputs: Sequence[tuple[str, Region]] = (), extra: Extra = NOTHING
    ) -> bytes:
        """Return a request as a transport sends it; ``outputs`` are those that go to shared memory."""

    def decode(self, raw: bytes) -> Response:
        """Read a response.

        Raises:
            MeasureError: It is no response of this protocol, or carries an error.
        """


def codec(endpoint: Endpoint, model: str, version: str = "") -> Codec:
    """Return the wire form of an endpoint's protocol for one model."""
    if endpoint.protocol == "http":
        return HttpCodec(endpoint, model, version)
    return GrpcCodec(model, version, stream=endpoint.protocol == "grpc-stream")


class HttpCodec:
    """JSON with binary tensors behind it."""

    def __init__(self, endpoint: Endpoint, model: str, version: str) -> None:
        self._endpoint = endpoint
        self.path = f"/v2/models/{quote(model)}" + (f"/versions/{quote(version)}" if version else "") + "/infer"

    def encode(
        self, inputs: Sequence[Input], outputs: Sequence[tuple[str, Region]] = (), extra: Extra = NOTHING
    ) -> bytes:
        """Return a whole HTTP request."""
        document: dict[str, Any] = {"id": extra.request_id} if extra.request_id else {}
        document["inputs"] = [_http_input(item) for item in inputs]
        parameters = extra.parameters()
        if outputs:
            inline = {"binary_data": False}  # as tritonclient says it
            document["outputs"] = [{"name": name, "parameters": inline | place.parameters()} for name, place in outputs]
        else:
            parameters["binary_data_output"] = True
        if parameters:
            document["parameters"] = parameters
        text = json.dumps(document, separators=(",", ":")).encode()
        binary = [item.data for item in inputs if isinstance(item.data, bytes)]
        return http1.request(self._endpoint, self.path, b"".join([text, *binary]), len(text) if binary else None)

    def decode(self, raw: bytes) -> Response:
        """Read head, JSON and binary tensors."""
        end = raw.find(b"\r\n\r\n") + 4
        fields, body = http1.parse_head(raw[:end]), raw[end:]
        try:
            size = int(fields.get("inference-header-content-length", len(body)))
            document = parsed(json.loads, body[:size])
            found = Response(
                model=document["model_name"],
                version=str(document.get("model_version", "")),
                request_id=str(document.get("id", "")),
            )
            position = size
            for item in document.get("outputs", ()):
                name, dtype, shape = item["name"], DType.of(item["datatype"]), tuple(item["shape"])
                found.shapes[name], found.dtypes[name] = shape, dtype
                parameters = item.get("parameters", {})
                if "binary_data_size" in parameters:
                    stop = position + parameters["binary_data_size"]
                    found.outputs[name] = from_bytes(body[position:stop], dtype, shape)
                    position = stop
                elif "data" in item:
                    found.outputs[name] = np.array(item["data"], dtype=dtype.numpy).reshape(shape)
        except (ValueError, KeyError, TypeError) as error:
            raise MeasureError(f"the response cannot be read ({error})", where=self.path) from error
        return found


class GrpcCodec:
    """Protobuf messages."""

    def __init__(self, model: str, version: str, *, stream: bool) -> None:
        self._model = model
        self._version = version
        self._stream = stream
        self.path = grpc_wire.STREAM if stream else grpc_wire.UNARY

    def encode(
        self, inputs: Sequence[Input], outputs: Sequence[tuple[str, Region]] = (), extra: Extra = NOTHING
    ) -> bytes:
        """Return a prefixed ModelInferRequest."""
        from tritonclient.grpc import service_pb2

        message = service_pb2.ModelInferRequest(model_name=self._model, model_version=self._version)
        message.id = extra.request_id
        _set_parameters(message.parameters, extra.parameters())
        for item in inputs:
            tensor = message.inputs.add(name=item.name, datatype=item.dtype.triton, shape=item.shape)
            if isinstance(item.data, Region):
                _set_parameters(tensor.parameters, item.data.parameters())
            else:
                message.raw_input_contents.append(item.data)
        for name, place in outputs:
            _set_parameters(message.outputs.add(name=name).parameters, place.parameters())
        return grpc_wire.request(message.SerializeToString())

    def decode(self, raw: bytes) -> Response:
        """Read a prefixed ModelInferResponse, or ModelStreamInferResponse."""
        from google.protobuf.message import DecodeError
        from tritonclient.grpc import service_pb2

        try:
            if self._stream:
                outer = service_pb2.ModelStreamInferResponse.FromString(_unpacked(raw))
                if outer.error_message:
                    raise MeasureError(f"the server refuses the request: {outer.error_message}", where=self._model)
                message = outer.infer_response
            else:
                message = service_pb2.ModelInferResponse.FromString(_unpacked(raw))
            found = Response(model=message.model_name, version=message.model_version, request_id=message.id)
            _read_outputs(message, found)
        except (DecodeError, zlib.error, KeyError, ValueError) as error:
            raise MeasureError(f"the response cannot be read ({error!r})", where=self._model) from error
        return found


def _read_outputs(message: Any, found: Response) -> None:  # noqa: ANN401 - a protobuf message
    contents = iter(message.raw_output_contents)
    for item in message.outputs:
        dtype, shape = DType.of(item.datatype), tuple(item.shape)
        found.shapes[item.name], found.dtypes[item.name] = shape, dtype
        data = next(contents, b"")
        if data or not math.prod(shape):  # what went to shared memory has no content here
            found.outputs[item.name] = from_bytes(data, dtype, shape)


def to_bytes(array: Array) -> bytes:
    """Return an array's content as it travels: row by row, little endian; strings each behind its length."""
    if array.dtype.kind not in "OSU":
        return np.ascontiguousarray(array).tobytes()
    parts = [item if isinstance(item, bytes) else str(item).encode() for item in array.ravel()]
    return b"".join(struct.pack("<I", len(item)) + item for item in parts)


def from_bytes(data: bytes, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Return the array that ``to_bytes`` made bytes of.

    Raises:
        MeasureError: The length does not fit the shape.
    """
    if dtype is DType.STRING:
        items, position = [], 0
        while position + 4 <= len(data):
            (size,) = struct.unpack_from("<I", data, position)
            items.append(data[position + 4 : position + 4 + size])
            position += 4 + size
        strings = np.empty(len(items), dtype=object)
        strings[:] = items
        if len(items) == int(np.prod(shape)):
            return strings.reshape(shape)
    elif len(data) == int(np.prod(shape)) * dtype.numpy.itemsize:
        return np.frombuffer(data, dtype=dtype.numpy).reshape(shape)
    raise MeasureError(f"an output of shape {list(shape)} and type {dtype.triton} came with {len(data)} bytes")


def _http_input(item: Input) -> dict[str, Any]:
    place = item.data.parameters() if isinstance(item.data, Region) else {"binary_data_size": len(item.data)}
    return {"name": item.name, "shape": list(item.shape), "datatype": item.dtype.triton, "parameters": place}


def _set_parameters(target: Any, values: Mapping[str, int | str | bool]) -> None:  # noqa: ANN401 - a protobuf map
    for key, value in values.items():
        kind = "bool_param" if isinstance(value, bool) else "int64_param" if isinstance(value, int) else "string_param"
        setattr(target[key], kind, value)


def _unpacked(raw: bytes) -> bytes:
    """Return a prefixed message's content; a server may compress it (gzip or deflate)."""
    return zlib.decompress(raw[5:], wbits=47) if raw[:1] == b"\x01" else raw[5:]
