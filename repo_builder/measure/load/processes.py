"""CPU time and memory of a server's own processes, where they run on this machine and are this user's (Linux)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")


def members(group: int) -> list[int]:
    """Return the processes of a process group that live; none where there is no /proc."""
    found = []
    for process in _PROC.glob("[0-9]*"):
        fields = _stat(int(process.name))
        if len(fields) > 14 and fields[2] == str(group) and fields[0] not in "ZX":
            found.append(int(process.name))
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU time, user and system, that processes have used so far, seconds."""
    ticks = 0
    for pid in pids:
        fields = _stat(pid)
        ticks += sum(int(item) for item in fields[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pids: Iterable[int]) -> int:
    """Return the proportional set size of processes: own pages, and a share of those that several have."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):  # it may end meanwhile
            for line in (_PROC / str(pid) / "smaps_rollup").read_text(encoding="utf-8").splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


def _stat(pid: int) -> list[str]:
    """Return a process's fields of /proc/PID/stat behind its command, from the state on; see proc(5)."""
    with contextlib.suppress(OSError):
        # the second field, the command, is in parentheses and may hold anything
        return (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return []
