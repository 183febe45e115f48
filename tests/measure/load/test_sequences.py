from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo_builder.core.errors import MeasureError
from repo_builder.measure.load.sequences import FIRST, LAST, PLACEHOLDER, Plan, Sequences, Step, in_turn, spelled
from repo_builder.measure.wire.messages import Extra, codec
from repo_builder.measure.wire.transport import Endpoint

ROLES = {"first": (True, False), "middle": (False, False), "last": (False, True), "only": (True, True)}


def plan(protocol: str, count: int, streams: tuple[tuple[int, ...], ...], *, text: bool = False) -> Plan:
    wire = codec(Endpoint(protocol=protocol, host="h", port=1), "m")  # type: ignore[arg-type]
    number = str(PLACEHOLDER) if text else PLACEHOLDER

    def step(place: int) -> Step:
        extras = {
            role: Extra(request_id=str(place), sequence=number, starts=a, ends=b) for role, (a, b) in ROLES.items()
        }
        return Step(**{role: wire.encode([], extra=extra) for role, extra in extras.items()})

    varint = protocol != "http" and not text
    return Plan(steps=tuple(step(place) for place in range(count)), streams=streams, varint=varint)


def read(raw: bytes) -> tuple[int, bool, bool]:
    """Return what a gRPC request says of its sequence."""
    from tritonclient.grpc import service_pb2

    found = service_pb2.ModelInferRequest.FromString(raw[5:]).parameters
    number = found["sequence_id"].int64_param or int(found["sequence_id"].string_param)
    return number, found["sequence_start"].bool_param, found["sequence_end"].bool_param


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 3), st.booleans())
def test_every_sequence_begins_once_ends_once_and_has_a_number_of_its_own(
    count: int, length: int, slots: int, text: bool
) -> None:
    made = Sequences(plan("grpc", count, in_turn(count, length), text=text), slots)
    seen: dict[int, list[tuple[bool, bool]]] = {}
    for turn in range(slots * length * 3):
        slot = turn % slots
        step, raw = made.next(slot)
        number, starts, ends = read(raw)
        assert 0 <= step < count
        assert FIRST <= number <= LAST
        seen.setdefault(number, []).append((starts, ends))
        assert made.under_way(slot) != ends
    assert len(seen) == 3 * slots
    for flags in seen.values():
        assert flags == [(place == 0, place == length - 1) for place in range(length)]


def test_a_sequence_that_failed_is_followed_by_another() -> None:
    made = Sequences(plan("grpc", 2, ((0, 1),)), 1)
    first, _, _ = read(made.next(0)[1])
    made.give_up(0)
    second, starts, _ = read(made.next(0)[1])
    assert second != first
    assert starts


def test_http_carries_the_number_too() -> None:
    import json

    made = Sequences(plan("http", 1, ((0,),)), 1)
    _, raw = made.next(0)
    head, _, body = raw.partition(b"\r\n\r\n")
    found = json.loads(body)["parameters"]
    assert FIRST <= found["sequence_id"] <= LAST
    assert (found["sequence_start"], found["sequence_end"]) == (True, True)
    assert f"Content-Length: {len(body)}" in head.decode()


@given(st.integers(FIRST, LAST))
def test_numbers_take_one_length(number: int) -> None:
    assert len(spelled(number, varint=True)) == 8
    assert len(spelled(number, varint=False)) == 16


def test_requests_without_a_place_for_the_number_are_refused() -> None:
    step = Step(first=b"x", middle=b"x", last=b"x", only=b"x")
    with pytest.raises(MeasureError, match="no place for its number"):
        Sequences(Plan(steps=(step,), streams=((0,),), varint=True), 1)
