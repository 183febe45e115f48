"""TensorRT's logger and progress monitor: rate-limited lines for the user, and the last words of an error."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import tensorrt as trt

Say = Callable[[str], None]

_TIMED = "Timing Runner: "  # as builders without a progress monitor announce what they are timing
_EVERY_S = 1.0


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps errors and warnings, and tells what the builder is doing where it has no progress monitor.

    Args:
        say: Takes one line of progress; None keeps the builder's chatter from being looked at.
    """

    def __init__(self, say: Say | None = None) -> None:
        trt.ILogger.__init__(self)
        self.errors: deque[str] = deque(maxlen=8)
        self.warnings: deque[str] = deque(maxlen=32)
        self._say = say

    def log(self, severity: Any, message: str) -> None:  # noqa: ANN401 - tensorrt.ILogger.Severity
        """Take one of TensorRT's messages."""
        if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
            self.errors.append(message)
        elif severity == trt.ILogger.WARNING:
            self.warnings.append(message)
        elif self._say is not None and _TIMED in message:
            self._say(f"timing {message.partition(_TIMED)[2].strip()}")

    def last_words(self) -> str:
        """Return the last error in TensorRT's own words, or the last warning where it gave no error."""
        said = self.errors or self.warnings
        return said[-1].strip().rstrip(".") if said else "TensorRT gave no reason"


class RateLimited:
    """Passes a line on when a second has gone since the last one.

    Args:
        say: Takes the lines that are passed on.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._started = self._last = time.monotonic()

    def __call__(self, line: str) -> None:
        """Pass a line on, with the seconds since the start in front, or drop it."""
        now = time.monotonic()
        if now - self._last >= _EVERY_S:
            self._last = now
            self._say(f"{now - self._started:6.1f} s  {line}")


def monitor(say: Say) -> Any:  # noqa: ANN401 - tensorrt.IProgressMonitor, which older versions have not
    """Return an ``IProgressMonitor`` that says which phase the builder is in and how far."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            say(f"{phase_name}  {step + 1} of {self._steps[phase_name]}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
