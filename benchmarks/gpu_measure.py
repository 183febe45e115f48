"""Times, power and energy of anything that puts work into a CUDA stream, measured alike for every runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pynvml

WARM_UP = 30
ITERATIONS = 300
ENERGY_SECONDS = 2.0
IDLE_SECONDS = 1.0


class Clock(Protocol):
    """A runtime's marks in its stream."""

    def mark(self) -> Any:  # noqa: ANN401 - an event
        """Put a mark into the stream."""
        ...

    def between(self, start: Any, end: Any) -> float:  # noqa: ANN401
        """Return the GPU's time between two marks, milliseconds."""
        ...

    def wait(self) -> None:
        """Wait until the stream is empty."""
        ...


def latency_us(run: Callable[[], object], clock: Clock, iterations: int = ITERATIONS) -> dict[str, float]:
    """Return p50, p99 and mean of the GPU's time for one run, microseconds, after a warm-up."""
    for _ in range(WARM_UP):
        run()
    clock.wait()
    marks = []
    for _ in range(iterations):
        start = clock.mark()
        run()
        marks.append((start, clock.mark()))
    clock.wait()
    times = np.array([clock.between(start, end) for start, end in marks]) * 1e3
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "mean": round(float(times.mean()), 2)}


class Power:
    """The GPU's energy counter, and what it draws when nothing runs.

    Args:
        idle_w: That draw, where it was measured before any process had the GPU open: an open context raises the clocks,
            and what a run adds would seem less. None measures it now.
    """

    def __init__(self, idle_w: float | None = None) -> None:
        pynvml.nvmlInit()
        self._gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        self.name = _text(pynvml.nvmlDeviceGetName(self._gpu))
        self.driver = _text(pynvml.nvmlSystemGetDriverVersion())
        self.idle_w = self._idle() if idle_w is None else idle_w

    def _millijoules(self) -> int:
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu))

    def _idle(self) -> float:
        time.sleep(0.5)
        before, started = self._millijoules(), time.perf_counter()
        time.sleep(IDLE_SECONDS)
        return (self._millijoules() - before) / 1e3 / (time.perf_counter() - started)

    def over(self, run: Callable[[], object], clock: Clock, samples: int) -> dict[str, float]:
        """Run for at least two seconds; return throughput, power over idle and energy per 1,000 samples over idle.

        Args:
            run: Enqueues one run.
            clock: The runtime's.
            samples: Samples in one run.
        """
        for _ in range(WARM_UP):
            run()
        clock.wait()
        count, before, started = 0, self._millijoules(), time.perf_counter()
        while time.perf_counter() - started < ENERGY_SECONDS:
            for _ in range(20):
                run()
            clock.wait()
            count += 20
        seconds = time.perf_counter() - started
        joules = (self._millijoules() - before) / 1e3
        over_idle = joules - self.idle_w * seconds
        return {
            "batch": samples,
            "seconds": round(seconds, 3),
            "inferences_per_s": round(count * samples / seconds, 1),
            "power_w": round(joules / seconds, 1),
            "idle_w": round(self.idle_w, 1),
            "power_over_idle_w": round(over_idle / seconds, 1),
            "energy_per_1000_j": round(1000 * over_idle / (count * samples), 4),
        }

    def clocks_mhz(self) -> dict[str, int]:
        """Return the present clocks."""
        kinds: Sequence[tuple[str, int]] = (("sm", pynvml.NVML_CLOCK_SM), ("memory", pynvml.NVML_CLOCK_MEM))
        return {name: int(pynvml.nvmlDeviceGetClockInfo(self._gpu, kind)) for name, kind in kinds}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
