"""A child process that never outlives its parent, or one that is meant to."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_TAIL_LINES = 400
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lives on Linux


class Child:
    """A command in a process group of its own, with its output forwarded to stderr or written to a file.

    When it ends, whatever is left of its group is killed.

    Args:
        command: Program and arguments.
        environment: The whole environment.
        log: File that takes its output; None forwards it to this process's stderr.
        detached: Whether it outlives this process. Otherwise Linux sends it SIGTERM when this process dies.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, log: Path | None, detached: bool = False
    ) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._log = log
        self._detached = detached
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._started = threading.Event()
        self._ended = threading.Event()  # waited for instead of the thread: join() is not safe to interrupt
        self._error: OSError | None = None
        self._process: subprocess.Popen[bytes]
        # The death signal is tied to the *thread* that forked: this one lives as long as the child.
        threading.Thread(target=self._keep, name="triton", daemon=True).start()
        self._started.wait()
        if self._error is not None:
            raise self._error

    @property
    def pid(self) -> int:
        """Its process id, which is also its group's."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait until it has ended and its output is read; return its exit code, None when the time is over."""
        return self._process.poll() if self._ended.wait(timeout_s) else None

    def tail(self) -> list[str]:
        """Return the last lines of its output."""
        if self._log is None:
            return list(self._tail)
        return tail_of(self._log)

    def stop(self, grace_s: float) -> None:
        """Send SIGTERM, wait, then kill whatever is left of its group."""
        try:
            if self.exit_code is None:
                self._process.terminate()
                self.wait(grace_s)
        finally:
            kill_group(self.pid)
            self.wait(5)

    def _keep(self) -> None:
        try:
            self._process = self._spawn()
        except OSError as error:
            self._error = error
            return
        finally:
            self._started.set()
        pump = threading.Thread(target=self._pump, name="triton log", daemon=True)
        pump.start()
        if sys.platform == "linux":
            # Not reaped yet, it counts as alive for its children: they are still there to be found.
            with contextlib.suppress(ChildProcessError):  # `exit_code` has reaped it
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        regions = shared_memory(self.pid)
        self._process.wait()
        kill_group(self.pid, regions)  # its children may hold the pipe open
        pump.join(2)
        self._ended.set()

    def _pump(self) -> None:
        if self._process.stdout is None:
            return
        with self._process.stdout as output:
            for raw in output:
                line = raw.decode("utf-8", errors="replace")
                self._tail.append(line.rstrip("\n"))
                with contextlib.suppress(OSError, ValueError):  # stderr may be closed; the server goes on
                    sys.stderr.write(line)
                    sys.stderr.flush()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as held:
            output = held.enter_context(self._log.open("ab")) if self._log else subprocess.PIPE
            return subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=None if self._detached else tie_to_parent(),
            )


def tail_of(log: Path) -> list[str]:
    """Return the last lines of a log file, none where there is no file."""
    with contextlib.suppress(OSError):
        return log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    return []


def tie_to_parent() -> Callable[[], None] | None:
    """Return what the forked child calls so that it gets SIGTERM when its parent dies; None where that is unknown."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def kill(pids: Iterable[int]) -> None:
    """Kill processes; harmless to those that are gone."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def kill_group(group: int, regions: Sequence[Path] = ()) -> None:
    """Kill every process of a group, give them a moment to be gone, and remove the shared memory that they leave.

    Args:
        group: Number of the group.
        regions: Shared memory known already to be the group's.
    """
    regions = [*regions, *shared_memory(group)]
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.01)
    for region in regions:
        region.unlink(missing_ok=True)


def shared_memory(group: int) -> list[Path]:
    """Return the regions of Triton's Python backend in a group: its stubs have their names on the command line."""
    names: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):  # it may end meanwhile
            stat = (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if stat[2] == str(group):
                words = (process / "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
                names |= {word for word in words if re.fullmatch(r"triton_\w+_shm_region_[\w-]+", word)}
    return [_SHARED_MEMORY / name for name in names]
