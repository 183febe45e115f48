"""Triton's Prometheus metrics, sampled while a model is measured: CPU, GPUs, energy.

Triton renews its GPU figures every two seconds or so (``--metrics-interval-ms``). The energy counter is therefore read
between the moments at which it was seen to change, and not at the windows' own ends.
"""

from __future__ import annotations

import http.client
import itertools
import re
import threading
import time
from dataclasses import dataclass

from repo_builder.measure.wire.transport import Endpoint
from repo_builder.results import Gpu, Hardware

_EVERY_S = 0.25
_LINE = re.compile(r"^(nv_[a-z_]+)(?:\{([^}]*)\})? ([-+0-9.eE]+|NaN)$")
_GPU = re.compile(r'gpu_uuid="([^"]*)"')
_WANTED = {
    "nv_cpu_utilization",
    "nv_cpu_memory_used_bytes",
    "nv_gpu_utilization",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_usage",
    "nv_energy_consumption",
}

# What Triton writes as 0 where the driver does not tell it: no machine that runs uses none of these.
_NEVER_0 = {"nv_cpu_memory_used_bytes", "nv_gpu_memory_used_bytes", "nv_gpu_power_usage", "nv_energy_consumption"}

# (metric, GPU's UUID or "") → value
Values = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Sample:
    """What the metrics port said at one moment (``time.monotonic_ns``)."""

    time_ns: int
    values: Values


def parse(text: str) -> Values:
    """Read the figures of CPU and GPUs out of Prometheus' text format; those that are unknown there are left out."""
    values: Values = {}
    for line in text.splitlines():
        found = _LINE.match(line)
        if found and found.group(1) in _WANTED and found.group(3) != "NaN":
            name, gpu, value = found.group(1), _GPU.search(found.group(2) or ""), float(found.group(3))
            if value or name not in _NEVER_0:
                values[name, gpu.group(1) if gpu else ""] = value
    return values


class Sampler:
    """Reads the metrics port about four times a second, in a thread, until it is closed.

    Args:
        place: The metrics port; its path is ``/metrics`` where it names none.
        timeout_s: Deadline of each reading.
    """

    def __init__(self, place: Endpoint, *, timeout_s: float = 2.0) -> None:
        self._place = place
        self._timeout_s = timeout_s
        self._samples: list[Sample] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._idle: tuple[int, int] | None = None
        self.available = self._read()
        if self.available:
            self._thread.start()

    @property
    def has_gpus(self) -> bool:
        """Whether the server publishes figures of any GPU."""
        return bool(self._samples) and any(gpu for _, gpu in self._samples[-1].values)

    def rest(self, seconds: float) -> None:
        """Measure the machine without load for a while."""
        start = time.monotonic_ns()
        time.sleep(seconds)
        self._idle = start, time.monotonic_ns()

    def over(self, start_ns: int, end_ns: int, inferences: int) -> Hardware | None:
        """Return the figures between two moments, energy a sample among them; None where there are none."""
        inside = [item for item in self._samples if start_ns <= item.time_ns <= end_ns]
        if not inside:
            return None
        idle = [item for item in self._samples if self._idle and self._idle[0] <= item.time_ns <= self._idle[1]]
        gpus = sorted({gpu for item in inside for _, gpu in item.values if gpu})
        rate = inferences / ((end_ns - start_ns) / 1e9)
        return Hardware(
            cpu_utilisation=_cpu(inside, [item for item in self._samples if item.time_ns < start_ns]),
            memory_used_bytes=_largest(inside, "nv_cpu_memory_used_bytes"),
            gpus=tuple(_gpu(name, inside, idle, rate) for name in gpus),
        )

    def close(self) -> None:
        """Stop reading."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(self._timeout_s + 1)

    def _run(self) -> None:
        while not self._end.wait(_EVERY_S):
            self._read()

    def _read(self) -> bool:
        place = self._place
        connection = http.client.HTTPConnection(place.host, place.port, timeout=self._timeout_s)
        if place.tls is not None:
            context = place.tls.context()
            connection = http.client.HTTPSConnection(place.host, place.port, timeout=self._timeout_s, context=context)
        try:
            connection.request("GET", place.prefix or "/metrics", headers=dict(place.headers))
            answer = connection.getresponse()
            values = parse(answer.read().decode("utf-8", "replace")) if answer.status == 200 else {}
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        if values:
            self._samples.append(Sample(time.monotonic_ns(), values))
        return bool(values)


def _gpu(name: str, inside: list[Sample], idle: list[Sample], rate: float) -> Gpu:
    power = energy_power(inside, name)
    used = power if power is not None else _mean(inside, "nv_gpu_power_usage", name)
    rest = energy_power(idle, name)
    return Gpu(
        name=name,
        utilisation=_mean(inside, "nv_gpu_utilization", name),
        memory_used_bytes=_largest(inside, "nv_gpu_memory_used_bytes", name),
        power_w=used,
        idle_power_w=rest if rest is not None else _mean(idle, "nv_gpu_power_usage", name),
        energy_j_per_inference=power / rate if power is not None and rate > 0 else None,
    )


def energy_power(samples: list[Sample], gpu: str) -> float | None:
    """Return the mean power in W by the energy counter, between the first and the last moment at which it changed.

    None where fewer than two changes were seen: the counter's own steps would be the error.
    """
    key = ("nv_energy_consumption", gpu)
    readings = [(item.time_ns, item.values[key]) for item in samples if key in item.values]
    changes = [new for old, new in itertools.pairwise(readings) if new[1] != old[1]]
    if len(changes) < 2:
        return None
    (start, low), (end, high) = changes[0], changes[-1]
    return (high - low) / ((end - start) / 1e9)


def _cpu(inside: list[Sample], before: list[Sample]) -> float | None:
    """Return the CPU's mean utilisation; None where the server did not renew it in time.

    Each value is that of the interval before it, so that what was read before the windows is of what came before them.
    A machine whose every core is busy has the same value twice, and that is what it says.
    """
    stale = _values(before[-1:], "nv_cpu_utilization", "")
    values = _values(inside, "nv_cpu_utilization", "")
    fresh = list(itertools.dropwhile(lambda value: stale == [value] and value < 1, values))
    return sum(fresh) / len(fresh) if fresh else None


def _values(samples: list[Sample], name: str, gpu: str) -> list[float]:
    return [item.values[name, gpu] for item in samples if (name, gpu) in item.values]


def _mean(samples: list[Sample], name: str, gpu: str = "") -> float | None:
    found = _values(samples, name, gpu)
    return sum(found) / len(found) if found else None


def _largest(samples: list[Sample], name: str, gpu: str = "") -> float | None:
    return max(_values(samples, name, gpu), default=None)
