from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core.errors import MeasureError
from repo_builder.measure.wire import frames
from repo_builder.measure.wire.frames import Call, Form, frame

HEAD, TRAILERS = b"\x88head", b"\x00trailers"
FINE = {HEAD, TRAILERS}


def answer(content: bytes, stream: int, *, head: bytes = HEAD, trailers: bytes = TRAILERS, streams: int = 0) -> bytes:
    """Return a whole answer; ``streams`` is added to the number in its last frame."""
    return (
        frame(frames.HEADERS, frames.END_HEADERS, stream, head)
        + frame(frames.DATA, 0, stream, content)
        + frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream + streams, trailers)
    )


def split(octets: bytes) -> list[tuple[int, int, int, bytes]]:
    """Return kind, flags, stream and payload of every frame."""
    found, position = [], 0
    while position < len(octets):
        high, low, kind, flags, stream = frames.FRAME.unpack_from(octets, position)
        stop = position + 9 + (high << 8 | low)
        found.append((kind, flags, stream, octets[position + 9 : stop]))
        position = stop
    assert position == len(octets)
    return found


@given(size=st.sampled_from((0, 1, 16_383, 16_384, 16_385, 40_000)), streams=st.lists(st.integers(1, 2**31 - 1)))
def test_a_call_is_the_same_frames_for_every_stream(size: int, streams: list[int]) -> None:
    message = bytes(place % 251 for place in range(size))
    call = Call(b"block", message)
    assert call.size == size
    for number in (*streams, 1):
        first, *data = split(bytes(call.numbered(number)))
        assert first == (frames.HEADERS, frames.END_HEADERS, number, b"block")
        assert b"".join(payload for *_, payload in data) == message
        assert all(len(payload) <= frames.FRAME_SIZE for *_, payload in data)
        assert {(kind, stream) for kind, _, stream, _ in data} == {(frames.DATA, number)}
        assert [flags for _, flags, _, _ in data] == [0] * (len(data) - 1) + [frames.END_STREAM]


@given(one=st.binary(max_size=40), before=st.binary(max_size=20), stream=st.integers(1, 2**31 - 1), data=st.data())
def test_an_answer_of_the_same_form_is_known_wherever_it_begins(
    one: bytes, before: bytes, stream: int, data: st.DataObject
) -> None:
    other = data.draw(st.binary(min_size=len(one), max_size=len(one)))
    form = Form.of(answer(one, 1), FINE)
    assert form is not None
    octets = bytearray(before + answer(other, stream))
    assert form.stream(octets, len(before)) == stream
    assert octets[len(before) + form.start : len(before) + form.end] == other
    assert len(before) + form.length == len(octets)


def test_what_differs_in_anything_but_content_has_another_form() -> None:
    form = Form.of(answer(b"1234", 1), FINE)
    assert form is not None
    others = [
        answer(b"12345", 3),
        answer(b"1234", 3, head=b"\x88hEad"),
        answer(b"1234", 3, trailers=b"\x00trailerS"),
        answer(b"1234", 3, streams=2),
        answer(b"1234", 3)[:-1],
        frame(frames.PING, 0, 0, b"12345678") + answer(b"1234", 3),
    ]
    assert [form.stream(bytearray(item), 0) for item in others] == [0] * len(others)


def test_only_a_whole_answer_of_fine_headers_has_a_form() -> None:
    whole = answer(b"1234", 1)
    assert Form.of(whole, FINE) is not None
    assert Form.of(whole, {HEAD}) is None
    assert Form.of(whole + whole, FINE) is None
    parts = split(whole)
    for order in itertools.permutations(parts):
        octets = b"".join(frame(*item) for item in order)
        assert (Form.of(octets, FINE) is not None) == (list(order) == parts)
    for length in range(len(whole)):
        assert Form.of(whole[:length], FINE) is None


def test_padding_is_left_out_and_more_padding_than_there_is_refused() -> None:
    assert frames.unpadded(b"\x02content\0\0") == b"content"
    for broken in (b"", b"\x05abc"):
        with pytest.raises(MeasureError, match="cannot be read"):
            frames.unpadded(broken)
