"""What a load costs beside its latency: CPU time and memory of the server, energy; and what could not be had of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from repo_builder.measure.load import processes
from repo_builder.measure.load.rapl import Packages
from repo_builder.results.tuning import Trial

_EVERY_S = 0.2


class Meter:
    """Looks at the CPU time of a server's processes, and at the CPU's energy, five times a second during a level."""

    def __init__(self, group: int | None) -> None:
        self._group = group
        self._packages = Packages()
        self._used_s = 0.0
        self._before: dict[int, float] = {}  # process → its CPU time when it was last looked at
        self._seen: list[tuple[float, float]] = []
        self._energy: list[tuple[float, float]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.memory_bytes: float | None = None

    def __enter__(self) -> Meter:
        if self._group is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(2)
            self.memory_bytes = float(processes.memory_bytes(self._before)) or None

    def cpu_rate(self, seconds: float) -> float | None:
        """Return the cores that were busy over the last seconds, those of the measured windows; None if unknown."""
        return _slope(self._seen, seconds)

    def energy_j(self, seconds: float, infer_per_s: float) -> float | None:
        """Return the energy of the CPU packages an inference over the last seconds; None if unknown."""
        power_w = _slope(self._energy, seconds)
        return None if power_w is None or not infer_per_s else power_w / infer_per_s

    def _run(self) -> None:
        while self._group is not None:
            self._look(self._group)
            if self._end.wait(_EVERY_S):
                break

    def _look(self, group: int) -> None:
        """Add up what each process has used since: those of the configuration before may just be ending."""
        now = {pid: processes.cpu_s([pid]) for pid in processes.members(group)}
        self._used_s += sum(max(0.0, used - self._before.get(pid, used)) for pid, used in now.items())
        self._before = now
        self._seen.append((time.monotonic(), self._used_s))
        joules = self._packages.joules()
        if joules is not None:
            self._energy.append((time.monotonic(), joules))


def _slope(seen: list[tuple[float, float]], seconds: float) -> float | None:
    """Return how fast a counter rose over the last seconds of what was seen of it; None with less than two readings.

    Where a busy machine let only one reading into them, the one before counts too: the load was on then already.
    """
    inside = [item for item in seen if item[0] >= seen[-1][0] - seconds]
    inside = seen[-2:] if len(inside) < 2 else inside
    if len(inside) < 2:
        return None
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


_COLUMNS = {
    "cpu_utilisation": "the machine's CPU (the server's metrics have none, or did not renew it within a level)",
    "server_cpu_us": "CPU time of the server (its processes are not this user's, or on another machine)",
    "memory_bytes": "memory (neither the server's metrics nor its processes tell it)",
    "cpu_energy_j": "energy of the CPU ({rapl})",
    "gpu_utilisation": "GPU (the server publishes no GPU metrics: no GPU, or no DCGM)",
    "gpu_memory_bytes": "memory of the GPU (likewise)",
    "energy_j": "energy of the GPU (its counter is not published, or did not change twice within a level)",
}


def unmeasured(trials: Iterable[Trial], *, local: bool) -> str:
    """Return what no level has a figure of, and why; empty where nothing is missing.

    Args:
        trials: With every load that was measured.
        local: Whether the server runs on this machine.
    """
    rapl = Packages().missing or "it broke off" if local else "the server was not started here"
    known = [level for trial in trials for level in trial.levels]
    missing = [text for name, text in _COLUMNS.items() if all(getattr(item, name) is None for item in known)]
    return "not measured: " + "; ".join(missing).format(rapl=rapl) if known and missing else ""
