"""The server must see the bytes that tritonclient would send."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from tritonclient.grpc import service_pb2
from tritonclient.grpc._utils import _get_inference_request

from repo_builder.core.errors import MeasureError
from repo_builder.core.tensors import DType
from repo_builder.measure.wire.messages import Input, Region, Response, codec, from_bytes, to_bytes
from repo_builder.measure.wire.transport import Endpoint
from repo_builder.measure.wire.verify import Expected, verify

HTTP = Endpoint(protocol="http", host="localhost", port=8000)
GRPC = Endpoint(protocol="grpc", host="localhost", port=8001)
STREAM = Endpoint(protocol="grpc-stream", host="localhost", port=8001)
ARRAYS = {
    "image": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "half": np.ones((2, 5), dtype=np.float16),
    "ids": np.array([[1], [2]], dtype=np.int64),
    "flag": np.array([[True], [False]]),
    "text": np.array([["ja", "nein ü"], [b"\x00\xff", ""]], dtype=object),
}
NUMERIC = [item for item in DType if item is not DType.STRING]


def triton_inputs(library: object, arrays: dict[str, np.ndarray]) -> Iterable[object]:
    for name, array in arrays.items():
        made = library.InferInput(name, list(array.shape), DType.of_numpy(array.dtype).triton)
        made.set_data_from_numpy(array)
        yield made


def test_http_body_is_what_tritonclient_sends() -> None:
    wire = codec(HTTP, "vgg")
    raw = wire.encode([Input.of(name, array) for name, array in ARRAYS.items()])
    body, json_bytes = triton_http.InferenceServerClient.generate_request_body(list(triton_inputs(triton_http, ARRAYS)))
    head, _, sent = raw.partition(b"\r\n\r\n")
    assert sent == body
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v2/models/vgg/infer HTTP/1.1"
    assert f"Inference-Header-Content-Length: {json_bytes}" in lines
    assert f"Content-Length: {len(body)}" in lines


def test_http_body_with_shared_memory_is_what_tritonclient_sends() -> None:
    region = Region(name="in", byte_size=24, offset=256)
    inputs = [Input(name="x", dtype=DType.FP32, shape=(2, 3), data=region)]
    raw = codec(HTTP, "m", "3").encode(inputs, [("y", Region(name="out", byte_size=8))])
    theirs = triton_http.InferInput("x", [2, 3], "FP32")
    theirs.set_shared_memory("in", 24, 256)
    output = triton_http.InferRequestedOutput("y")
    output.set_shared_memory("out", 8)
    body, _ = triton_http.InferenceServerClient.generate_request_body([theirs], outputs=[output])
    assert raw.partition(b"\r\n\r\n")[2] == body
    assert raw.startswith(b"POST /v2/models/m/versions/3/infer ")
    assert b"Inference-Header" not in raw


@pytest.mark.parametrize("shared", [False, True])
def test_grpc_message_is_what_tritonclient_sends(shared: bool) -> None:
    outputs: list[object] = []
    if shared:
        inputs = [Input(name="x", dtype=DType.FP32, shape=(2, 3), data=Region(name="in", byte_size=24, offset=256))]
        theirs = [triton_grpc.InferInput("x", [2, 3], "FP32")]
        theirs[0].set_shared_memory("in", 24, 256)
        outputs = [triton_grpc.InferRequestedOutput("y")]
        outputs[0].set_shared_memory("out", 8)
        raw = codec(GRPC, "m", "3").encode(inputs, [("y", Region(name="out", byte_size=8))])
    else:
        theirs = list(triton_inputs(triton_grpc, ARRAYS))
        raw = codec(GRPC, "m", "3").encode([Input.of(name, array) for name, array in ARRAYS.items()])
    expected = _get_inference_request("m", theirs, "3", "", outputs or None, 0, False, False, 0, None, None)
    size = int.from_bytes(raw[1:5], "big")
    assert raw[0] == 0
    assert len(raw) == 5 + size
    assert service_pb2.ModelInferRequest.FromString(raw[5:]) == expected
    if not shared:  # maps have no order of their own in protobuf
        assert raw[5:] == expected.SerializeToString()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(NUMERIC))
def test_numbers_travel_unchanged(data: st.DataObject, dtype: DType) -> None:
    shapes = st_numpy.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
    array = data.draw(st_numpy.arrays(dtype.numpy, shapes))
    assert np.array_equal(from_bytes(to_bytes(array), dtype, array.shape), array, equal_nan=dtype.numpy.kind == "f")


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=6))
def test_strings_travel_unchanged(items: list[bytes]) -> None:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    assert from_bytes(to_bytes(array), DType.STRING, (len(items),)).tolist() == items


def test_a_length_that_does_not_fit_is_refused() -> None:
    for dtype in (DType.FP32, DType.STRING):
        with pytest.raises(MeasureError, match=r"shape \[2, 2\] .* came with 15 bytes"):
            from_bytes(bytes(15), dtype, (2, 2))


def http_response(document: bytes, binary: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: {len(document)}\r\n\r\n".encode()
    return head + document + binary


def test_http_response_with_binary_and_with_json_data() -> None:
    document = (
        b'{"model_name":"m","model_version":"2","outputs":['
        b'{"name":"a","datatype":"FP32","shape":[2,1],"parameters":{"binary_data_size":8}},'
        b'{"name":"b","datatype":"INT64","shape":[2],"data":[3,4]},'
        b'{"name":"c","datatype":"FP32","shape":[2],"parameters":{"shared_memory_region":"r"}}]}'
    )
    found = codec(HTTP, "m").decode(http_response(document, np.array([1.5, 2.5], np.float32).tobytes()))
    assert (found.model, found.version) == ("m", "2")
    assert found.outputs["a"].tolist() == [[1.5], [2.5]]
    assert found.outputs["b"].tolist() == [3, 4]
    assert found.shapes == {"a": (2, 1), "b": (2,), "c": (2,)}
    assert "c" not in found.outputs


@pytest.mark.parametrize("document", [b"", b"nonsense", b"[]", b"{}", b'{"model_name":"m","outputs":[{"name":"a"}]}'])
def test_a_damaged_http_response_is_one_sentence(document: bytes) -> None:
    with pytest.raises(MeasureError, match="cannot be read"):
        codec(HTTP, "m").decode(http_response(document, b""))


def test_grpc_responses() -> None:
    message = service_pb2.ModelInferResponse(model_name="m", model_version="2")
    message.outputs.add(name="a", datatype="FP32", shape=[2])
    shared = message.outputs.add(name="s", datatype="FP32", shape=[2])
    shared.parameters["shared_memory_region"].string_param = "r"
    message.outputs.add(name="b", datatype="INT32", shape=[1])
    # Triton puts an empty content in the place of an output that went to shared memory
    message.raw_output_contents.extend([np.array([1, 2], np.float32).tobytes(), b"", np.array([7], np.int32).tobytes()])
    outer = service_pb2.ModelStreamInferResponse(infer_response=message)
    for endpoint, raw in ((GRPC, message.SerializeToString()), (STREAM, outer.SerializeToString())):
        found = codec(endpoint, "m").decode(bytes(5) + raw)
        assert found.outputs["a"].tolist() == [1, 2]
        assert found.outputs["b"].tolist() == [7]
        assert set(found.outputs) == {"a", "b"}
    failed = service_pb2.ModelStreamInferResponse(error_message="no such input")
    with pytest.raises(MeasureError, match="no such input"):
        codec(STREAM, "m").decode(bytes(5) + failed.SerializeToString())
    with pytest.raises(MeasureError, match="cannot be read"):
        codec(GRPC, "m").decode(bytes(5) + b"\xff\xff\xff")


@pytest.mark.parametrize(("said", "fine"), [("", True), ("4", True), ("3", False)])
def test_a_response_to_another_request_is_no_answer(said: str, fine: bool) -> None:
    expected = Expected(version="1", outputs=(), batch=None)
    response = Response(model="m", version="1", request_id=said)
    if fine:
        verify(response, expected, 4)
    else:
        with pytest.raises(MeasureError, match="the response to request '3' came for '4'"):
            verify(response, expected, 4)
