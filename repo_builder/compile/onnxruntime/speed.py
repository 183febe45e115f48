"""Does the lower precision pay? Two ONNX files timed in turns on this CPU, right after the build.

What is counted is the CPU time of the thread that runs them, so that what else the machine does hardly shows. Where a
session's memory comes to lie makes 5 % of its speed and more, for as long as it lives: turns go through several
sessions of each file, and the interval of a row holds what that does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from repo_builder.core.details import SpeedRecord
from repo_builder.core.pairs import paired
from repo_builder.core.tensors import Array

_SECONDS = 0.25
_SESSIONS = 3
_MIN_TURNS = 3  # of one pair of sessions
_TURN_S = 1e-3  # a network of microseconds is run many times a turn: the first run finds cold caches


class Timer:
    """Times files in turns with a reference.

    Args:
        reference: The fp32 model.
        inputs: Batch size → inputs of all files, from ``timed.feeds``.
        seconds: CPU time a batch size and file, about.
    """

    def __init__(self, reference: Path, inputs: Mapping[int, dict[str, Array]], *, seconds: float = _SECONDS) -> None:
        self._reference, self._inputs, self._seconds = reference, inputs, seconds

    def against(self, candidate: Path) -> tuple[SpeedRecord, ...]:
        """Time a file on one thread; one row a batch size, medians over all sessions' turns."""
        times: dict[int, tuple[list[float], list[float]]] = {size: ([], []) for size in self._inputs}
        repeats: dict[int, int] = {}
        for _ in range(_SESSIONS):
            self._pair(candidate, repeats, times)
        return tuple(paired(size, *taken) for size, taken in times.items())

    def _pair(
        self, candidate: Path, repeats: dict[int, int], times: dict[int, tuple[list[float], list[float]]]
    ) -> None:
        """Add the turns of one pair of sessions, gone with it: what a large batch takes in memory is taken once."""
        pair = (_session(self._reference), _session(candidate))
        for size, feed in self._inputs.items():
            for session in pair:
                session.run(None, feed)
            if size not in repeats:
                repeats[size] = max(1, int(_TURN_S / max(_turn(pair[0], feed, 1), 1e-9)))
            self._turns(pair, feed, repeats[size], times[size])

    def _turns(
        self,
        pair: tuple[ort.InferenceSession, ort.InferenceSession],
        feed: dict[str, Array],
        repeat: int,
        times: tuple[list[float], list[float]],
    ) -> None:
        """Add one pair's share of the turns at one batch size."""
        spent, turn = 0.0, 0
        while spent < 2 * self._seconds / _SESSIONS or turn < _MIN_TURNS:
            # whoever is first finds the other's data in the caches: each is first in every other turn
            for place in (0, 1) if turn % 2 else (1, 0):
                times[place].append(_turn(pair[place], feed, repeat))
                spent += times[place][-1] * repeat
            turn += 1


def _turn(session: ort.InferenceSession, feed: dict[str, Array], repeat: int) -> float:
    """Return the CPU time of one run, seconds, as the mean of so many in a row."""
    started = time.thread_time()
    for _ in range(repeat):
        session.run(None, feed)
    return (time.thread_time() - started) / repeat


def compare(reference: Path, candidate: Path, inputs: Mapping[int, dict[str, Array]]) -> tuple[SpeedRecord, ...]:
    """Time two files in ONNX Runtime on one thread of this CPU, run about.

    Args:
        reference: The fp32 model.
        candidate: The compiled model.
        inputs: Batch size → inputs of both, from ``timed.feeds``.

    Returns:
        One row a batch size.
    """
    return Timer(reference, inputs, seconds=_SECONDS).against(candidate)


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
