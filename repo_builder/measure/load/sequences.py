"""Requests that belong to sequences: one sequence at a time in each slot, each under a number of its own."""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass

from repo_builder.core.errors import MeasureError

# Numbers of one length in both wire forms: sixteen digits, and eight octets as a protobuf varint.
FIRST, LAST = 10**15, 10**16 - 1
PLACEHOLDER = 1_234_567_890_123_456


@dataclass(frozen=True, kw_only=True)
class Step:
    """One prepared request in each of its roles; all carry ``PLACEHOLDER`` where the sequence's number goes."""

    first: bytes
    middle: bytes
    last: bytes
    only: bytes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What sequences are made of.

    Attributes:
        steps: The prepared requests.
        streams: Indices into them, one tuple a sequence; sequences are made of these in turn.
        varint: Whether the number travels as a protobuf varint, and not as digits.
    """

    steps: tuple[Step, ...]
    streams: tuple[tuple[int, ...], ...]
    varint: bool


def in_turn(steps: int, length: int) -> tuple[tuple[int, ...], ...]:
    """Return sequences of a length that together use every step, one behind the other."""
    rounds = -(-steps // length)
    return tuple(tuple((start * length + place) % steps for place in range(length)) for start in range(rounds))


class Sequences:
    """Which request of which sequence each slot sends next.

    Args:
        plan: What sequences are made of.
        slots: Number of slots.

    Raises:
        MeasureError: A request has no place for the number.
    """

    def __init__(self, plan: Plan, slots: int) -> None:
        mark = spelled(PLACEHOLDER, varint=plan.varint)
        self._steps = [[_around(item, mark) for item in (s.first, s.middle, s.last, s.only)] for s in plan.steps]
        self._varint = plan.varint
        self._streams = itertools.cycle(plan.streams)
        # Several workers, or several runs, must not meet in one sequence.
        self._numbers = itertools.count(FIRST + secrets.randbelow(LAST - FIRST - 10**12))
        self._now: list[tuple[tuple[int, ...], int, bytes] | None] = [None] * slots

    def next(self, slot: int) -> tuple[int, bytes]:
        """Return the index of a slot's next request and its bytes; a sequence that has ended is followed by another."""
        stream, place, number = self._now[slot] or (next(self._streams), 0, self._number())
        role = 3 if len(stream) == 1 else 0 if place == 0 else 2 if place == len(stream) - 1 else 1
        before, after = self._steps[stream[place]][role]
        self._now[slot] = (stream, place + 1, number) if place + 1 < len(stream) else None
        return stream[place], b"".join((before, number, after))

    def under_way(self, slot: int) -> bool:
        """Whether a slot's sequence has begun and not ended."""
        return self._now[slot] is not None

    def give_up(self, slot: int) -> None:
        """Begin another sequence next: a request of this one failed."""
        self._now[slot] = None

    def _number(self) -> bytes:
        return spelled(next(self._numbers), varint=self._varint)


def spelled(number: int, *, varint: bool) -> bytes:
    """Return a sequence's number as it travels."""
    if not varint:
        return str(number).encode()
    octets = bytearray()
    while number >= 128:
        octets.append(number & 127 | 128)
        number >>= 7
    return bytes((*octets, number))


def _around(data: bytes, mark: bytes) -> tuple[bytes, bytes]:
    before, found, after = data.partition(mark)
    if not found:
        raise MeasureError("a request of a sequence has no place for its number")
    return before, after
