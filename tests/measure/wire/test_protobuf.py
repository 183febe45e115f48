from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from repo_builder.measure.wire import grpc as grpc_wire
from repo_builder.measure.wire import grpc_stream, protobuf

TEXTS = st.text(max_size=300)


@given(TEXTS, TEXTS, TEXTS, st.binary(max_size=300), st.booleans())
def test_fields_are_found_where_protobuf_writes_them(
    name: str, version: str, request_id: str, content: bytes, last: bool
) -> None:
    message = service_pb2.ModelInferRequest(model_name=name, model_version=version, id=request_id)
    message.parameters["triton_final_response"].bool_param = last
    message.raw_input_contents.append(content)
    data = message.SerializeToString()
    assert protobuf.text(data, 0, len(data), 1) == name.encode()
    assert protobuf.text(data, 0, len(data), 3) == request_id.encode()
    assert protobuf.text(data, 0, len(data), 7) == content


@given(TEXTS, TEXTS, st.booleans(), st.booleans())
def test_the_head_of_a_streams_response(name: str, request_id: str, last: bool, empty: bool) -> None:
    outer = service_pb2.ModelStreamInferResponse()
    inner = outer.infer_response
    inner.model_name, inner.id = name, request_id
    inner.parameters["triton_final_response"].bool_param = last
    if not empty:
        inner.outputs.add(name="y", datatype="FP32", shape=[1])
        inner.raw_output_contents.append(b"1234")
    raw = grpc_wire.request(outer.SerializeToString())
    assert grpc_stream.response_head(raw) == (request_id.encode(), last, empty)


@given(st.binary(max_size=200), st.integers(1, 8))
def test_any_bytes_end_the_search(data: bytes, number: int) -> None:
    place = protobuf.field(data, 0, len(data), number)
    assert place is None or 0 <= place[0] <= len(data) >= place[1]
